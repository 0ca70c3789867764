"""What megalfs must survive: odd HTTP servers, forged manifests, roots that lie, a node that withholds.

A liar here is a real node on a root whose index says what is not so; only the `ODDITIES` are changed ones, run by
this file as a program.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from processes import Done, Megalfs, Running, is_ready_at, wait_until

from megalfs.core.ids import Oid
from megalfs.core.manifest import SEGMENT_BYTES, Manifest
from megalfs.core.messages import Join
from megalfs.store.blobs import Store
from megalfs.store.ingest import hash_file
from megalfs.store.root import Root

MIB = 1 << 20
MODEL_SEED = 20_240_817


def model_bytes(size: int = 24 * MIB, *, seed: int = MODEL_SEED, tensors: int = 12) -> bytes:
    """A safetensors file of random U8 tensors; equal arguments give equal bytes."""
    rng = np.random.default_rng(seed)
    each = size // tensors
    header = {
        f"layer.{number}.weight": {
            "dtype": "U8",
            "shape": [each],
            "data_offsets": [number * each, (number + 1) * each],
        }
        for number in range(tensors)
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rng.bytes(each * tensors)


class Stage:
    """Roots by name for the tests of one module; `close` ends everything they started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: list[Megalfs] = []

    def node(self, name: str, **environ: str) -> Megalfs:
        """A new root; names may repeat."""
        directory = self.directory / f"{len(self.nodes)}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        self.nodes.append(Megalfs(directory, environ=environ))
        return self.nodes[-1]

    def close(self) -> None:
        """Ends what still runs."""
        for node in self.nodes:
            node.close()


def pull(node: Megalfs, *argv: object, target: str = "got.bin") -> Done:
    """Pulls to `target` in the node's directory, from whom is named only."""
    return node.run("pull", *argv, "-o", target, "--no-discover", "--json", "--wait-peers", "3")


def pulled(node: Megalfs, *argv: object, target: str = "got.bin") -> dict[str, Any]:
    """As `pull`, for one that must succeed; its summary."""
    done = pull(node, *argv, target=target)
    assert done.code == 0, done.err
    return dict(done.records[-1])


def error_of(done: Done, code: int) -> dict[str, Any]:
    """The error object of a pull that had to fail so: one message, no traceback."""
    assert done.code == code, (done.code, done.err, done.out)
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if not line.startswith("megalfs: hint: ")]
    assert lines, "it failed without a word"
    assert all(line.startswith("megalfs: ") for line in lines), done.err
    last = done.records[-1]
    assert (last["event"], last["code"]) == ("error", code)
    assert last.keys() >= {"message", "rejected"}
    return dict(last)


def litter(directory: Path) -> list[str]:
    """What a pull has left in a directory beside its target."""
    return sorted(path.name for path in directory.rglob(".*.megalfs-*"))


def make_model(directory: Path, *, size: int = 24 * MIB, name: str = "model.safetensors") -> Path:
    """The model file, made when it is not there yet."""
    path = directory / name
    if not path.exists():
        path.write_bytes(model_bytes(size))
    return path


def manifest_of(path: Path) -> Manifest:
    """The true manifest of a file."""
    with path.open("rb") as file:
        return Manifest.decode(hash_file(file.fileno(), os.fstat(file.fileno()).st_size).encoded)


def adopt(root: Path, path: Path, manifest: Manifest) -> None:
    """Makes a root believe that a file holds a blob under a manifest, whatever is in it."""
    with Store(Root.open(root, create=True)) as store:
        store.adopt(path, manifest)


def flip(path: Path, *offsets: int) -> None:
    """Flips one byte at each offset, and keeps the file's times: what a bad disk does."""
    before = path.stat()
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0xFF]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# Forged manifests: each differs from the true one in one part, and the bytes that go with it.


@dataclass(frozen=True)
class Forgery:
    """A false manifest, and the file its forger serves."""

    manifest: Manifest
    content: bytes


