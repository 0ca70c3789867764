"""What the store's tests share: roots, files, and other processes that do something and can be killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from megalfs.core.manifest import Manifest
from megalfs.store.blobs import Store
from megalfs.store.ingest import publish
from megalfs.store.root import Root

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 20.0
MIB = 1 << 20


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that no two seeds share."""
    return random.Random(seed).randbytes(size)


def make_store(directory: Path, name: str = "root") -> Store:
    """A store in a root of its own."""
    return Store(Root.open(directory / name, create=True))


def published(store: Store, path: Path, content: bytes) -> Manifest:
    """Writes and publishes a file; its manifest."""
    path.write_bytes(content)
    found = publish(store, path)
    assert found.manifest_id is not None
    return store.load_manifest(found.manifest_id, found.oid)


def safetensors_bytes(tensors: dict[str, bytes]) -> bytes:
    """A safetensors file of U8 vectors."""
    header, offset = {}, 0
    for name, content in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(content)],
            "data_offsets": [offset, offset + len(content)],
        }
        offset += len(content)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def wait_until(question: Callable[[], bool]) -> None:
    """Asks until the answer is yes; fails after 20 s."""
    deadline = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        os.sched_yield()


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another interpreter that runs `code`; it says what it did on stdout, line by line."""
    environ = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ,
    )  # fmt: skip


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], *, kill: bool = False) -> int:
    """Waits for a process, or ends it with SIGKILL; its exit code."""
    if kill:
        process.kill()
    if process.stdin is not None and process.stdin.closed:
        process.stdin = None  # communicate would flush it
    try:
        process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode
