"""Publish of a synthetic safetensors file, beside hashlib's SHA-256 of it: whole processes, best of N.

    python bench/bench_publish.py [--mib 1024] [--runs 5] [--directory DIR]

Prints MB/s (1e6 bytes), CPU seconds per GiB, peak memory (maximum resident set), and the ratio to hashlib
over the mapped file: the physical limit of a first SHA-256, since the chain is serial. `publish` is the
library, `megalfs publish` the command with its arguments, progress and link. A run that is not counted comes
first: it writes the bytecode, which an installed package has.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent.parent
TENSOR_BYTES = 16 << 20
PUBLISH = (
    "import sys; from pathlib import Path; from megalfs.store.root import Root;"
    "from megalfs.store.blobs import Store;"
    "from megalfs.store.ingest import publish;"
    "p = publish(Store(Root.open(Path(sys.argv[2]), create=True)), Path(sys.argv[1]), is_signed=True);"
    "print(p.oid, p.chunks)"
)
COMMAND = "from megalfs.cli.main import entry; entry()"
MMAP = (
    "import sys, hashlib, mmap; f = open(sys.argv[1], 'rb');"
    "print(hashlib.sha256(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)).hexdigest())"
)
FILE_DIGEST = "import sys, hashlib; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"


@dataclass(frozen=True, slots=True)
class Run:
    """One process, whole."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str


def make_file(path: Path, mib: int) -> None:
    """A safetensors file of bf16-like tensors: random mantissas, few exponents."""
    rng = random.Random(20261121)
    count = max(1, (mib << 20) // TENSOR_BYTES)
    header = {
        f"model.layers.{i}.weight": {
            "dtype": "BF16", "shape": [4096, TENSOR_BYTES // 8192],
            "data_offsets": [i * TENSOR_BYTES, (i + 1) * TENSOR_BYTES],
        }
        for i in range(count)
    }  # fmt: skip
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(count):
            block = bytearray(rng.randbytes(TENSOR_BYTES))
            block[1::2] = bytes(0x3C + (byte & 3) for byte in block[1:4096:2]) * (TENSOR_BYTES // 4096)
            file.write(block)


def run(code: str, *arguments: str, bytecode: Path) -> Run:
    """Runs one interpreter and waits for it; it may keep what it compiles under `bytecode`."""
    environ = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONPYCACHEPREFIX": str(bytecode)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output.strip())


def oid_of(output: str) -> str:
    """What was hashed: the first word, or what the link names."""
    return output.split()[0].removeprefix("megalfs:").partition("?")[0]


def best(runs: list[Run]) -> Run:
    """The fastest one: the machine is shared."""
    return min(runs, key=lambda run: run.seconds)


def main() -> None:
    """Measures, interleaved, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--make", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        path = Path(directory) / "model.safetensors"
        if arguments.make is not None:
            make_file(arguments.make, arguments.mib)
            return
        # In a process of its own: the memory of a parent counts towards the peak of its children.
        subprocess.run(
            [sys.executable, __file__, "--mib", str(arguments.mib), "--make", str(path)], check=True
        )
        found: dict[str, list[Run]] = {
            "hashlib, mmap": [],
            "hashlib.file_digest": [],
            "publish": [],
            "publish again": [],
            "megalfs publish": [],
            "megalfs publish again": [],
        }
        for index in range(-1, arguments.runs):
            root, other = (str(Path(directory) / f"{name}{index}") for name in ("root", "other"))
            command = ("publish", "--root", other, "--quiet", str(path))
            jobs = ((MMAP, str(path)), (FILE_DIGEST, str(path)), *[(PUBLISH, str(path), root)] * 2,
                    *[(COMMAND, *command)] * 2)  # fmt: skip
            for results, job in zip(found.values(), jobs, strict=True):
                result = run(*job, bytecode=Path(directory) / "bytecode")
                if index >= 0:
                    results.append(result)
        oids = {oid_of(result.output) for results in found.values() for result in results}
        assert len(oids) == 1, oids
        report(found, path.stat().st_size)


def report(found: dict[str, list[Run]], size: int) -> None:
    """One row for each way."""
    limit = best(found["hashlib, mmap"]).seconds
    runs, cores = len(found["publish"]), os.cpu_count()
    print(f"{size / 1e6:.0f} MB, best of {runs}, {cores} cores, {sys.version.split()[0]}")
    print(f"{'':22}{'s':>8}{'MB/s':>8}{'x limit':>9}{'CPU s/GiB':>11}{'peak MiB':>10}")
    for name, results in found.items():
        fastest = best(results)
        cpu = fastest.cpu_seconds / size * 2**30
        rate, ratio = size / fastest.seconds / 1e6, limit / fastest.seconds
        print(f"{name:22}{fastest.seconds:8.3f}{rate:8.0f}{ratio:9.3f}{cpu:11.2f}{fastest.peak_mib:10.0f}")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
