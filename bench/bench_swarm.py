"""One seeder and N receivers on shaped links in network namespaces: time of the last finisher against the bound.

    sudo .venv/bin/python bench/bench_swarm.py [--nodes 8] [--mbit 100] [--size-mib 256] [--rounds 1]
         [--scenario equal,slow,kill,late,leave,origin,racks,thin] [--rivals libtorrent,aria2]

Scenarios run one after another in every round, with rivals `equal` and `thin`; "x equal" is the time against the
median of `equal` in the same command. equal: nothing happens. slow: one receiver has a fifth of the bandwidth. kill:
one is killed in the middle. late: one joins then. leave: the seeder is killed once one copy is out (its link counts
1.04). origin: the first host is a plain HTTP origin to all. racks: two racks joined by one link of one host's rate.
thin: receivers have a fifth of the bandwidth up, the seeder has five times as much.

The bound is the fluid one (Kumar & Ross 2006) on goodput = 0.957 x link rate (Ethernet, IP and TCP headers):
max(F/u_s, F/min d_i, N F/(u_s + sum u_i)). Beside it, `floor(log2 N)/M` more, stands the bound with store and
forward of pieces (Mundinger 2008). Copies are payload bytes that left the seeder, in units of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import machine, make_model, table, touch_free_memory
from netns import Network, why_not

REPOSITORY = Path(__file__).resolve().parent.parent
GOODPUT = 0.957
PORT = 7427
CHUNKS = ", chunks of "
SCENARIOS = ("equal", "slow", "kill", "late", "leave", "origin", "racks", "thin")
WITH_RIVALS = ("equal", "thin")
THIN, THIN_SEEDER = 5, 5


@dataclass
class Figures:
    """What one run of one client gave."""

    client: str
    last_s: float
    others_s: float
    copies: float
    redundant: float | None
    cpu_s_per_gib: float
    note: str = ""

    def shown_s(self, scenario: str) -> float:
        """When the last one had finished; beside a slow one, the last of the others."""
        return self.others_s if scenario == "slow" else self.last_s


Run = tuple[str, float, Figures]  # scenario, bound in seconds, what came of it


def wait_for(check: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Polls."""
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


