"""Pull of one file over loopback, verified, beside what a user would use instead, in one run.

    .venv/bin/python bench/bench_pull.py [--size-mib 1024] [--rounds 5] [--congestion reno]

Every round runs every contender once, interleaved, because the machine is noisy; medians and the best are
printed, with ratios to plain `curl -o file` from nginx. Both ends are counted in CPU seconds per GiB. The
page cache is warm on both ends and nothing is synced to disk, for any contender. Rivals that are not
installed are skipped, saying so.

megalfs is timed as its `--json` summary says (from the call to the renamed file; interpreter start is shown
apart), the others by wall clock around the process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import free_port, machine, make_model, table

REPOSITORY = Path(__file__).resolve().parent.parent


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

    def __init__(self, directory: Path, model: Path, congestion: str, seeders: int) -> None:
        self.directory = directory
        self.env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "MEGALFS_CONGESTION": congestion,
            "MEGALFS_DURABLE": "false",
            "NO_PROXY": "*",
            "MEGALFS_DISCOVER": "false",
        }
        self.processes: list[subprocess.Popen[str]] = []
        self.ports: list[int] = []
        self.key = ""
        for index in range(seeders):
            self._seed(model, index)

    def _seed(self, model: Path, index: int) -> None:
        argv = self._argv(f"seeder{index}", "seed", str(model), "--listen", "127.0.0.1:0", "--json")
        process = subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            record = json.loads(line)
            if record.get("event") == "ready":
                self.ports.append(record["port"])
                self.key = self.key or record["key"]
                break
            self.oid = record["oid"]
        self.processes.append(process)

    def _argv(self, root: str, *argv: str) -> list[str]:
        return [sys.executable, "-m", "megalfs", "--root", str(self.directory / root), *argv]

    def pull(self, out: Path, *, seeders: int, is_trusted: bool) -> Timing:
        """One pull into a fresh root."""
        shutil.rmtree(self.directory / "puller", ignore_errors=True)
        peers = [word for port in self.ports[:seeders] for word in ("--peer", f"127.0.0.1:{port}")]
        keys = ["--key", self.key] if is_trusted else []
        argv = self._argv(
            "puller", "pull", self.oid, "-o", str(out), "--json", "--listen", "127.0.0.1:0", *peers, *keys
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


class Nginx:
    """A private nginx that serves one directory on loopback."""

    def __init__(self, directory: Path, served: Path) -> None:
        self.port = free_port()
        config = directory / "nginx.conf"
        config.write_text(
            f"daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx.log; worker_processes 1; user root;\n"
            f"events {{ worker_connections 64; }}\n"
            f"http {{ sendfile on; tcp_nopush on; access_log off; client_body_temp_path {directory};\n"
            f"proxy_temp_path {directory}; fastcgi_temp_path {directory}; uwsgi_temp_path {directory};\n"
            f"scgi_temp_path {directory}; server {{ listen 127.0.0.1:{self.port}; root {served}; }} }}\n"
        )
        self.process = subprocess.Popen(["nginx", "-c", str(config), "-p", str(directory)])
        wait_for_port(self.port)

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait()


def wait_for_port(port: int) -> None:
    """Until something listens."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


LIBTORRENT_CLIENT = """
import sys, time, libtorrent as lt
role, torrent, where, port, seed_port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
s = lt.session({"listen_interfaces": f"127.0.0.1:{port}", "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True, "alert_mask": 0})
p = lt.add_torrent_params()
p.ti = lt.torrent_info(torrent); p.save_path = where
if role == "seed": p.flags |= lt.torrent_flags.seed_mode
h = s.add_torrent(p)
if role == "seed":
    print("ready", flush=True); time.sleep(3600)
h.connect_peer(("127.0.0.1", seed_port))
while not h.status().is_seeding: time.sleep(0.005)
"""


