"""Kernels against their rivals in one run: throughput, ratios and the names of the kernels that really ran.

Method: CPU time of this thread, best of several rounds, all contenders interleaved round by round so that a
slow moment of a shared machine hits them alike. Only the ratios of one run mean anything. Two threads are
wall time, since that is what they save, and need two idle cores. Rivals that are not installed are listed
with the reason.

    python bench/bench_kernels.py [--mib 16] [--rounds 7] [--json]
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

import megalfs_ext

KIB = 1024
FILE_BYTES = 256 << 20
PROFILES = ((16, 64, 256), (64, 256, 1024), (256, 1024, 4096))
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    stage: str
    what: str
    kernel: str
    gb_per_s: float
    ratio: float
    goal: float | None


@dataclass(frozen=True, slots=True)
class Contender:
    what: str
    kernel: str
    size: int
    call: Call
    goal: float | None = None


def measure(
    stage: str, contenders: list[Contender], *, rounds: int, clock: Callable[[], float] = time.thread_time
) -> list[Row]:
    """Ratios are against the first contender."""
    best = [float("inf")] * len(contenders)
    for _ in range(rounds):
        for i, contender in enumerate(contenders):
            start = clock()
            contender.call()
            best[i] = min(best[i], clock() - start)
    speeds = [contender.size / seconds / 1e9 for contender, seconds in zip(contenders, best, strict=True)]
    return [
        Row(stage, contender.what, contender.kernel, speed, speed / speeds[0], contender.goal)
        for contender, speed in zip(contenders, speeds, strict=True)
    ]


def compiled(stage: str) -> list[str]:
    return [name for name in megalfs_ext.kernels(stage) if name != "reference"]


def cut_rows(buffer: bytes, rounds: int, skipped: list[str]) -> list[Row]:
    try:
        from pyfastcdc import FastCDC
    except ModuleNotFoundError as error:
        skipped.append(f"pyfastcdc: {error}")
        FastCDC = None  # noqa: N806  a class by its own name
    rows = []
    goals = {"vbmi": {256: 1.5, 1024: 1.75}, "strips": {64: 1.05, 256: 1.05, 1024: 1.05}}
    for profile in PROFILES:
        sizes = tuple(KIB * size for size in profile)
        contenders = []
        if FastCDC is not None:
            rival = FastCDC(min_size=sizes[0], avg_size=sizes[1], max_size=sizes[2])
            contenders.append(
                Contender("pyfastcdc", "cython", len(buffer), lambda rival=rival: list(rival.cut_buf(buffer)))
            )
        contenders += [
            Contender(
                "cut_points", kernel, len(buffer),
                lambda sizes=sizes, kernel=kernel: megalfs_ext.cut_points(buffer, *sizes, kernel=kernel),
                goals.get(kernel, {}).get(profile[1]),
            )
            for kernel in compiled("cdc")
        ]  # fmt: skip
        rows += measure("cdc {}/{}/{}K".format(*profile), contenders, rounds=rounds)
    sizes = tuple(KIB * size for size in PROFILES[1])
    default = megalfs_ext.kernels("cdc").default
    # Joining two parts costs up to two chunks: nothing of a file, 5 % of 16 MiB.
    file = np.random.default_rng(1).bytes(FILE_BYTES)
    contenders = [
        Contender(
            f"cut_points, {threads} thread{'s' * (threads > 1)}", default, len(file),
            lambda threads=threads: megalfs_ext.cut_points(file, *sizes, threads=threads),
            1.9 if threads == 2 else None,
        )
        for threads in (1, 2)
    ]  # fmt: skip
    rows += measure("cdc threads (wall)", contenders, rounds=rounds, clock=time.perf_counter)
    # What joining the parts costs, which a busy machine cannot hide: 1.00 would be nothing.
    whole = [replace(contender, goal=None) for contender in contenders]
    return rows + measure("cdc threads (CPU of all)", whole, rounds=rounds, clock=time.process_time)


def chunk_ends(buffer: bytes) -> np.ndarray:
    """Equal chunks of the profile's average, so that the numbers do not depend on where this data cuts."""
    return np.arange(256 * KIB, len(buffer) + 1, 256 * KIB, dtype=np.uint64)


