"""A root: where one host keeps its key, its token, its index and the sidecars of what it holds.

A root belongs to one host. A home directory mounted on 64 machines must not become one key, one database and
one socket: there (a network file system, or a root that another machine made) the host's own files live in
`hosts/<machine-id>/` and the index and the socket in a local directory that only this user can read.

    root.json                     version, and the machine that made it
    manifests/<oid>/<manifest id> what `publish` and `pull` learnt; `.sig` beside it; shared by all hosts
    blobs/<oid>                   small blobs that have no file of their own (trees); shared by all hosts
    key.pem token node.json       of one host
    places/<oid>.json names/      of one host: which files hold what, signed names and the highest seq seen
    index.sqlite                  of one host, local, thrown away and rebuilt at will
"""

from __future__ import annotations

import base64
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from megalfs.errors import (
    BusyError,
    NotAuthorisedError,
    NotFoundError,
    PolicyError,
    StoreError,
    UsageError,
)
from megalfs.store.files import (
    Json,
    is_network_file_system,
    map_os_errors,
    read_json,
    write_atomic,
    write_json,
    write_new,
)
from megalfs.store.owner import Owner, machine_id

if TYPE_CHECKING:
    from megalfs.core.identity import NodeKey
    from megalfs.core.ids import Oid
    from megalfs.core.signing import SigningKey

__all__ = ["Root", "RunningNode"]

ROOT_VERSION = 1
KEY_BYTES = 32
TOKEN_BYTES = 32
# PKCS#8 of an Ed25519 key is this and 32 bytes of seed (RFC 8410), so openssl reads key.pem and we need no
# library to write it.
_PKCS8_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
_PEM = re.compile(r"-----BEGIN PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----\s*\Z")


class RunningNode(Struct, frozen=True):
    """The node that runs on a root, as `node.json` tells other processes."""

    owner: Owner
    http_port: int
    quic_port: int
    listen: str


