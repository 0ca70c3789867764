"""Many small files: publish, the seeder's start, and a pull of the directory, beside what else moves a directory.

    .venv/bin/python bench/bench_many.py [--files 10000] [--rounds 3]

Files of 1 to 20 KiB of noise, 250 to a directory; one seeder, everything on loopback and one disk. Each round
runs every contender once, interleaved; whole processes, best and median. CPU seconds are of the client alone.
A round that is not counted comes first: it writes the bytecode, which an installed package has. `durable` is the
default of megalfs: nothing has its name before it is on the disk; no rival waits for the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import machine, table
from pull_rivals import start_nginx

REPOSITORY = Path(__file__).resolve().parent.parent
FILES_PER_DIRECTORY = 250


@dataclass
class Contender:
    """One way; `prepare` is not timed."""

    name: str
    argv: list[str]
    prepare: Callable[[], None] = lambda: None
    environ: dict[str, str] = field(default_factory=dict)
    cwd: Path = Path()
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def run(self, *, is_counted: bool) -> None:
        """Runs it once, to its end."""
        self.prepare()
        started = time.perf_counter()
        process = subprocess.Popen(
            self.argv, env={**os.environ, **self.environ}, cwd=self.cwd, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{self.name}: exit {os.waitstatus_to_exitcode(status)}")
        process.returncode = 0
        if is_counted:
            self.seconds.append(time.perf_counter() - started)
            self.cpu_s.append(used.ru_utime + used.ru_stime)


def make_files(directory: Path, count: int) -> int:
    """Writes the tree; returns its bytes."""
    rng, total = random.Random(20_261_126), 0
    for number in range(count):
        path = directory / f"{number // FILES_PER_DIRECTORY:03d}" / f"{number:05d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_bytes(rng.randbytes(rng.randint(1 << 10, 20 << 10)))
    return total


class Megalfs:
    """The commands of one seeder and of fresh pullers."""

    def __init__(self, directory: Path, tree: Path) -> None:
        self.directory, self.tree = directory, tree
        self.environ = {
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONPYCACHEPREFIX": str(directory / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "",
            "MEGALFS_DISCOVER": "false",
            "NO_PROXY": "*",
        }
        subprocess.run(self.argv("seed", "publish", tree, "-q"), env=os.environ | self.environ, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        started = time.perf_counter()
        self.seeder = subprocess.Popen(
            self.argv("seed", "seed", tree, "--listen", "127.0.0.1:0", "--json", "-q"),
            env=os.environ | self.environ, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.seeder.stdout is not None
        records = [json.loads(self.seeder.stdout.readline()) for _ in range(2)]
        self.start_s = time.perf_counter() - started
        self.link = next(record["link"] for record in records if "link" in record)
        self.port = next(record["port"] for record in records if "port" in record)

    def argv(self, root: str, *argv: object) -> list[str]:
        """A command on a root of this name."""
        return [sys.executable, "-m", "megalfs", "--root", str(self.directory / root), *map(str, argv)]

    def contenders(self, out: Path) -> list[Contender]:
        """Pulls, durable and not; a pull of what is there; publish, new and known."""

        def fresh() -> None:
            clear(out)
            clear(self.directory / "puller")
            out.mkdir()

        pull = self.argv("puller", "pull", self.link, "--peer", f"127.0.0.1:{self.port}", "-q")
        hurried = {**self.environ, "MEGALFS_DURABLE": "false"}
        publish = self.argv("publisher", "publish", self.tree, "-q")
        return [
            Contender("megalfs pull, durable", pull, fresh, self.environ, out),
            Contender("megalfs pull, not durable", pull, fresh, hurried, out),
            Contender("megalfs pull, all there already", pull, lambda: None, hurried, out),
            Contender("megalfs publish", publish, lambda: clear(self.directory / "publisher"), self.environ),
            Contender("megalfs publish, unchanged", publish, lambda: None, self.environ),
        ]


def clear(directory: Path) -> None:
    """Removes a directory that need not be there."""
    shutil.rmtree(directory, ignore_errors=True)


def rivals(directory: Path, tree: Path, out: Path) -> tuple[list[Contender], Callable[[], None]]:
    """Copies on this disk, and HTTP from nginx; and how to end the server."""
    found = [Contender("cp -r", ["cp", "-r", str(tree), str(out)], lambda: clear(out))]
    if shutil.which("rsync"):
        argv = ["rsync", "-a", f"{tree}/", str(out)]
        found.append(Contender("rsync -a, this disk", argv, lambda: clear(out)))
    if not (shutil.which("nginx") and shutil.which("curl")):
        return found, lambda: None
    nginx, port = start_nginx(directory, tree)
    urls = directory / "urls"
    names = [path.relative_to(tree) for path in sorted(tree.rglob("*.bin"))]
    urls.write_text(
        "".join(f"url = http://127.0.0.1:{port}/{name}\noutput = {out / name}\n" for name in names)
    )
    argv = ["curl", "-s", "--parallel", "--parallel-max", "16", "--create-dirs", "-K", str(urls)]
    found.append(Contender("curl --parallel, nginx (unverified)", argv, lambda: clear(out)))

    def end() -> None:
        nginx.terminate()
        nginx.wait()

    return found, end


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megalfs-bench-") as name:
        directory = Path(name)
        tree, out = directory / "tree", directory / "out"
        size = make_files(tree, args.files)
        ours = Megalfs(directory, tree)
        others, end = rivals(directory, tree, out)
        contenders = [*others, *ours.contenders(out)]
        try:
            for number in range(-1, args.rounds):
                for contender in contenders:
                    contender.run(is_counted=number >= 0)
        finally:
            ours.seeder.terminate()
            ours.seeder.wait()
            end()
        print(machine())
        print(
            f"{args.files} files, {size / 1e6:.0f} MB; seeder of known files ready after {ours.start_s:.2f} s"
        )
        rows = [
            [
                each.name,
                f"{min(each.seconds):.2f}",
                f"{statistics.median(each.seconds):.2f}",
                f"{statistics.median(each.cpu_s):.2f}",
            ]
            for each in contenders
        ]
        print(table(["what", "s best", "s median", "CPU s of the client"], rows))


if __name__ == "__main__":
    main()