class Megalfs:
    """One seeder and pullers of ours."""

    def __init__(self, name: str, network: Network, directory: Path, model: Path, scenario: str) -> None:
        self.name = name
        self.network, self.directory, self.model, self.scenario = network, directory, model, scenario
        self.env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "MEGALFS_DURABLE": "false",
            "NO_PROXY": "*",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self) -> None:
        """Everybody imports; the seeder publishes."""
        seeder = self.network.hosts[0]
        command = [sys.executable, "-m", "megalfs", "--root", str(self.directory / "r0")]
        if chunk_size := self.name.partition(CHUNKS)[2]:
            publish = [*command, "publish", str(self.model), "--chunk-size", chunk_size]
            subprocess.run(publish, env=self.env, check=True, capture_output=True)
        listen = ["--listen", f"{seeder.address}:{PORT}"]
        self.seeder = self._popen(0, [*command, "seed", str(self.model), *listen, "--json"])
        assert self.seeder.stdout is not None
        for line in self.seeder.stdout:
            record = json.loads(line)
            if record.get("event") == "ready":
                break
            self.oid = record["oid"]
        for index in range(1, len(self.network.hosts)):
            self.prepare(index)

    def prepare(self, index: int) -> None:
        """Starts one puller up to the point where it waits for the word."""
        host = self.network.hosts[index]
        argv = [
            sys.executable,
            str(REPOSITORY / "bench" / "swarm_client.py"),
            str(self.directory / f"r{index}"),
            str(self.out(index)),
            f"{host.address}:{PORT}",
            self.oid,
            *self.sources(index),
        ]
        process = self._popen(index, argv)
        assert process.stdout is not None
        process.stdout.readline()
        self.processes[index] = process

    @property
    def origin(self) -> str:
        """Where the first host serves the file over plain HTTP."""
        return f"http://{self.network.hosts[0].address}:{PORT}/v1/file/{self.oid}"

    def sources(self, index: int) -> list[str]:
        """What a puller is told: the seeder; or an origin and the other pullers."""
        if self.scenario != "origin":
            return [f"{self.network.hosts[0].address}:{PORT}"]
        others = [host for number, host in enumerate(self.network.hosts) if number not in (0, index)]
        return [self.origin, *(f"{host.address}:{PORT}" for host in others)]

    def out(self, index: int) -> Path:
        """Where a puller writes."""
        path = self.directory / f"out{index}"
        path.mkdir(exist_ok=True)
        return path / "model.safetensors"

    def _popen(self, index: int, argv: list[str]) -> subprocess.Popen[str]:
        env = dict(self.env)
        if self.scenario == "racks":
            env["MEGALFS_RACK"] = f"rack{self.network.rack_of(index)}"
        log = (self.directory / f"log{index}").open("w")
        return subprocess.Popen(
            self.network.hosts[index].command(argv),
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def go(self, index: int) -> None:
        """Gives one puller the word."""
        self._say(index, "go")

    def _say(self, index: int, word: str) -> None:
        stdin = self.processes[index].stdin
        assert stdin is not None
        stdin.write(word + "\n")
        stdin.flush()

    def kill(self, index: int) -> None:
        """kill -9 of the seeder (0) or of one puller."""
        (self.processes.pop(index) if index else self.seeder).kill()

    def is_done(self, index: int) -> bool:
        """Whether one puller's file stands at its target."""
        return self.out(index).exists()

    def figures(self, finished: dict[int, float], started: float) -> Figures:
        """Asks everybody for its summary and adds up."""
        size = self.model.stat().st_size
        first = self.origin if self.scenario == "origin" else f"{self.network.hosts[0].address}:{PORT}"
        records = []
        for index, process in self.processes.items():
            assert process.stdout is not None
            process.stdout.readline()  # "done": lingering has begun
            self._say(index, "stop")
            line = process.stdout.readline()
            process.wait()
            if not line:
                log = (self.directory / f"log{index}").read_text()[-2000:]
                raise SystemExit(f"puller {index} ended with {process.returncode}: {log}")
            records.append(json.loads(line))
        self.seeder.terminate()
        self.seeder.wait()
        received = sum(record["bytes_fetched"] for record in records)
        cpu = sum(record["cpu_s"] for record in records)
        times = sorted(moment - started for moment in finished.values())
        return Figures(
            self.name,
            times[-1],
            times[-2] if len(times) > 1 else times[-1],
            sum(record["by_peer"].get(first, 0) for record in records) / size,
            received / (size * len(records)) - 1,
            cpu / (size * len(records) / 2**30),
        )

    def close(self) -> None:
        """Ends what still runs."""
        for process in [*self.processes.values(), *([self.seeder] if hasattr(self, "seeder") else [])]:
            if process.poll() is None:
                process.kill()
                process.wait()


LIBTORRENT = """
import sys, time, libtorrent as lt
role, torrent, where, listen, *peers = sys.argv[1:]
s = lt.session({"listen_interfaces": listen, "enable_dht": False, "enable_lsd": False, "enable_upnp": False,
    "enable_natpmp": False, "alert_mask": 0})
p = lt.add_torrent_params()
p.ti = lt.torrent_info(torrent); p.save_path = where
if role == "seed": p.flags |= lt.torrent_flags.seed_mode
print("ready", flush=True)
if role != "seed": sys.stdin.readline()
h = s.add_torrent(p)
for peer in peers:
    host, port = peer.split(":"); h.connect_peer((host, int(port)))
if role != "seed":
    while not h.status().is_seeding: time.sleep(0.01)
    open(where + "/done", "w").close()
sys.stdin.readline()
print(h.status().all_time_upload, h.status().total_download, flush=True)
"""


class Rival:
    """libtorrent or aria2, with the same life as `Megalfs`; equal links only."""

    def __init__(self, name: str, network: Network, directory: Path, model: Path) -> None:
        self.name, self.network, self.directory, self.model = name, network, directory / name, model
        self.directory.mkdir()
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.tracker: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Makes the torrent and starts everybody."""
        self.torrent = self.directory / "model.torrent"
        make_torrent(self.torrent, self.model, f"http://{self.network.hosts[0].address}:6969/announce")
        if self.name == "aria2":
            self.tracker_process = subprocess.Popen(
                self.network.hosts[0].command([sys.executable, __file__, "--tracker"]), stdout=subprocess.PIPE
            )
            assert self.tracker_process.stdout is not None
            self.tracker_process.stdout.readline()
        self._seeder_before = self.network.hosts[0].bytes_sent()
        for index in range(len(self.network.hosts)):
            self.prepare(index)

    def prepare(self, index: int) -> None:
        """Starts one client; libtorrent waits for the word, aria2 is started by it."""
        host = self.network.hosts[index]
        where = self.directory / f"d{index}"
        where.mkdir()
        if index == 0:
            os.link(self.model, where / self.model.name)
        if self.name == "libtorrent":
            script = self.directory / "client.py"
            script.write_text(LIBTORRENT)
            others = [f"{other.address}:6881" for other in self.network.hosts if other is not host]
            argv = [
                sys.executable,
                str(script),
                "seed" if index == 0 else "leech",
                str(self.torrent),
                str(where),
                f"{host.address}:6881",
                *([] if index == 0 else others),
            ]
            self._popen(index, argv).stdout.readline()  # type: ignore[union-attr]
        elif index == 0:
            self._aria2(0)

    def _aria2(self, index: int) -> None:
        argv = [
            "aria2c",
            "--dir",
            str(self.directory / f"d{index}"),
            "--listen-port=6881",
            "--enable-dht=false",
            "--bt-enable-lpd=false",
            "--seed-ratio=0.0",
            "--check-integrity=true",
            "--summary-interval=0",
            "-q",
            "--bt-max-peers=0",
            "--file-allocation=falloc",
            "--bt-hash-check-seed=true",
            f"--on-bt-download-complete={self._hook(index)}",
            str(self.torrent),
        ]
        self._popen(index, argv)

    def _hook(self, index: int) -> Path:
        hook = self.directory / f"hook{index}"
        hook.write_text(f"#!/bin/sh\ntouch {self.directory}/d{index}/done\n")
        hook.chmod(0o755)
        return hook

    def _popen(self, index: int, argv: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.network.hosts[index].command(argv),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.processes[index] = process
        return process

    def go(self, index: int) -> None:
        """Gives one leecher the word."""
        if self.name == "aria2":
            self._aria2(index)
        else:
            stdin = self.processes[index].stdin
            assert stdin is not None
            stdin.write("go\n")
            stdin.flush()

    def is_done(self, index: int) -> bool:
        """Whether one leecher has everything."""
        return (self.directory / f"d{index}" / "done").exists()

    def figures(self, finished: dict[int, float], started: float) -> Figures:
        """Copies from the seeder's link counter: payload is 0.957 of it."""
        size = self.model.stat().st_size
        sent = self.network.hosts[0].bytes_sent() - self._seeder_before
        before = children_cpu()
        self.close()
        times = sorted(moment - started for moment in finished.values())
        cpu = (children_cpu() - before) / (size * len(finished) / 2**30)
        return Figures(
            self.name, times[-1], times[-2], sent * GOODPUT / size, None, cpu, "copies from link counter"
        )

    def close(self) -> None:
        """Ends everybody."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
                process.wait()
        if self.name == "aria2" and hasattr(self, "tracker_process"):
            self.tracker_process.terminate()
            self.tracker_process.wait()
        self.processes.clear()


def children_cpu() -> float:
    """User and system seconds of every child that was waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_torrent(path: Path, model: Path, tracker: str) -> None:
    """A v1 torrent with 256 KiB pieces."""
    import hashlib

    pieces = b""
    with model.open("rb") as file:
        while block := file.read(256 * 1024):
            pieces += hashlib.sha1(block).digest()
    info = {
        b"length": model.stat().st_size,
        b"name": model.name.encode(),
        b"piece length": 256 * 1024,
        b"pieces": pieces,
    }
    path.write_bytes(bencode({b"announce": tracker.encode(), b"info": info}))


def bencode(value: object) -> bytes:
    """BEP 3."""
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%s" % (len(value), value)
        case list():
            return b"l" + b"".join(bencode(each) for each in value) + b"e"
        case dict():
            return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"
    raise TypeError(value)


def run_tracker() -> None:
    """A BitTorrent tracker for aria2: everybody hears of everybody (BEP 3, BEP 23)."""
    peers: set[bytes] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = dict(pair.split("=", 1) for pair in self.path.partition("?")[2].split("&") if "=" in pair)
            address = bytes(int(part) for part in self.client_address[0].split("."))
            peers.add(address + int(query["port"]).to_bytes(2, "big"))
            body = bencode({b"interval": 2, b"min interval": 1, b"peers": b"".join(peers)})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("0.0.0.0", 6969), Handler)
    print("ready", flush=True)
    server.serve_forever()


