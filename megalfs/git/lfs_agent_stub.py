"""The program that git-lfs starts, eight at a time: it passes messages on to the node, and starts that when none runs.

git-lfs waits for each of the eight to answer `init` before it starts the next, so all that counts here is to
start quickly: run as `python -I -S` with the standard library's smallest modules, nothing of megalfs, and git
asked only when there is something to transfer. All bytes, sources, retries and scheduling are the node's; the
node is one process for every agent of this user, so it sees all files of all of them at once.

stdout is the wire to git-lfs: its descriptor is moved away first, so that nothing else can write there. What
a person must know goes into `complete.error.message`; git-lfs shows nothing else of an agent.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # `typing` costs 8 ms
if TYPE_CHECKING:
    from collections.abc import Iterator

MEGALFS_DIRECTORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NODE_START_S_MAX = 60.0
NODE_POLL_S = 0.02
CONNECT_S_MAX = 5.0
FINISH_S_MAX = 0.5  # git-lfs has everything by now, and must not wait for a note
TRIES_MAX = 4  # a node that ended while we waited is started again
LINE_BYTES_MAX = 1 << 20
CONFIG_BYTES_MAX = 64 << 10
LOG_TAIL_BYTES = 2000
CONFIG_NAME = ".megalfs.toml"
SETTINGS = r"^(lfs\.storage|megalfs\..*|remote\..*\.(push)?url)$"  # of git, that the node wants to know
KEPT = {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"}  # the user's, not one repository's
# Where a node that listens on every address is reached from here.
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class GitLeftError(Exception):
    """git-lfs closed its end, or was killed: there is nobody to answer."""


class FailedError(Exception):
    """One transfer failed for good; the text is for the user."""


class NodeLostError(Exception):
    """The node did not answer, or stopped in the middle."""


class Wire:
    """Lines of JSON from and to git-lfs."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._buffer = b""
        self._is_ended = False

    def read(self) -> dict[str, object] | None:
        """The next message; None when git-lfs has no more. What is none is skipped: it names no object to fail."""
        while True:
            while b"\n" not in self._buffer:
                if self._is_ended:
                    return None
                self._fill()
            line, _, self._buffer = self._buffer.partition(b"\n")
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                return message

    def send(self, message: dict[str, object]) -> None:
        """Writes one message."""
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._out, line) :]
        except OSError as error:
            raise GitLeftError from error

    def wait(self, sock: socket.socket | None, timeout_s: float) -> bool:
        """Waits for the node, or some time; whether the node has sent something.

        Raises:
            GitLeftError: git-lfs is gone.
        """
        watched = [0] * (not self._is_ended) + ([sock.fileno()] if sock is not None else [])
        readable, _, _ = select.select(watched, [], [], timeout_s)
        if 0 in readable:
            self._fill()
            if self._is_ended:
                raise GitLeftError
        return sock is not None and sock.fileno() in readable

    def _fill(self) -> None:
        block = os.read(0, 65536)
        self._is_ended = not block
        self._buffer += block
        if len(self._buffer) > LINE_BYTES_MAX and b"\n" not in self._buffer:
            self._buffer = b"!"  # no message is that long, nor is what follows up to the newline


# --- the root and its node ------------------------------------------------------------------------------------


def root_directory() -> str:
    """As the command line finds it: `$MEGALFS_ROOT`, `$MEGAENGINE_ROOT`, `~/.megalfs`."""
    environ = os.environ
    named = environ.get("MEGALFS_ROOT") or environ.get("MEGAENGINE_ROOT") or "~/.megalfs"
    return os.path.abspath(os.path.expanduser(named))


def host_directory(root: str) -> str:
    """Where this host's own files of the root lie (store/root.py): a root may be shared by many hosts."""
    hosts = root + "/hosts"
    if not os.path.isdir(hosts):
        return root
    import hashlib

    text = ""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        text = text or read_text(path).strip()
    machine = hashlib.sha256(b"megalfs:machine:v1\0" + (text or os.uname().nodename).encode()).hexdigest()
    mine = f"{hosts}/{machine[:32]}"
    return mine if os.path.isdir(mine) else root