class Root(Struct, frozen=True):
    """The directories of one root, as this host sees them."""

    path: Path
    host: Path
    local: Path
    machine: str

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool,
        machine: str | None = None,
        is_network: bool | None = None,
        local_base: Path | None = None,
    ) -> Self:
        """Opens the root at `path`.

        Args:
            machine: instead of this machine's id (tests).
            is_network: instead of asking statfs (tests, and file systems that hide what they are).
            local_base: instead of /var/tmp/megalfs-UID, where the index lives when `path` is shared.

        Raises:
            NotFoundError: there is no root and `create` is false.
            PolicyError: the directory is of a newer version.
            StoreError, UsageError: it cannot be used.
        """
        path = path.absolute()
        machine = machine or machine_id()
        with map_os_errors(f"cannot use the root {str(path)!r}"):
            maker = _read_marker(path) or (_make(path, machine) if create else None)
            if maker is None:
                raise NotFoundError(
                    f"no megalfs root at {str(path)!r}", hint="megalfs publish, seed or auth init makes one"
                )
            network = is_network_file_system(path) if is_network is None else is_network
            if not network and maker == machine:
                root = cls(path, path, path, machine)
            else:
                base = local_base or Path(f"/var/tmp/megalfs-{os.getuid()}")  # noqa: S108 - owner and mode checked
                local = _local_directory(path, base)
                root = cls(path, path / "hosts" / machine, local, machine)
            if not root.is_read_only:
                root._make_directories()
        return root

    def _make_directories(self) -> None:
        if self.host != self.path:
            (self.path / "hosts").mkdir(mode=0o700, exist_ok=True)
            self.host.mkdir(mode=0o700, exist_ok=True)
        for directory in (self.manifests, self.blobs, self.places, self.names, self.partials):
            directory.mkdir(mode=0o700, exist_ok=True)

    @property
    def is_read_only(self) -> bool:
        """Whether this host can only read it: a snapshot, or an export that is mounted so."""
        return not os.access(self.host if self.host.exists() else self.path, os.W_OK)

    def check_writable(self) -> None:
        """Raises NotAuthorisedError for a root that can only be read."""
        if self.is_read_only:
            raise NotAuthorisedError(
                f"the root {str(self.path)!r} is read-only", hint="name another one with --root"
            )

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may use the same directory."""
        return self.host != self.path

    @property
    def manifests(self) -> Path:
        """One directory per blob, one file per manifest."""
        return self.path / "manifests"

    @property
    def blobs(self) -> Path:
        """Small blobs of our own making."""
        return self.path / "blobs"

    @property
    def places(self) -> Path:
        """Which files hold which blob: paths, devices and inodes mean something on one host only."""
        return self.host / "places"

    @property
    def names(self) -> Path:
        """Signed name records."""
        return self.host / "names"

    @property
    def partials(self) -> Path:
        """One file for each directory that a partial was made in, so that `gc` finds them."""
        return self.host / "partials"

    @property
    def groups(self) -> Path:
        """One file for each group of small files that is being written."""
        return self.host / "groups"

    @property
    def index(self) -> Path:
        """The SQLite file."""
        return self.local / "index.sqlite"

    @property
    def socket(self) -> Path:
        """Where a node may listen for local programs."""
        return self.local / "api.sock"

    def blob_path(self, oid: Oid) -> Path:
        """Where `put_bytes` keeps a blob."""
        return self.blobs / str(oid)

    def owner(self) -> Owner:
        """This process, as sidecars name it."""
        return Owner.here(self.machine)

    def check(self) -> None:
        """That the root is still there and can be written.

        Raises:
            StoreError: it was unmounted or made read-only; it is never made anew on the disk below.
        """
        with map_os_errors(f"the root {str(self.path)!r} is gone or read-only"):
            if _read_marker(self.path) is None:
                raise StoreError(f"the root {str(self.path)!r} is gone")
            if not os.access(self.host, os.W_OK):
                raise StoreError(f"the root {str(self.path)!r} cannot be written")

    # The key, and the token of local programs.

    def load_key(self) -> SigningKey | None:
        """The key of this host, or None before `create_key`.

        Raises:
            PolicyError: others can read the file.
            StoreError: it does not hold an Ed25519 key.
        """
        path = self.host / "key.pem"
        with map_os_errors(f"cannot read the key {str(path)!r}"):
            try:
                text = path.read_text(encoding="ascii", errors="replace")
            except FileNotFoundError:
                return None
            _check_private(path)
        return _key_of(_seed_of(text, path))

    def create_key(self) -> SigningKey:
        """Makes the key of this host.

        Raises:
            BusyError: there is one already; a key is never replaced.
        """
        path = self.host / "key.pem"
        seed = os.urandom(KEY_BYTES)
        body = base64.b64encode(_PKCS8_PREFIX + seed).decode()
        pem = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n".encode()
        with map_os_errors(f"cannot write the key {str(path)!r}"):
            if not write_new(path, pem):
                raise BusyError(f"there is a key already: {str(path)!r}", hint="megalfs auth show prints it")
        return _key_of(seed)

    def load_or_create_key(self) -> SigningKey:
        """The key of this host, made when there is none; two processes at once get the same one."""
        key = self.load_key()
        if key is None:
            with suppress(BusyError):
                return self.create_key()
            key = self.load_key()
        assert key is not None
        return key

    def public_key(self) -> NodeKey:
        """The public half of this host's key, made when there is none; asking again costs no cryptography."""
        from megalfs.core.identity import NodeKey

        path = self.host / "key.pub"
        with suppress(OSError, UnicodeDecodeError, UsageError):
            if path.stat().st_mtime_ns >= (self.host / "key.pem").stat().st_mtime_ns:
                return NodeKey.parse(path.read_text(encoding="ascii").strip())
        public = self.load_or_create_key().public
        if self.is_read_only:
            return public
        with map_os_errors(f"cannot write {str(path)!r}"):
            write_atomic(path, f"{public}\n".encode("ascii"))
        return public

    def token(self) -> str:
        """The secret that local programs send to the node (64 hex digits), made on first use."""
        path = self.host / "token"
        with map_os_errors(f"cannot use the token {str(path)!r}"):
            if not path.exists():
                write_new(path, os.urandom(TOKEN_BYTES).hex().encode() + b"\n")
            _check_private(path)
            token = path.read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch(r"[0-9a-f]{64}", token):
            raise StoreError(
                f"damaged token file: {str(path)!r}", hint="delete it; the next start makes a new one"
            )
        return token

    # The running node.

    def write_node(self, *, listen: str, http_port: int, quic_port: int = 0) -> None:
        """Tells other processes where this one listens.

        Raises:
            BusyError: another live process runs a node on this root.
        """
        running = self.read_node()
        if running is not None and running.owner != self.owner():
            raise BusyError(
                f"a node runs on this root already (pid {running.owner.pid})", hint="megalfs node stop"
            )
        with map_os_errors(f"cannot write {str(self._node)!r}"):
            ports: dict[str, Json] = {"listen": listen, "http_port": http_port, "quic_port": quic_port}
            write_json(self._node, {"owner": self.owner().to_json(), **ports})

    def read_node(self) -> RunningNode | None:
        """The node that runs on this root, or None; what a killed one left behind is not believed."""
        document = read_json(self._node)
        if document is None:
            return None
        owner = Owner.from_json(document.get("owner"))
        listen, http, quic = (document.get(name) for name in ("listen", "http_port", "quic_port"))
        if owner is None or not (isinstance(listen, str) and isinstance(http, int) and isinstance(quic, int)):
            return None
        return RunningNode(owner, http, quic, listen) if owner.is_alive(self.owner()) else None

    def clear_node(self) -> None:
        """Forgets the running node when it is this process."""
        running = self.read_node()
        if running is not None and running.owner == self.owner():
            self._node.unlink(missing_ok=True)

    @property
    def _node(self) -> Path:
        return self.host / "node.json"