def run_once(client: Megalfs | Rival, network: Network, scenario: str, bound_s: float) -> Figures:
    """Starts everybody at once, plays the scenario, waits for the last one."""
    count = len(network.hosts) - 1
    client.start()
    late = {count} if scenario == "late" else set()
    victim = count if scenario == "kill" else None
    started = time.time()
    for index in range(1, count + 1):
        if index not in late:
            client.go(index)
    finished: dict[int, float] = {}
    joined_at = looked_at = started
    pending = set(range(1, count + 1))
    deadline = time.monotonic() + 20 * bound_s + 60
    while pending:
        if time.monotonic() > deadline:
            raise SystemExit(f"{client.name}: {sorted(pending)} did not finish")
        time.sleep(0.01)
        now = time.time()
        if late and now - started > bound_s / 2:
            client.go(late.pop())
            joined_at = now
        if scenario == "leave" and now - looked_at > 0.5:
            looked_at = now
            if network.hosts[0].bytes_sent() > 1.04 * client.model.stat().st_size:
                client.kill(0)
                scenario = "left"
        if victim is not None and isinstance(client, Megalfs) and now - started > bound_s / 2:
            client.kill(victim)
            pending.discard(victim)
            victim = None
        for index in [each for each in pending if client.is_done(each)]:
            finished[index] = now
            pending.discard(index)
    figures = client.figures(finished, started)
    if scenario == "left":
        figures.note = "the seeder was killed once one copy was out"
    if scenario == "late":
        figures.note = f"joiner {finished[count] - joined_at:.1f} s after its join"
    return figures


