"""`git-remote-p2p`, `git-remote-megalfs`, `git-remote-mega`: how stock git speaks to a peer.

It offers `connect` and nothing else: git's own protocol, at full efficiency, through one stream to the peer's
upload-pack or receive-pack. The node of this root does the work over its Unix socket, so a fetch costs a small
Python and no key, no TLS, no event loop; only where no node runs does the helper dial by itself.

stdout is the wire, so people get stderr. stdin is read byte by byte up to `connect`: what follows is git's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from megalfs.errors import MegalfsError, TemporaryError, UsageError

__all__ = ["SOCKET_NAME", "connect_socket", "entry", "main", "read_line"]

SOCKET_NAME = "git.sock"
SERVICES = ("git-upload-pack", "git-receive-pack", "git-upload-archive")
LINE_BYTES_MAX = 4096
BLOCK_BYTES = 128 << 10
PIPE_BYTES = 1 << 20
EXIT_FAILED = 128  # what git's own helpers die with
ANSWER_S_MAX = 120.0  # the node may fetch a whole repository from others first


def entry() -> NoReturn:
    """The console script: `git-remote-p2p <remote> <url>`."""
    sys.exit(main(sys.argv))


def main(argv: list[str]) -> int:
    """Speaks with git until it has what it wanted."""
    try:
        if len(argv) != 3:
            raise UsageError("git runs this program; it needs a remote and a URL")
        return _converse(argv[2])
    except MegalfsError as error:
        _say(str(error))
        if error.hint:
            _say(f"hint: {error.hint}")
        return EXIT_FAILED
    except (ConnectionError, KeyboardInterrupt):  # git, or the node of this root, went away
        return EXIT_FAILED


def _say(line: str) -> None:
    shown = "".join(char if char.isprintable() else "?" for char in line)
    os.write(2, f"megalfs: {shown}\n".encode())


def _converse(url: str) -> int:
    options: dict[str, str] = {}
    while line := read_line(lambda: os.read(0, 1)):
        word, _, rest = line.partition(" ")
        if word == "capabilities":
            os.write(1, b"option\nconnect\n\n")
        elif word == "connect" and rest in SERVICES:
            _connect(url, rest, options)
            return 0
        elif (
            word == "option"
        ):  # git does all of them by itself; `servpath`, a user's --upload-pack, goes nowhere
            name, _, options[name] = rest.partition(" ")
            os.write(1, b"unsupported\n")
        else:
            os.write(1, b"fallback\n")
    return 0


def read_line(read_octet: Callable[[], bytes]) -> str:
    """One line without its end; empty at the end of input or at an empty line.

    Raises:
        UsageError: it is longer than any line of the protocol.
    """
    line = b""
    while not line.endswith(b"\n"):
        if len(line) > LINE_BYTES_MAX:
            raise UsageError("a line that is too long for the protocol of remote helpers")
        octet = read_octet()
        if not octet:
            break
        line += octet
    return line.decode(errors="replace").rstrip("\n")


def _connect(url: str, service: str, options: Mapping[str, str]) -> None:
    home = _root_path()
    # Where the socket is as a rule; what imports it takes to find out otherwise cost a third of this program.
    connection = connect_socket(home / SOCKET_NAME) or connect_socket(_socket_path(home))
    if connection is None:
        from megalfs.core.repoid import RepoUrl
        from megalfs.git.direct import connect_directly

        connect_directly(home, RepoUrl.of_repository(url), service)
        return
    from megalfs.git.first_clone import FirstClone

    first = FirstClone.find(os.environ.get("GIT_DIR"), options) if service == "git-upload-pack" else None
    with connection:
        request = {"url": url, "service": service, "bundles": first is not None}
        connection.sendall(json.dumps(request).encode() + b"\n")
        bundles = _check_answer(connection)
        if first is not None and bundles:
            with first.holding(bundles):
                os.write(1, b"\n")
                _splice(connection)
            return
        os.write(1, b"\n")
        _splice(connection)


def _root_path() -> Path:
    named = os.environ.get("MEGALFS_ROOT") or os.environ.get("MEGAENGINE_ROOT")
    return Path(named).expanduser() if named else Path.home() / ".megalfs"


def _socket_path(home: Path) -> Path | None:
    from megalfs.errors import NotFoundError
    from megalfs.store.root import Root

    try:
        return Root.open(home, create=False).local / SOCKET_NAME
    except NotFoundError:
        return None


def connect_socket(path: Path | None) -> socket.socket | None:
    """A connection to the node that listens there; None when there is none."""
    if path is None or not path.exists():
        return None
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By way of the descriptor: a socket's path may have 107 bytes, a directory's more.
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        connection.close()
        return None
    finally:
        os.close(directory)
    return connection


def _check_answer(connection: socket.socket) -> list[Path]:
    """Reads the node's lines, byte by byte: what follows the last one is the peer's. Returns bundles to begin with.

    Raises:
        MegalfsError: what the node says went wrong.
    """
    answer: dict[str, object] = {"busy": True}
    connection.settimeout(ANSWER_S_MAX)
    while answer.get("busy"):
        try:
            answer = json.loads(read_line(lambda: connection.recv(1)) or "{}")
        except (TimeoutError, ValueError) as error:
            raise TemporaryError("the node of this root does not answer") from error
    connection.settimeout(None)
    notes, bundles = (answer.get(name) for name in ("notes", "bundles"))
    for note in notes if isinstance(notes, list) else ():
        _say(str(note))
    if not answer.get("ok"):
        hint, reason = answer.get("hint"), answer.get("error", "the node of this root hung up")
        raise TemporaryError(str(reason), hint=str(hint) if hint else None)
    return [Path(str(path)) for path in bundles] if isinstance(bundles, list) else []


def _splice(connection: socket.socket) -> None:
    """stdin to the peer, the peer to stdout, until the peer has no more to say."""
    upward = threading.Thread(target=_copy_up, args=(connection,), daemon=True)
    upward.start()
    with suppress(OSError, AttributeError):  # stdout is no pipe of ours to widen
        fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        _move_down(connection)
    except (OSError, AttributeError) as error:
        if getattr(error, "errno", errno.EINVAL) != errno.EINVAL:
            raise
        while block := connection.recv(BLOCK_BYTES):  # stdout is a file or a terminal, or this is no Linux
            _write_all(1, block)


def _move_down(connection: socket.socket) -> None:
    """From the socket to git's pipe within the kernel: Python moves none of a pack.

    Waits with `recv`: splice would wait with the pipe locked, so that git could not read what is in it, and at the
    end would say EPIPE where git, content, has closed the pipe already.
    """
    while connection.recv(1, socket.MSG_PEEK):
        os.splice(connection.fileno(), 1, PIPE_BYTES)


def _copy_up(connection: socket.socket) -> None:
    with suppress(OSError):
        while block := os.read(0, BLOCK_BYTES):
            connection.sendall(block)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


def _write_all(fd: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    entry()
