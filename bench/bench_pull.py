"""Pull of one file over loopback, verified, beside what a user would use instead, in one run.

    .venv/bin/python bench/bench_pull.py [--size-mib 1024] [--rounds 5] [--congestion reno]

Every round runs every contender once, interleaved, because the machine is noisy; medians and the best are
printed, with ratios to plain `curl -o file` from nginx and to libtorrent's CPU seconds. Both ends are counted
in CPU seconds per GiB. The page cache is warm on both ends and nothing is synced to disk, for any contender.

BBR paces loopback, so as root everything runs in a network namespace of its own with `--congestion`, for
rivals and megalfs alike; without root the system's stays, for all of them too.

megalfs is timed as its `--json` summary says (from the call to the renamed file), the others by wall clock
around the process; the whole process of megalfs, with the start of its interpreter, stands beside it. A round
that is not counted comes first: it writes the bytecode, which an installed package has.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import machine, make_model, table, touch_free_memory
from pull_rivals import Rival, rivals

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL_BYTES = 300_000


@dataclass
class Timing:
    """One run: seconds, CPU seconds of both ends, peak memory of the client."""

    seconds: float
    cpu_s: float
    rss_mib: float
    wall_s: float


@dataclass
class Contender:
    """Something that gets the file from here to there."""

    name: str
    run: Callable[[Path], Timing]
    timings: list[Timing] = field(default_factory=list)

    def median(self, figure: str) -> float:
        """The middle of one figure over all rounds."""
        return statistics.median(getattr(timing, figure) for timing in self.timings)

    @property
    def best_s(self) -> float:
        """The fastest round."""
        return min(timing.seconds for timing in self.timings)


def cpu_of(pid: int) -> float:
    """User and system seconds of a live process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_family(pid: int) -> float:
    """A process and its direct children (nginx's workers)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_of(pid) + sum(cpu_of(int(child)) for child in children)


def run_client(argv: list[str], *, env: dict[str, str], servers: list[int], out: Path) -> tuple[Timing, str]:
    """Runs a client to its end; counts its CPU and what its servers used meanwhile."""
    out.unlink(missing_ok=True)
    before = sum(cpu_of_family(pid) for pid in servers)
    started = time.perf_counter()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(argv, env=env, stdout=stdout, stderr=stderr)
        peak = PeakMemory(process.pid)
        _, status, client = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            raise SystemExit(f"{argv[0]} failed: {stderr.read().decode()[-500:]}")
        used = client.ru_utime + client.ru_stime + sum(cpu_of_family(pid) for pid in servers) - before
        return Timing(wall, used, peak.stop(), wall), stdout.read().decode()


class PeakMemory:
    """Samples a process's VmHWM: ru_maxrss would show the memory of this bench, which the child inherits."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._kib = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
            self._kib = max(self._kib, *map(int, found), 0)

    def stop(self) -> float:
        """The peak in MiB."""
        self._stop.set()
        self._thread.join()
        return self._kib / 1024