def read_text(path: str) -> str:
    """A small file; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(CONFIG_BYTES_MAX)
    except OSError:
        return ""


def running_node(root: str) -> tuple[str, int] | None:
    """Address of the live node of a root; a dead one's port may be anybody's by now."""
    try:
        document = json.loads(read_text(host_directory(root) + "/node.json"))
        owner, listen, port = document["owner"], document["listen"], document["http_port"]
        if not is_alive(owner["pid"], owner["started"]):
            return None
    except (ValueError, KeyError, TypeError):
        return None
    host = listen.rpartition(":")[0].strip("[]")
    return LOCAL.get(host, host), port


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that said so still runs: a pid alone is reused."""
    stat = read_text(f"/proc/{pid}/stat")
    if stat:
        fields = stat.rpartition(")")[2].split()
        return fields[0] not in "ZX" and int(fields[19]) == started
    if sys.platform == "linux":
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def start_node(root: str) -> None:
    """Starts the node of a root in a session of its own, unless somebody else is doing that right now.

    It gets none of our descriptors: git-lfs waits for the end of every pipe that it made. What says that a
    start is under way is a lock on a descriptor that the node keeps open.
    """
    import fcntl

    os.makedirs(root, mode=0o700, exist_ok=True)
    lock = os.open(root + "/.agent-start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        if running_node(root) is None:
            child = os.fork()
            if child == 0:
                become_node(root, lock)
            os.waitpid(child, 0)
    finally:
        os.close(lock)


def become_node(root: str, lock: int) -> None:
    """Runs in the child and never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        log = os.open(root + "/node.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        kept = os.dup2(lock, 10)
        for number, fd in ((0, null), (1, log), (2, log)):
            os.dup2(fd, number)
        os.closerange(3, kept)
        os.closerange(kept + 1, 4096)
        os.chdir(root)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        environ = {name: v for name, v in os.environ.items() if not name.startswith("GIT_") or name in KEPT}
        path = [os.path.dirname(MEGALFS_DIRECTORY), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        argv = [sys.executable, "-m", "megalfs", "--root", root, "lfs", "node"]
        os.execve(sys.executable, argv, environ)  # noqa: S606 - no shell, our own interpreter
    finally:
        os._exit(1)


def node_address(wire: Wire, root: str) -> tuple[str, int]:
    """Waits for the node of the root, starting it when none runs.

    Raises:
        FailedError: it does not come up.
    """
    deadline = time.monotonic() + NODE_START_S_MAX
    next_start = 0.0
    while (address := running_node(root)) is None:
        now = time.monotonic()
        if now > deadline:
            tail = read_text(root + "/node.log")[-LOG_TAIL_BYTES:].strip().splitlines()
            why = tail[-1] if tail else "it did not come up"
            raise FailedError(
                f"the megalfs node of {root} could not be started: {why}; try: megalfs node start"
            )
        if now >= next_start:
            start_node(root)
            next_start = now + 1.0
        wire.wait(None, NODE_POLL_S)
    return address


def ask_node(
    wire: Wire | None, root: str, address: tuple[str, int], path: str, body: object, timeout_s: float
) -> Iterator[dict[str, object]]:
    """Posts to the node and yields the objects that it answers, line by line, as they come.

    Raises:
        NodeLostError: it cannot be reached, or ends without having answered.
    """
    token = read_text(host_directory(root) + "/token").strip()
    content = json.dumps(body).encode()
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    head = (
        f"POST {path} HTTP/1.0\r\nHost: {name}:{address[1]}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    try:
        sock = socket.create_connection(address, timeout=timeout_s)
    except OSError as error:
        raise NodeLostError(str(error)) from error
    try:
        sock.sendall(head.encode() + content)
        received, is_body, deadline = b"", False, time.monotonic() + timeout_s
        while True:
            if wire is not None:
                while not wire.wait(sock, 1.0):
                    pass
            elif not select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return
            block = sock.recv(65536)
            if not block:
                raise NodeLostError("it ended in the middle of its answer")
            received += block
            if not is_body:
                header, separator, rest = received.partition(b"\r\n\r\n")
                if not separator:
                    continue
                is_body, received = True, rest
                if header.split(b" ", 2)[1] != b"200":
                    raise FailedError(f"the node answered {(header[:32] + rest[:200]).decode('latin-1')!r}")
            *lines, received = received.split(b"\n")
            for line in lines:
                yield json.loads(line)
    except OSError as error:
        raise NodeLostError(str(error)) from error
    finally:
        sock.close()


# --- what git knows -------------------------------------------------------------------------------------------


def git(*argv: str) -> str | None:
    """What git answers, or None when it fails."""
    import subprocess

    done = subprocess.run(["git", *argv], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None


class Repository:
    """What the node must know of the repository; found once, at the first transfer."""

    def __init__(self) -> None:
        self.context: dict[str, object] = {}

    def look(self) -> dict[str, object]:
        """LFS storage, and whom to ask; `cwd` is the top of the work tree, or a bare repository."""
        if not self.context:
            common = os.path.abspath((git("rev-parse", "--git-common-dir") or ".git").rstrip("\n"))
            settings: dict[str, list[str]] = {}
            listed = git("config", "--null", "--get-regexp", SETTINGS) or ""
            for entry in listed.split("\0")[:-1]:
                key, _, value = entry.partition("\n")
                settings.setdefault(key, []).append(value)
            storage = os.path.expanduser(settings.pop("lfs.storage", ["lfs"])[-1])
            storage = os.path.normpath(os.path.join(common, storage))
            text, where = repository_config()
            self.context = {"storage": storage, "git": settings, "text": text, "where": where}
        return self.context


def repository_config() -> tuple[str, str]:
    """What the repository itself says, and where: during a clone there is neither a file nor an index yet."""
    if os.path.isfile(CONFIG_NAME) and not os.path.islink(CONFIG_NAME):
        return read_text(CONFIG_NAME), f"{CONFIG_NAME} in the work tree"
    for revision, where in ((":", "in the index"), ("HEAD:", "at HEAD")):
        text = git("cat-file", "-p", revision + CONFIG_NAME)
        if text is not None:
            return text[:CONFIG_BYTES_MAX], f"{CONFIG_NAME} {where}"
    return "", ""


def file_name(oid: str) -> str:
    """The file that a person knows an object by; asked only when there is bad news of it."""
    for argv in (("HEAD",), ("--all",)):
        for line in (git("lfs", "ls-files", "--long", *argv) or "").splitlines():
            if line.startswith(oid):
                return line[len(oid) + 3 :]
    return "a file of this repository"


# --- the protocol ---------------------------------------------------------------------------------------------


class Agent:
    """One process's part of the protocol."""

    def __init__(self, wire: Wire, root: str) -> None:
        self._wire = wire
        self._root = root
        self._repository = Repository()
        self._remote = ""
        self._has_uploaded = False

    def run(self) -> None:
        """Until git-lfs says `terminate` or goes away."""
        while (message := self._wire.read()) is not None:
            event = message.get("event")
            if event == "init":
                self._init(message)
            elif event in ("download", "upload"):
                self._transfer(str(event), message)
            elif event == "terminate":
                break
        if self._has_uploaded:
            self._finish()

    def _init(self, message: dict[str, object]) -> None:
        if message.get("operation") not in ("download", "upload"):
            self._wire.send({"error": {"code": 2, "message": f"megalfs cannot do that: {message!r}"}})
            return
        self._remote = str(message.get("remote") or "")
        self._wire.send({})
        # After the answer: a fork takes a millisecond that git-lfs need not wait for.
        if running_node(self._root) is None:
            start_node(self._root)

    def _transfer(self, event: str, message: dict[str, object]) -> None:
        oid, size = str(message.get("oid")), message.get("size")
        total = size if isinstance(size, int) else 0
        # git-lfs gives the other seven nothing before the first has shown a byte.
        progress = Progress(self._wire, oid, total)
        progress.reach(1)
        try:
            reply = self._ask(event, message, progress)
            if "error" in reply:
                raise FailedError(str(reply["error"]))
        except FailedError as error:
            text = f"megalfs: {file_name(oid)} ({oid}): {error}"
            self._wire.send({"event": "complete", "oid": oid, "error": {"code": 2, "message": text}})
            return
        progress.reach(total)
        place = {"path": reply["path"]} if event == "download" else {}
        self._wire.send({"event": "complete", "oid": oid, **place})

    def _ask(self, event: str, message: dict[str, object], progress: Progress) -> dict[str, object]:
        context = self._repository.look()
        body = {
            "oid": message.get("oid"),
            "size": message.get("size"),
            "path": message.get("path"),
            "action": message.get("action"),
            "session": str(git_lfs_pid()),
            "remote": self._remote,
            **context,
        }
        self._has_uploaded |= event == "upload"
        lost = ""
        for _ in range(TRIES_MAX):
            address = node_address(self._wire, self._root)
            try:
                for reply in ask_node(
                    self._wire, self._root, address, f"/v1/local/lfs/{event}", body, CONNECT_S_MAX
                ):
                    if "bytes" not in reply:
                        return dict(reply)
                    progress.reach(int(str(reply["bytes"])))
            except NodeLostError as error:
                lost = str(error)
                self._wire.wait(None, NODE_POLL_S)
        raise FailedError(f"the megalfs node of {self._root} does not answer: {lost}; try: megalfs status")

    def _finish(self) -> None:
        """What the push came to, once for all agents of it; git-lfs has no message for that."""
        address = running_node(self._root)
        if address is None:
            return
        try:
            body = {"session": str(git_lfs_pid())}
            for reply in ask_node(None, self._root, address, "/v1/local/lfs/finish", body, FINISH_S_MAX):
                notes = reply.get("notes")
                for line in notes if isinstance(notes, list) else []:
                    tell(f"megalfs: {line}\n")
                return
        except (NodeLostError, FailedError):
            pass


class Progress:
    """Tells git-lfs how far one file is; never backwards, never more than there is."""

    def __init__(self, wire: Wire, oid: str, total: int) -> None:
        self._wire = wire
        self._oid = oid
        self._total = total
        self._bytes = 0

    def reach(self, count: int) -> None:
        """So many bytes are there."""
        count = min(count, self._total)
        if count > self._bytes:
            since, self._bytes = count - self._bytes, count
            news = {"event": "progress", "oid": self._oid, "bytesSoFar": count, "bytesSinceLast": since}
            self._wire.send(news)


def git_lfs_pid() -> int:
    """The git-lfs that started us; `sh` stands in between on some systems."""
    pid = os.getppid()
    for _ in range(3):
        name, _, fields = read_text(f"/proc/{pid}/stat").partition("(")[2].rpartition(")")
        if name == "git-lfs" or not fields:
            break
        pid = int(fields.split()[1])
    return pid


def tell(text: str) -> None:
    """Writes to the stderr of git-lfs itself: ours ends in a pipe that it reads only to debug."""
    pid = git_lfs_pid()
    flags = [line[6:] for line in read_text(f"/proc/{pid}/fdinfo/2").splitlines() if line[:6] == "flags:"]
    try:
        fd = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return
    try:
        import stat

        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if not is_file or (flags and int(flags[0], 8) & os.O_APPEND):  # else git-lfs would write over it
            os.write(fd, text.encode())
    except OSError:
        pass
    finally:
        os.close(fd)


def main() -> None:
    """Serves one git-lfs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the node notices, and keeps the partial
    try:
        Agent(Wire(), root_directory()).run()
    except GitLeftError:
        pass
    os._exit(0)  # nothing is left to clean up, and git-lfs waits for us


if __name__ == "__main__":
    main()