def _read_marker(path: Path) -> str | None:
    """The machine that made the root, or None when there is no root here."""
    document = read_json(path / "root.json")
    if document is None:
        return None
    version, machine = document.get("version"), document.get("machine")
    if version != ROOT_VERSION or not isinstance(machine, str):
        raise PolicyError(
            f"the root {str(path)!r} has version {version!r}, this megalfs reads {ROOT_VERSION}",
            hint="upgrade megalfs, or name another root with --root",
        )
    return machine


def _make(path: Path, machine: str) -> str:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_new(path / "root.json", f'{{"version": {ROOT_VERSION}, "machine": "{machine}"}}\n'.encode())
    maker = _read_marker(path)  # another process or host may have been first
    if maker is None:
        raise StoreError(f"damaged {str(path / 'root.json')!r}", hint="delete it, then megalfs repair")
    return maker


def _local_directory(path: Path, base: Path) -> Path:
    """A directory of this machine and this user alone, one per root.

    /var/tmp is writable by all: somebody may have made `base` first, so its owner and mode are checked.
    """
    import hashlib

    local = base / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    for directory in (base, local):
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
        if (
            not stat.S_ISDIR(found.st_mode)
            or found.st_uid != os.getuid()
            or stat.S_IMODE(found.st_mode) & 0o077
        ):
            raise PolicyError(
                f"not a private directory of this user: {str(directory)!r}",
                hint="it must be yours, mode 0700",
            )
    return local


def _check_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise PolicyError(f"others can read {str(path)!r} (mode {mode:04o})", hint=f"chmod 600 {path}")


def _seed_of(text: str, path: Path) -> bytes:
    found = _PEM.search(text)
    raw = base64.b64decode(found[1]) if found else b""
    if len(raw) != len(_PKCS8_PREFIX) + KEY_BYTES or not raw.startswith(_PKCS8_PREFIX):
        raise StoreError(f"not an Ed25519 private key: {str(path)!r}")
    return raw[len(_PKCS8_PREFIX) :]


def _key_of(seed: bytes) -> SigningKey:
    from megalfs.core.signing import SigningKey

    return SigningKey(seed)