def sha256_rows(buffer: bytes, rounds: int) -> list[Row]:
    ends = chunk_ends(buffer)
    segments = len(buffer) // megalfs_ext.SEGMENT_BYTES
    contenders = [
        Contender("hashlib.sha256", "openssl", len(buffer), lambda: hashlib.sha256(buffer).digest())
    ]
    hasher = megalfs_ext.ChainHasher()
    hasher.update(buffer, ends)
    hasher.update(b"\0", np.array([1], dtype=np.uint64))
    states = megalfs_ext.INITIAL_STATE + hasher.states()
    for kernel in compiled("sha256"):
        is_goal = kernel == megalfs_ext.kernels("sha256").default

        def fused(kernel: str = kernel) -> bytes:
            hasher = megalfs_ext.ChainHasher(kernel=kernel)
            hasher.update(buffer, ends)
            return hasher.digest()

        def shared(kernel: str = kernel) -> bytes:
            hasher = megalfs_ext.ChainHasher(kernel=kernel)
            hasher.update(buffer, ends[: int(hasher.chunk_share * len(ends))])
            return hasher.digest()

        def proven(kernel: str = kernel) -> list[int]:
            return megalfs_ext.verify_segments(buffer, states, kernel=kernel)

        if proven():
            raise SystemExit(f"{kernel}: segments do not verify")
        contenders += [
            Contender("sha256, one lane", kernel, len(buffer),
                      lambda kernel=kernel: megalfs_ext.sha256(buffer, kernel=kernel)),
            Contender("sha256_many, 256 KiB chunks", kernel, len(buffer),
                      lambda kernel=kernel: megalfs_ext.sha256_many(buffer, ends, kernel=kernel),
                      1.95 if is_goal else None),
            Contender("ChainHasher, file + chunks", kernel, len(buffer), fused, 0.97 if is_goal else None),
            Contender("ChainHasher, file + its share", kernel, len(buffer), shared),
            Contender("verify_segments", kernel, segments * megalfs_ext.SEGMENT_BYTES, proven,
                      1.8 if is_goal else None),
        ]  # fmt: skip
    return measure("sha256", contenders, rounds=rounds)


def blake3_rows(buffer: bytes, rounds: int, skipped: list[str]) -> list[Row]:
    ends = chunk_ends(buffer)
    view = memoryview(buffer)
    lengths = np.diff(ends, prepend=np.uint64(0))
    ids = megalfs_ext.blake3_many(buffer, ends)
    chunks = [view[int(end) - 256 * KIB : int(end)] for end in ends]
    contenders = []
    try:
        from blake3 import blake3
    except ModuleNotFoundError as error:
        skipped.append(f"blake3: {error}")
    else:
        contenders += [
            Contender("blake3, whole, 1 thread", "rust", len(buffer), lambda: blake3(buffer).digest()),
            Contender(
                "blake3, per 256 KiB", "rust", len(buffer), lambda: [blake3(c).digest() for c in chunks]
            ),
        ]
    for kernel in compiled("blake3"):
        goal = 0.97 if kernel == "avx512" else None

        def one_by_one(kernel: str = kernel) -> list[bytes]:
            return [megalfs_ext.blake3_many(chunk, ends[:1], kernel=kernel) for chunk in chunks]

        def groups(kernel: str = kernel) -> list[bytes]:
            return [megalfs_ext.blake3_groups(chunk, kernel=kernel) for chunk in chunks]

        contenders += [
            Contender("blake3_many, 256 KiB chunks", kernel, len(buffer),
                      lambda kernel=kernel: megalfs_ext.blake3_many(buffer, ends, kernel=kernel), goal),
            Contender("blake3_many, a call a chunk", kernel, len(buffer), one_by_one, goal),
            Contender("blake3_groups, a call a chunk", kernel, len(buffer), groups, goal),
            Contender("verify_chunks", kernel, len(buffer),
                      lambda kernel=kernel: megalfs_ext.verify_chunks(buffer, lengths, ids, kernel=kernel), goal),
        ]  # fmt: skip
    return measure("blake3", contenders, rounds=rounds)


def print_table(rows: list[Row]) -> None:
    print(f"{'':32}{'kernel':10}{'GB/s':>7}{'ratio':>8}{'goal':>7}")
    stage = ""
    for row in rows:
        if row.stage != stage:
            stage = row.stage
            print(f"-- {stage}")
        goal = "" if row.goal is None else f"{row.goal:.2f}"
        missed = "  missed" if row.goal is not None and row.ratio < row.goal else ""
        print(f"{row.what:32}{row.kernel:10}{row.gb_per_s:7.2f}{row.ratio:8.2f}{goal:>7}{missed}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=16, help="bytes measured, in MiB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    buffer = np.random.default_rng(0).bytes(arguments.mib << 20)
    skipped: list[str] = []
    rows = cut_rows(buffer, arguments.rounds, skipped)
    rows += sha256_rows(buffer, arguments.rounds)
    rows += blake3_rows(buffer, arguments.rounds, skipped)
    if arguments.json:
        print(
            json.dumps(
                {"machine": platform.processor(), "skipped": skipped, "rows": [asdict(r) for r in rows]}
            )
        )
        return
    for stage in ("cdc", "sha256", "blake3"):
        names = megalfs_ext.kernels(stage)
        print(f"{stage}: {', '.join(names)}; default {names.default}")
    print_table(rows)
    for reason in skipped:
        print(f"skipped: {reason}")


if __name__ == "__main__":
    main()
