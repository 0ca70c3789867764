"""`git lfs pull` of a model in 4 files: stock git-lfs from nginx, and the same git-lfs through megalfs.

    python bench/bench_lfs.py [loopback] [thin] [second] [--mib 1024] [--thin-mib 256] [--mbit 100] [--runs 3]

`loopback`: page cache warm, a fresh clone for every run, the variants interleaved. `handed over` is the floor of any
agent: the object lies on this disk already, so all that is left is git-lfs's own hash of it and the copy into the work
tree. `thin`: one LFS server behind a thin link beside three peers behind such links each, in network namespaces; needs
root. `second`: what a version with small edits costs whoever has the first one.
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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import free_port, machine, make_model, table
from netns import Host, Network, why_not

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers_lfs import Person, received
from processes import wait_until

CASES = ("loopback", "thin", "second")
FILES = 4
PEERS = 3
PORT = 7427
EDITS, EDIT_BYTES = 8, 4096
POINTER_BYTES = 1024
# The Batch API's answer is the same for every pull, so that nginx can give it too.
NGINX = """
{user} daemon off; pid {where}/nginx.pid; error_log {where}/error.log; worker_processes 2;
events {{ worker_connections 64; }}
http {{ access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {where}/a; proxy_temp_path {where}/b; fastcgi_temp_path {where}/c; uwsgi_temp_path {where}/d;
  scgi_temp_path {where}/e;
  server {{ listen {address}; root {objects};
    location = /objects/batch {{ default_type application/vnd.git-lfs+json; return 200 '{batch}'; }} }} }}
"""


def main() -> None:
    """Prints one table a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--thin-mib", type=int, default=256)
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    cases: dict[str, Callable[[Path], str]] = {
        "loopback": lambda directory: loopback(directory, args.mib, args.runs),
        "thin": lambda directory: thin(directory, args.thin_mib, args.mbit, args.runs),
        "second": lambda directory: second(directory, args.thin_mib),
    }
    print(f"{machine()}; {subprocess.check_output(['git', 'lfs', 'version'], text=True).strip()}")
    for name in args.cases or CASES:
        with tempfile.TemporaryDirectory(prefix="bench-lfs-") as directory:
            print(f"\n{name}\n\n{cases[name](Path(directory))}", flush=True)


# --- cases ----------------------------------------------------------------------------------------------------


def loopback(directory: Path, mib: int, runs: int) -> str:
    """All variants from one peer, interleaved, and how far above the floor git-lfs through megalfs is."""
    with people(directory, "ann", "bob") as (ann, bob):
        work = model(ann, mib)
        ann.git("push", "-q", "origin", "main", cwd=work)
        key = f"megalfs.key={ann.ok('auth', 'show', '-q').out.strip()}"
        peer = f"megalfs.peer={ann.address}"
        with nginx(directory, work, f"127.0.0.1:{free_port()}") as server:
            variants: dict[str, Callable[[], float]] = {
                "stock git-lfs from nginx": lambda: lfs_pull(bob, ann, [f"lfs.url={server}"]),
                "git-lfs through megalfs, SHA-256 proven": lambda: lfs_pull(bob, ann, [peer], is_fresh=True),
                "git-lfs through megalfs, trusted key": lambda: lfs_pull(
                    bob, ann, [peer, key], is_fresh=True
                ),
                "git-lfs through megalfs, handed over": lambda: lfs_pull(bob, ann, [peer]),
                "megalfs pull": lambda: megalfs_pull(bob, ann, peer),
            }
            times = interleaved(variants, runs)
    floor = statistics.median(times["git-lfs through megalfs, handed over"])
    return timetable(times, mib, floor, "x floor")


def thin(directory: Path, mib: int, mbit: float, runs: int) -> str:
    """Three peers against one server, each behind a link of `mbit`; the receiver's own link holds four of them."""
    reason = why_not()
    if reason is not None:
        return f"skipped: {reason}"
    with (
        people(directory, "ann", "bob") as (ann, bob),
        Network(2 + PEERS, mbit) as network,
        ExitStack() as stack,
    ):
        receiver, server, *seeders = network.hosts
        receiver.shape((PEERS + 1) * mbit)
        work = model(ann, mib)
        ann.git("push", "-q", "--no-verify", "origin", "main", cwd=work)  # pointers; the peers publish
        for index, host in enumerate(seeders):
            stack.enter_context(seeder(directory / f"seeder-{index}", host, work))
        address = stack.enter_context(nginx(directory, work, f"{server.address}:{PORT}", host=server))
        bob.prefix = receiver.command([])
        bob.environ["MEGALFS_LISTEN"] = f"{receiver.address}:{PORT}"
        peers = [f"megalfs.peer={host.address}:{PORT}" for host in seeders]
        variants: dict[str, Callable[[], float]] = {
            "stock git-lfs, one server": lambda: lfs_pull(bob, ann, [f"lfs.url={address}"]),
            f"git-lfs through megalfs, {PEERS} peers": lambda: lfs_pull(bob, ann, peers, is_fresh=True),
        }
        times = interleaved(variants, runs)
    return timetable(times, mib, statistics.median(times["stock git-lfs, one server"]), "x stock")