def forge_id(true: Manifest, content: bytes) -> Forgery:
    """One chunk id is another."""
    blake3 = true.blake3.copy()
    blake3[true.piece_count // 2] ^= 0xFF
    return Forgery(replace(true, blake3=blake3), content)


def forge_cut(true: Manifest, content: bytes) -> Forgery:
    """One cut lies 64 bytes further, the ids are the old ones."""
    lengths = true.lengths.copy()
    index = true.piece_count // 2
    lengths[index] -= 64
    lengths[index + 1] += 64
    if lengths[index + 1] > MIB:  # beyond what the profile allows
        lengths = true.lengths.copy()
        lengths[index] += 64
        lengths[index + 1] -= 64
    return Forgery(replace(true, lengths=lengths), content)


def forge_state(true: Manifest, content: bytes) -> Forgery:
    """One SHA-256 state is another."""
    states = true.states.copy()
    states[len(states) // 2] ^= 0xFF
    return Forgery(replace(true, states=states), content)


def forge_splice(true: Manifest, content: bytes) -> Forgery:
    """One segment holds other bytes; chunk ids fit them, states are the true ones."""
    return _splice(true, content, is_recomputed=False)


def forge_splice_and_states(true: Manifest, content: bytes) -> Forgery:
    """One segment holds other bytes; chunk ids and states fit them, but the end does not give the oid."""
    return _splice(true, content, is_recomputed=True)


def _splice(true: Manifest, content: bytes, *, is_recomputed: bool) -> Forgery:
    spliced = bytearray(content)
    start = (len(true.states) // 3) * SEGMENT_BYTES
    spliced[start : start + SEGMENT_BYTES] = np.random.default_rng(7).bytes(SEGMENT_BYTES)
    found = _manifest_of_bytes(bytes(spliced))
    states = found.states if is_recomputed else true.states
    return Forgery(replace(found, oid=true.oid, states=states), bytes(spliced))


def _manifest_of_bytes(content: bytes) -> Manifest:
    fd = os.memfd_create("spliced")
    try:
        os.write(fd, content)
        return Manifest.decode(hash_file(fd, len(content)).encoded)
    finally:
        os.close(fd)


FORGERIES: dict[str, Callable[[Manifest, bytes], Forgery]] = {
    "id": forge_id,
    "cut": forge_cut,
    "state": forge_state,
    "splice": forge_splice,
    "splice and states": forge_splice_and_states,
}


def serve_forgery(node: Megalfs, forgery: Forgery) -> Running:
    """A node that insists on a forged manifest and the bytes that its forger has."""
    path = node.directory / "forged.bin"
    path.write_bytes(forgery.content)
    return serve_odd(node, path, forgery.manifest, "insist")


# A node whose program is a changed one.


def serve_odd(node: Megalfs, path: Path, manifest: Manifest, oddity: str, argument: object = "") -> Running:
    """Starts this file as a program: a node that has a file and one of the `ODDITIES`."""
    adopt(node.root, path, manifest)
    out_path, err_path = node.directory / "odd.out", node.directory / "odd.err"
    with out_path.open("wb") as out, err_path.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, __file__, str(node.root), oddity, str(argument)],
            env=node.environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    running = Running(process, out_path, err_path)
    node.started.append(running)

    def is_ready() -> bool:
        assert running.process.poll() is None, running.err
        found = [record for record in running.records if record.get("event") == "ready"]
        running.ready = found[0] if found else {}
        return bool(found) and is_ready_at(running.address)

    wait_until(is_ready, f"the node that {oddity} is ready")
    return running


def serve_liar(node: Megalfs, path: Path, manifest: Manifest, *, flipped: int = 0) -> Running:
    """A node that sends the proofs of a true file and the bytes of a damaged one: all, or `flipped` MiB are."""
    damaged = node.directory / "damaged.bin"
    damaged.write_bytes(path.read_bytes())
    flip(damaged, *range(0, flipped * MIB or manifest.size, 4096))
    return serve_odd(node, damaged, manifest, "send_false_parts", path)


def serve_bad_disk(node: Megalfs, path: Path, manifest: Manifest) -> Running:
    """A real node whose copy of a file was damaged, which it does not know."""
    damaged = node.directory / "damaged.bin"
    damaged.write_bytes(path.read_bytes())
    flip(damaged, *range(0, manifest.size, 4096))
    adopt(node.root, damaged, manifest)
    return node.serve("node", "start")


def withhold(chunk: str) -> None:
    """Takes part in everything and stays silent when asked for one chunk, or for any part of it."""
    from megalfs.core.bitfield import Run
    from megalfs.core.effects import PeerId
    from megalfs.node import node as node_module
    from megalfs.node import routes as routes_module
    from megalfs.node.driver import SwarmDriver
    from megalfs.node.holdings import Holding

    class Withholding(SwarmDriver):
        def _serve(self, peer: PeerId, first: int, count: int) -> None:
            withheld = Run(*self.parts.of_chunks(int(chunk), 1))
            if withheld.overlap(Run(first, count)) is None:
                super()._serve(peer, first, count)

    def holds(self: Holding, offset: int, size: int) -> bool:  # the plain route keeps the chunk back too
        return False

    node_module.SwarmDriver = Withholding  # type: ignore[misc]
    routes_module.Holding.holds = holds  # type: ignore[method-assign]


def send_false_proofs(_: str) -> None:
    """Sends right bytes, and before parts of a chunk a proof that is not its."""
    from megalfs.net.proofs import proof_of_run
    from megalfs.node import driver

    def false_proof(*arguments: Any) -> bytes:
        return bytes(octet ^ 1 for octet in proof_of_run(*arguments))

    driver.proof_of_run = false_proof  # type: ignore[attr-defined]


def send_false_parts(true_path: str) -> None:
    """Sends the proofs of the true file before the bytes of its own."""
    from megalfs.net.proofs import proof_of_run
    from megalfs.node import driver

    true_fd = os.open(true_path, os.O_RDONLY)

    def true_proof(*arguments: Any) -> bytes:
        return proof_of_run(*arguments[:-1], true_fd)

    driver.proof_of_run = true_proof  # type: ignore[attr-defined]


def insist(_: str) -> None:
    """Goes on serving a file that does not fit its manifest."""
    from megalfs.store.open_blob import OpenBlob

    def spoil(self: OpenBlob) -> None:
        """Nothing."""

    OpenBlob.spoil = spoil  # type: ignore[method-assign]


def count_chunks(_: str) -> None:
    """Counts in chunks, as nodes did before there were parts, and does not look what others count."""
    from megalfs.core import parts
    from megalfs.net.session import Session
    from megalfs.node.driver import SwarmDriver

    parts.PART_BYTES_MAX = 1 << 30
    joined = SwarmDriver.joined

    def joined_by_any(self: SwarmDriver, session: Session, _: int) -> None:
        joined(self, session, self.parts.count)

    SwarmDriver.joined = joined_by_any  # type: ignore[method-assign]


def decline(_: str) -> None:
    """Offers the manifest, and takes no part when asked to."""
    from megalfs.node.node import Node

    def open_swarm(self: Node, join: Join) -> None:
        return None

    Node._open_swarm = open_swarm  # type: ignore[assignment,method-assign]


ODDITIES = {
    each.__name__: each
    for each in (withhold, send_false_proofs, send_false_parts, insist, count_chunks, decline)
}


async def run_odd(root: Path, oddity: str, argument: str) -> None:
    """Runs a node with one of the oddities."""
    from megalfs.config import load
    from megalfs.formats.hostport import HostPort
    from megalfs.node.api import NodeInfo, run_node

    ODDITIES[oddity](argument)

    def ready(info: NodeInfo) -> None:
        print(json.dumps({"event": "ready", "port": info.port}), flush=True)

    with Store(Root.open(root, create=True)) as store:
        await run_node(
            store=store,
            settings=load(flags={}, environ={}, files=[]),
            paths=[],
            listen=HostPort("127.0.0.1", 0),
            on_ready=ready,
            stop=asyncio.Event(),
        )


# A plain HTTP server with Range, and its oddities.


@dataclass
class Asked:
    """One request that an origin got."""

    path: str
    range: str | None
    headers: dict[str, str]


@dataclass
class Origin:
    """What a plain HTTP server has and how it misbehaves; change the fields while it runs.

    Attributes:
        oddity: one of the names that `_Handler.do_GET` knows, or "".
        asked: every request, in order.
        sent: bytes of bodies.
    """

    files: dict[str, bytes]
    oddity: str = ""
    location: str = ""
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    address: str = ""

    def url(self, path: str = "/") -> str:
        """The URL of a path here."""
        return f"http://{self.address}{path}"


_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: Origin
    timeout = 20

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        origin = self.origin
        asked = Asked(self.path, self.headers.get("Range"), dict(self.headers))
        origin.asked.append(asked)
        body = origin.files.get(self.path)
        match origin.oddity:
            case "" | "no range" | "wrong range" | "gzip" | "truncated" | "truncated once" | "changes":
                pass
            case "once 503":
                if len(origin.asked) == 1:
                    return self._refuse(503)
            case "once 429":
                if len(origin.asked) == 1:
                    return self._refuse(429, {"Retry-After": "1"})
            case "redirect":
                return self._refuse(302, {"Location": origin.location})
            case "html":
                return self._send(b"<html><h1>please log in</h1></html>", {"Content-Type": "text/html"})
            case status:
                return self._refuse(int(status), {"Retry-After": "1"} if status == "429" else {})
        if body is None:
            return self._refuse(404)
        return self._send_file(body, asked)

    def _send_file(self, body: bytes, asked: Asked) -> None:
        origin = self.origin
        etag = '"one"'
        if origin.oddity == "changes" and len(origin.asked) > 3:
            etag, body = '"two"', body[::-1]
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if origin.oddity == "gzip":
            headers["Content-Encoding"] = "gzip"
        found = _RANGE.match(asked.range or "")
        if found is None or origin.oddity == "no range":
            return self._send(body, headers)
        start, stop = int(found[1]), min(int(found[2] or len(body) - 1) + 1, len(body))
        if start >= len(body):
            return self._refuse(416, {"Content-Range": f"bytes */{len(body)}"})
        if origin.oddity == "wrong range":
            start, stop = max(0, start - 1), stop - 1
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return self._send(body[start:stop], headers, status=206)

    def _send(self, body: bytes, headers: dict[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        oddity, asked = self.origin.oddity, len(self.origin.asked)
        if oddity == "truncated" or (oddity == "truncated once" and asked == 1):
            body = body[: len(body) // 2]
            self.close_connection = True
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
            return
        self.origin.sent += len(body)

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        body = b"no\n"
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in the middle is what these tests are about."""


@contextmanager
def plain_origin(files: dict[str, bytes]) -> Iterator[Origin]:
    """A plain HTTP server on a port of its own."""
    origin = Origin(files)
    handler = type("Handler", (_Handler,), {"origin": origin})
    server = _Server(("127.0.0.1", 0), handler)
    origin.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def oid_of(content: bytes) -> Oid:
    """SHA-256."""
    import hashlib

    return Oid(hashlib.sha256(content).digest())


if __name__ == "__main__":
    asyncio.run(run_odd(Path(sys.argv[1]), *sys.argv[2:]))