def main() -> None:
    """Parses, builds the network, prints the table."""
    if sys.argv[1:] == ["--tracker"]:
        run_tracker()
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scenario", type=scenarios_of, default=["equal"], help=", ".join(SCENARIOS))
    parser.add_argument("--chunk-sizes", default="", help="of megalfs, such as ,128K: the default, then 128K")
    parser.add_argument("--rivals", default="libtorrent,aria2")
    parser.add_argument("--congestion", default="reno", help="TCP congestion control of everybody")
    args = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"skipped: {reason}")
        return
    rivals = [each for each in args.rivals.split(",") if each]
    ours = ["megalfs" + (f"{CHUNKS}{size}" if size else "") for size in args.chunk_sizes.split(",")]
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="megalfs-swarm-") as name:
        model = make_model(Path(name) / "model.safetensors", args.size_mib)
        for round_index in range(args.rounds):
            for scenario in args.scenario:
                bound = bound_of(scenario, args.nodes, args.mbit, model.stat().st_size)
                for client in [*ours, *(rivals if scenario in WITH_RIVALS else [])]:
                    where = Path(name) / f"{client}-{scenario}{round_index}"
                    figures = play(client, scenario, args, where, model, bound)
                    shutil.rmtree(where, ignore_errors=True)  # 4 GiB at N = 16
                    if figures is not None:
                        runs.append((scenario, bound, figures))
                        print(*row(*runs[-1], runs), file=sys.stderr, flush=True)
    print(f"{machine()} (in the namespaces {args.congestion})")
    print(f"1 seeder, {args.nodes} receivers, {args.mbit:g} Mbit/s each way, {args.size_mib} MiB")
    columns = ["scenario", "client", "bound s", "last s", "of bound", "x equal"]
    columns += ["copies", "redundant", "CPU s/GiB", ""]
    print(table(columns, [row(*each, runs) for each in runs]))


