"""Peak memory: what a pull of a 140 GB blob from 64 peers holds, and what a publish holds as files grow.

    .venv/bin/python bench/bench_memory.py [--seconds 5] [--mib 256,1024,4096]

The pull is a process of its own with everything that `megalfs pull` imports: the encoded manifest of real size
(560,000 chunks; synthetic digests) read from its file, the books of the SHA-256 proof, the scheduler with 64 peers
of which 8 have everything and 56 announce as they get, at 3 GB/s for some seconds of virtual time
(bench_scheduler.py plays the driver), and a receive buffer, written to, for each of the 64 peers and for the proof.
No bytes move and no sockets are open, so what asyncio keeps for a session is not in it. The publish is the
library's, of files with holes: they are read and hashed like any other.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_publish import PUBLISH, run
from common import table

GOAL_MB = 300
REPOSITORY = Path(__file__).resolve().parent.parent


def make_manifest(path: Path) -> None:
    """The encoded manifest of 140 GB in chunks of 250,000 bytes."""
    from bench_scheduler import PIECE_BYTES, PIECES

    from megalfs.core.chunker import DEFAULT_PROFILE, Plain
    from megalfs.core.ids import Oid
    from megalfs.formats.manifest_fields import EncodedManifest

    size = PIECES * PIECE_BYTES
    made = EncodedManifest.of(
        oid=Oid(os.urandom(32)),
        size=size,
        profile=DEFAULT_PROFILE,
        layout=Plain("unknown"),
        lengths=array("I", [PIECE_BYTES]) * PIECES,
        blake3=os.urandom(32 * PIECES),
        sha256=os.urandom(32 * PIECES),
        states=os.urandom(32 * (-(-size // (1 << 20)) - 1)),
    )
    path.write_bytes(made.encoded)


def hold_a_pull(path: Path, seconds: float) -> None:
    """Does what a pull does but for its bytes and sockets; prints the peak of this process."""
    import bench_scheduler

    for module in ("megalfs.cli.pull", "megalfs.node.pulling"):
        importlib.import_module(module)
    from megalfs.core.manifest import Manifest
    from megalfs.core.proof import open_proof
    from megalfs.net.sinks import GRANULE_BYTES, GranuleBuffer
    from megalfs.node.prover import Prover

    imported = peak_mb()
    manifest = Manifest.decode(path.read_bytes())
    held = [open_proof(manifest), Prover(manifest, lambda: -1, lambda: None)]
    loaded = peak_mb()
    bench = bench_scheduler.Bench(seeders=8, seed=1)
    buffers = [GranuleBuffer() for _ in range(bench_scheduler.PEERS)]
    for buffer in buffers:
        buffer.view[:] = bytes(GRANULE_BYTES)
    bench.run(seconds)
    rows = [
        ["the interpreter, and what a pull imports", f"{imported:.0f}"],
        [f"with a manifest of {path.stat().st_size / 1e6:.1f} MB and its proof", f"{loaded:.0f}"],
        [f"with 64 peers, after {bench.moved / 1e9:.1f} GB", f"{peak_mb():.0f} (goal: under {GOAL_MB})"],
    ]
    print(table(["a pull holds", "MB"], rows))
    assert held


def peak_mb() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def publish_rows(directory: Path, sizes_mib: list[int]) -> list[list[str]]:
    """Peak memory of a publish of each size."""
    rows = []
    for mib in sizes_mib:
        path = directory / f"{mib}.bin"
        with path.open("wb") as file:
            file.truncate(mib << 20)
        done = run(PUBLISH, str(path), str(directory / f"root{mib}"), bytecode=directory / "bytecode")
        rows.append([f"{mib} MiB", f"{done.peak_mib * 1.048576:.0f}", f"{done.seconds:.2f}"])
    return rows


def main() -> None:
    """Starts a process for each figure: the memory of a parent counts towards the peak of its children."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of virtual time (default 5)")
    parser.add_argument("--mib", default="256,1024,4096", help="sizes to publish (default 256,1024,4096)")
    parser.add_argument("--step", choices=["make", "hold"], help=argparse.SUPPRESS)
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "make":
        make_manifest(args.manifest)
    elif args.step == "hold":
        hold_a_pull(args.manifest, args.seconds)
    else:
        measure(args.seconds, [int(mib) for mib in args.mib.split(",")])


def measure(seconds: float, sizes_mib: list[int]) -> None:
    """Prints both tables."""
    with tempfile.TemporaryDirectory(prefix="megalfs-bench-") as name:
        for step in ("make", "hold"):
            argv = [sys.executable, __file__, "--step", step, "--manifest", f"{name}/manifest"]
            environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            subprocess.run([*argv, "--seconds", str(seconds)], check=True, env=environ)
        print()
        print(table(["publish", "peak MB", "s"], publish_rows(Path(name), sizes_mib)))


if __name__ == "__main__":
    main()