class Megalfs:
    """Seeders and pulls of megalfs."""

    def __init__(
        self,
        directory: Path,
        model: Path,
        small: Path,
        *,
        seeders: int,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.directory = directory
        self.env = {
            **os.environ,
            **environ,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONPYCACHEPREFIX": str(directory / "bytecode"),
            "MEGALFS_DURABLE": "false",
            "NO_PROXY": "*",
            "MEGALFS_DISCOVER": "false",
        }
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.processes: list[subprocess.Popen[str]] = []
        self.ports: list[int] = []
        self.ready: dict[str, object] = {}  # what the last seeder says of itself
        self.key = ""
        self.oids: list[str] = []
        for index in range(seeders):
            self._seed([model, small], index)

    def _seed(self, files: list[Path], index: int) -> None:
        argv = self._argv(
            f"seeder{index}", "seed", *map(str, files), "--listen", "127.0.0.1:0", "--json", "--quiet"
        )
        process = subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self.oids.clear()
        for line in process.stdout:
            record = json.loads(line)
            if record.get("event") == "ready":
                self.ready = record
                self.ports.append(record["port"])
                self.key = self.key or record["key"]
                break
            self.oids.append(record["oid"])
        self.processes.append(process)

    def contenders(self) -> list[Contender]:
        """Both proofs, from one seeder and from three."""
        return [
            Contender(
                f"megalfs, {proof}, {seeders} seeder{'s' if seeders > 1 else ''}",
                partial(self.pull, seeders=seeders, is_trusted=proof == "trusted key"),
            )
            for seeders in (1, 3)
            for proof in ("trusted key", "SHA-256 proof")
        ]

    def _argv(self, root: str, *argv: str) -> list[str]:
        return [sys.executable, "-m", "megalfs", "--root", str(self.directory / root), *argv]

    def pull(self, out: Path, *, seeders: int, is_trusted: bool = True, is_small: bool = False) -> Timing:
        """One pull into a fresh root."""
        shutil.rmtree(self.directory / "puller", ignore_errors=True)
        peers = [word for port in self.ports[:seeders] for word in ("--peer", f"127.0.0.1:{port}")]
        keys = ["--key", self.key] if is_trusted else []
        oid = self.oids[is_small]
        argv = self._argv(
            "puller", "pull", oid, "-o", str(out), "--json", "--listen", "127.0.0.1:0", *peers, *keys
        )
        servers = [process.pid for process in self.processes]
        timing, stdout = run_client(argv, env=self.env, servers=servers, out=out)
        timing.seconds = json.loads(stdout.splitlines()[-1])["seconds"]
        return timing

    def close(self) -> None:
        """Ends the seeders."""
        for process in self.processes:
            process.terminate()
            process.wait()


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--congestion", default="reno", help="of everybody, as root; empty: the system's")
    args = parser.parse_args()
    if args.congestion:
        enter_namespace(args.congestion)
    with tempfile.TemporaryDirectory(prefix="megalfs-bench-") as name:
        directory = Path(name)
        model = make_model(directory / "served" / "model.safetensors", args.size_mib)
        small = make_small(directory / "served" / "small.bin")
        ours = Megalfs(directory, model, small, seeders=3)
        others = list(rivals(directory, model))
        try:
            contenders = [rival_contender(rival) for rival in others] + ours.contenders()
            run_rounds(contenders, directory / "out.bin", args.rounds, size=model.stat().st_size)
            waits = [ours.pull(directory / "out.bin", seeders=1, is_small=True) for _ in range(5)]
        finally:
            ours.close()
            for rival in others:
                rival.close()
        print(machine())
        report(contenders, model.stat().st_size)
        print(f"\na file of {SMALL_BYTES} bytes, whole process: best {min(t.wall_s for t in waits):.3f} s")


def enter_namespace(congestion: str) -> None:
    """Starts this program again in a network namespace with that congestion control, unless it is in one."""
    if os.environ.get("MEGALFS_BENCH_INSIDE"):
        return
    setup = 'ip link set lo up && sysctl -q -w net.ipv4.tcp_congestion_control="$0"'
    probe = ["unshare", "-n", "sh", "-c", setup, congestion]
    try:
        can = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        can = False
    if not can:
        print("no network namespace (needs root, unshare and iproute2): everybody runs with the system's TCP")
        return
    os.environ["MEGALFS_BENCH_INSIDE"] = "1"
    os.execvp("unshare", [*probe[:4], f'{setup} && exec "$@"', congestion, sys.executable, *sys.argv])


def make_small(path: Path) -> Path:
    """What is pulled to see what a pull costs beside its bytes."""
    path.write_bytes(os.urandom(SMALL_BYTES))
    return path


def rival_contender(rival: Rival) -> Contender:
    """A rival, timed as a whole process."""

    def run(out: Path) -> Timing:
        return run_client(rival.argv(out), env=dict(os.environ), servers=rival.servers, out=out)[0]

    return Contender(rival.name, run)


def run_rounds(contenders: list[Contender], out: Path, rounds: int, *, size: int) -> None:
    """Everybody once a round, and once before that is not counted; each finds memory for `size` bytes."""
    for number in range(-1, rounds):
        for contender in contenders:
            touch_free_memory(out.parent, size + size // 2)
            timing = contender.run(out)
            if number >= 0:
                contender.timings.append(timing)
            out.unlink(missing_ok=True)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)


def report(contenders: list[Contender], size: int) -> None:
    """Medians, the best, ratios to curl and to libtorrent where they ran."""
    curl = next((each.median("seconds") for each in contenders if each.name.startswith("curl")), None)
    torrent = next((each.median("cpu_s") for each in contenders if each.name.startswith("libtorrent")), None)
    rows = [
        [
            each.name,
            f"{size / each.median('seconds') / 1e6:.0f}",
            f"{size / each.best_s / 1e6:.0f}",
            _ratio(curl, each.median("seconds")),
            _ratio(curl, each.median("wall_s")),
            f"{each.median('cpu_s') * 2**30 / size:.2f}",
            _ratio(each.median("cpu_s"), torrent),
            f"{max(timing.rss_mib for timing in each.timings):.0f}",
        ]
        for each in contenders
    ]
    head = [
        "contender",
        "MB/s median",
        "MB/s best",
        "x curl",
        "x curl, whole process",
        "CPU s/GiB both ends",
        "of libtorrent's CPU",
        "peak MiB",
    ]
    print(table(head, rows))


def _ratio(of: float | None, to: float | None) -> str:
    return "" if of is None or to is None else f"{of / to:.2f}"


if __name__ == "__main__":
    main()