def scenarios_of(text: str) -> list[str]:
    """Names separated by commas."""
    names = text.split(",")
    if unknown := set(names) - set(SCENARIOS):
        raise argparse.ArgumentTypeError(f"no such scenario: {', '.join(sorted(unknown))}")
    return names


def bound_of(scenario: str, nodes: int, mbit: float, size: int) -> float:
    """The least time in which all can have `size` bytes: Kumar and Ross. Of `slow`, the others' time."""
    rate = mbit * 1e6 / 8 * GOODPUT
    seeder, up = (THIN_SEEDER * rate, rate / THIN) if scenario == "thin" else (rate, rate)
    return max(size / seeder, size / rate, nodes * size / (seeder + nodes * up))


def row(scenario: str, bound: float, figures: Figures, runs: list[Run]) -> list[str]:
    """One line of the table; of a slow receiver's world, the others' time."""
    shown = figures.shown_s(scenario)
    undisturbed = [one.last_s for name, _, one in runs if name == "equal" and one.client == figures.client]
    return [
        scenario,
        figures.client,
        f"{bound:.1f}",
        f"{shown:.2f}",
        f"{bound / shown:.3f}",
        f"{shown / statistics.median(undisturbed):.2f}" if undisturbed else "-",
        f"{figures.copies:.3f}",
        "-" if figures.redundant is None else f"{100 * figures.redundant:.2f} %",
        f"{figures.cpu_s_per_gib:.1f}",
        figures.note,
    ]


def play(
    client_name: str, scenario: str, args: argparse.Namespace, directory: Path, model: Path, bound: float
) -> Figures | None:
    """One client in a fresh network."""
    if client_name == "aria2" and shutil.which("aria2c") is None:
        print("skipped: aria2 (apt-get install aria2)")
        return None
    if client_name == "libtorrent":
        try:
            import libtorrent  # noqa: F401
        except ImportError:
            print("skipped: libtorrent (pip install libtorrent)")
            return None
    directory.mkdir()
    touch_free_memory(directory, args.nodes * model.stat().st_size)
    racks = 2 if scenario == "racks" else 1
    thin = args.mbit if racks == 2 else None
    with Network(
        args.nodes + 1, args.mbit, racks=racks, thin_mbit=thin, congestion=args.congestion
    ) as network:
        if scenario == "slow":
            network.hosts[-1].shape(args.mbit / 5)
        if scenario == "thin":
            network.hosts[0].shape(THIN_SEEDER * args.mbit)
            for host in network.hosts[1:]:
                host.shape(args.mbit, up_mbit=args.mbit / THIN)
        client = (
            Megalfs(client_name, network, directory, model, scenario)
            if client_name.startswith("megalfs")
            else Rival(client_name, network, directory, model)
        )
        try:
            figures = run_once(client, network, scenario, bound)
            if racks == 2:
                figures.note = (
                    f"{network.thin_bytes() * GOODPUT / model.stat().st_size:.2f} copies over the thin link"
                )
            return figures
        finally:
            client.close()


if __name__ == "__main__":
    main()