def second(directory: Path, mib: int) -> str:
    """Bytes that a version with small edits costs."""
    with people(directory, "ann", "bob") as (ann, bob):
        work = model(ann, mib)
        ann.git("push", "-q", "origin", "main", cwd=work)
        bob.environ["MEGALFS_PEERS"] = ann.address
        bob.git("clone", "-q", ann.directory / "work.git", "clone")
        before = received(bob)
        path = work / "0.safetensors"
        size = path.stat().st_size
        with path.open("r+b") as file:
            for index in range(EDITS):
                file.seek((index + 1) * size // (EDITS + 1))
                file.write(bytes(EDIT_BYTES))
        ann.git("commit", "-qam", "edits", cwd=work)
        ann.git("push", "-q", "origin", "main", cwd=work)
        bob.git("pull", "-q", cwd=bob.directory / "clone")
        fetched = received(bob) - before
    what = f"{EDITS} edits of {EDIT_BYTES} bytes in one of {FILES} files"
    row = [what, f"{size / 1e6:.1f}", f"{fetched / 1e6:.2f}", f"{fetched / size:.3f}"]
    return table(["second version", "stock git-lfs fetches MB", "megalfs fetches MB", "ratio"], [row])


# --- the stage ------------------------------------------------------------------------------------------------


@contextmanager
def people(directory: Path, *names: str) -> Iterator[list[Person]]:
    """Persons with megalfs installed; what they started is ended."""
    made = [Person(directory / name).install() for name in names]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def model(ann: Person, mib: int) -> Path:
    """Ann's work tree with a model committed."""
    work = ann.new_repository()
    (work / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    for index in range(FILES):
        make_model(work / f"{index}.safetensors", mib // FILES, seed=index)
    ann.git("add", "-A", cwd=work)
    ann.git("commit", "-qm", "model", cwd=work)
    return work


@contextmanager
def nginx(directory: Path, work: Path, address: str, *, host: Host | None = None) -> Iterator[str]:
    """nginx as an LFS server for the objects of a work tree; its URL."""
    objects = directory / "objects"
    objects.mkdir()
    for path in (work / ".git/lfs/objects").glob("??/??/*"):
        os.link(path, objects / path.name)
    answers = [
        {
            "oid": path.name,
            "size": path.stat().st_size,
            "authenticated": True,
            "actions": {"download": {"href": f"http://{address}/{path.name}"}},
        }
        for path in objects.iterdir()
    ]
    config = directory / "nginx.conf"
    config.write_text(
        NGINX.format(
            where=directory,
            address=address,
            objects=objects,
            user="user root;" if os.geteuid() == 0 else "",
            batch=json.dumps({"transfer": "basic", "objects": answers}),
        )
    )
    argv = ["nginx", "-c", str(config)]
    process = subprocess.Popen(host.command(argv) if host else argv, stderr=subprocess.DEVNULL)
    try:
        wait_until((directory / "nginx.pid").exists, "nginx")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def seeder(directory: Path, host: Host, work: Path) -> Iterator[None]:
    """A peer in a namespace that has the whole model."""
    person = Person(directory)
    person.prefix = host.command([])
    try:
        files = sorted(work.glob("*.safetensors"))
        running = person.start("seed", *files, "--listen", f"{host.address}:{PORT}", "--json")
        wait_until(lambda: any(each.get("event") == "ready" for each in running.records), "a seeder")
        yield
    finally:
        person.close()


# --- measuring ------------------------------------------------------------------------------------------------


def interleaved(variants: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Seconds of each variant, round by round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(runs):
        for name, measure in variants.items():
            times[name].append(measure())
    return times


def timetable(times: Mapping[str, Sequence[float]], mib: int, base: float, against: str) -> str:
    """Median and best, beside the median of one of them."""
    rows = []
    for name, each in times.items():
        median = statistics.median(each)
        ratio = median / base if "floor" in against else base / median
        rows.append([name, f"{median:.2f}", f"{min(each):.2f}", f"{mib / median:.0f}", f"{ratio:.2f}"])
    return table(["variant", "median s", "best s", "MiB/s", against], rows)


def clone(bob: Person, ann: Person, settings: Sequence[str]) -> Path:
    """A fresh clone of pointers."""
    target = bob.directory / "clone"
    shutil.rmtree(target, ignore_errors=True)
    flags = [part for setting in settings for part in ("-c", setting)]
    skip = {"GIT_LFS_SKIP_SMUDGE": "1"}
    bob.git("clone", "-q", *flags, ann.directory / "work.git", target, environ=skip)
    return target


def lfs_pull(bob: Person, ann: Person, settings: Sequence[str], *, is_fresh: bool = False) -> float:
    """Seconds of `git lfs pull`; `is_fresh` with a root that has nothing, its node running."""
    target = clone(bob, ann, settings)
    if is_fresh:
        start_fresh(bob)
    started = time.monotonic()
    bob.git("lfs", "pull", cwd=target)
    seconds = time.monotonic() - started
    for path in target.glob("*.safetensors"):
        assert path.stat().st_size > POINTER_BYTES, f"{path} is still a pointer"
    return seconds


def megalfs_pull(bob: Person, ann: Person, setting: str) -> float:
    """Seconds of `megalfs pull .`, Python's start included."""
    target = clone(bob, ann, [setting])
    bob.kill_node()
    shutil.rmtree(bob.root, ignore_errors=True)
    started = time.monotonic()
    bob.ok("-q", "pull", "--no-share", ".", cwd=target)
    return time.monotonic() - started


def start_fresh(bob: Person) -> None:
    """A node on an empty root."""
    bob.kill_node()
    shutil.rmtree(bob.root, ignore_errors=True)
    running = bob.start("lfs", "node")
    wait_until(lambda: "serving on" in running.err, "a node")


if __name__ == "__main__":
    main()