def libtorrent_contender(directory: Path, model: Path) -> tuple[Contender | None, Callable[[], None]]:
    """libtorrent as seed and leech, one process each; None when it is not installed."""
    try:
        import libtorrent as lt
    except ImportError:
        print("skipped: libtorrent (pip install libtorrent)")
        return None, lambda: None
    storage = lt.file_storage()
    storage.add_file(model.name, model.stat().st_size)
    torrent = lt.create_torrent(storage, 1 << 20)
    lt.set_piece_hashes(torrent, str(model.parent))
    path = directory / "model.torrent"
    path.write_bytes(lt.bencode(torrent.generate()))
    script = directory / "lt_client.py"
    script.write_text(LIBTORRENT_CLIENT)
    port = free_port()
    seed = subprocess.Popen(
        [sys.executable, str(script), "seed", str(path), str(model.parent), str(port), "0"],
        stdout=subprocess.PIPE,
    )
    assert seed.stdout is not None
    seed.stdout.readline()

    def run(out: Path) -> Timing:
        where = out.parent / "lt"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        argv = [sys.executable, str(script), "leech", str(path), str(where), str(free_port()), str(port)]
        timing, _ = run_client(argv, env=dict(os.environ), servers=[seed.pid], out=out)
        shutil.rmtree(where)
        return timing

    def close() -> None:
        seed.terminate()
        seed.wait()

    return Contender("libtorrent 2.x, 1 to 1", run), close


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--congestion", default="reno", help="for megalfs on loopback; empty: the system's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megalfs-bench-") as name:
        directory = Path(name)
        model = make_model(directory / "served" / "model.safetensors", args.size_mib)
        contenders, closers = prepare(directory, model, args.congestion)
        try:
            run_rounds(contenders, directory / "out.bin", args.rounds)
        finally:
            for close in closers:
                close()
        print(machine())
        report(contenders, model.stat().st_size)


def prepare(
    directory: Path, model: Path, congestion: str
) -> tuple[list[Contender], list[Callable[[], None]]]:
    """Starts the servers of everybody who can run here."""
    contenders: list[Contender] = []
    closers: list[Callable[[], None]] = []
    if shutil.which("nginx") and shutil.which("curl"):
        nginx = Nginx(directory, model.parent)
        closers.append(nginx.close)
        url = f"http://127.0.0.1:{nginx.port}/{model.name}"
        servers = [nginx.process.pid]

        def curl(out: Path) -> Timing:
            argv = ["curl", "-s", "-o", str(out), url]
            return run_client(argv, env=dict(os.environ), servers=servers, out=out)[0]

        contenders.append(Contender("curl -o file, nginx (unverified)", curl))
        if shutil.which("aria2c"):

            def aria2(out: Path) -> Timing:
                argv = ["aria2c", "-q", "-x8", "-s8", "-d", str(out.parent), "-o", out.name, url]
                return run_client(argv, env=dict(os.environ), servers=servers, out=out)[0]

            contenders.append(Contender("aria2c -x8 -s8, nginx (unverified)", aria2))
        else:
            print("skipped: aria2c (apt-get install aria2)")
    else:
        print("skipped: curl and nginx (apt-get install nginx curl)")
    ours = Megalfs(directory, model, congestion, seeders=3)
    closers.append(ours.close)
    contenders += [
        Contender("megalfs, trusted key, 1 seeder", lambda out: ours.pull(out, seeders=1, is_trusted=True)),
        Contender(
            "megalfs, SHA-256 proof, 1 seeder", lambda out: ours.pull(out, seeders=1, is_trusted=False)
        ),
        Contender("megalfs, trusted key, 3 seeders", lambda out: ours.pull(out, seeders=3, is_trusted=True)),
        Contender(
            "megalfs, SHA-256 proof, 3 seeders", lambda out: ours.pull(out, seeders=3, is_trusted=False)
        ),
    ]
    if os.environ.get("MEGALFS_BENCH_QUICK"):
        return contenders, closers
    torrent, close = libtorrent_contender(directory, model)
    closers.append(close)
    if torrent is not None:
        contenders.append(torrent)
    return contenders, closers


def run_rounds(contenders: list[Contender], out: Path, rounds: int) -> None:
    """Everybody once a round."""
    for number in range(rounds):
        for contender in contenders:
            contender.timings.append(contender.run(out))
            out.unlink(missing_ok=True)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)


def report(contenders: list[Contender], size: int) -> None:
    """Medians, the best, ratios to the first contender."""
    rows = []
    base = statistics.median(timing.seconds for timing in contenders[0].timings)
    for contender in contenders:
        median = statistics.median(timing.seconds for timing in contender.timings)
        best = min(timing.seconds for timing in contender.timings)
        cpu = statistics.median(timing.cpu_s for timing in contender.timings) * 2**30 / size
        wall = statistics.median(timing.wall_s for timing in contender.timings)
        peak = max(timing.rss_mib for timing in contender.timings)
        rows.append(
            [
                contender.name,
                f"{size / median / 1e6:.0f}",
                f"{size / best / 1e6:.0f}",
                f"{base / median:.2f}",
                f"{cpu:.2f}",
                f"{wall:.2f}",
                f"{peak:.0f}",
            ]
        )
    head = [
        "contender",
        "MB/s median",
        "MB/s best",
        "x curl",
        "CPU s/GiB both ends",
        "process wall s",
        "peak MiB",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
