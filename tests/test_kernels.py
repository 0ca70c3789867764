"""The choice of a kernel: what can run, which is the default, and that a named one is a demand."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import megalfs_ext

STAGES = ("cdc", "sha256", "blake3")
ROOT = Path(__file__).parent.parent
CALLS = {
    "cdc": lambda kernel: megalfs_ext.cut_points(b"", 64, 256, 1024, kernel=kernel),
    "cdc scan": lambda kernel: megalfs_ext.scan(b"", 64, 256, 1024, is_final=True, kernel=kernel),
    "blake3": lambda kernel: megalfs_ext.blake3_many(b"", b"", kernel=kernel),
    "blake3 groups": lambda kernel: megalfs_ext.blake3_groups(b"", kernel=kernel),
    "blake3 join": lambda kernel: megalfs_ext.blake3_join(bytes(64), kernel=kernel),
    "blake3 verify": lambda kernel: megalfs_ext.verify_chunks(b"", b"", b"", kernel=kernel),
    "sha256": lambda kernel: megalfs_ext.sha256(b"", kernel=kernel),
    "sha256 many": lambda kernel: megalfs_ext.sha256_many(b"", b"", kernel=kernel),
    "sha256 verify": lambda kernel: megalfs_ext.verify_segments(
        b"", megalfs_ext.INITIAL_STATE, kernel=kernel
    ),
    "sha256 finish": lambda kernel: megalfs_ext.finish_segment(
        megalfs_ext.INITIAL_STATE, b"", 0, kernel=kernel
    ),
    "sha256 chain": lambda kernel: megalfs_ext.ChainHasher(kernel=kernel),
}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_kernels_that_can_run(stage):
    names = megalfs_ext.kernels(stage)
    assert isinstance(names, tuple)
    assert names[-1] == "reference"
    assert "portable" in names
    assert names.default in names
    assert names.default != "reference"
    assert megalfs_ext.kernels(stage).default == names.default, "measured once"


def test_cdc_is_the_stage_by_default():
    assert megalfs_ext.kernels() == megalfs_ext.kernels("cdc")


def test_unknown_stage():
    with pytest.raises(ValueError, match="'md5'"):
        megalfs_ext.kernels("md5")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_unknown_kernel(call):
    with pytest.raises(ValueError, match=r"unknown (cdc|sha256|blake3) kernel: 'warp'"):
        call("warp")


@pytest.mark.parametrize("stage", STAGES)
def test_every_known_kernel_runs_or_says_why_not(stage):
    """Compiled out and refused by the CPU are two answers, neither of them another kernel."""
    kernels = pytest.importorskip("megalfs_ext._kernels", reason="the compiled module is missing")
    states = kernels.kernel_states(stage)
    assert tuple(states) == megalfs_ext._COMPILED_NAMES[stage]
    call = CALLS[stage]
    for name, state in states.items():
        if state == "ok":
            call(name)
            continue
        message = {"not compiled in": "not compiled in", "cpu cannot": "this CPU cannot run"}[state]
        with pytest.raises(ValueError, match=f"{message}.*'{name}'"):
            call(name)


def test_no_numpy_before_an_array_is_asked_for():
    out = run_python(
        "import sys, megalfs_ext as m; m.sha256(b''); m.kernels(); m.scan(b'', 64, 256, 1024, is_final=True);"
        "assert 'numpy' not in sys.modules; m.cut_points(b'', 64, 256, 1024); print('numpy' in sys.modules)"
    )
    assert out.strip() == "True"


def test_without_the_compiled_module_only_the_reference_is_listed():
    """And everything still works, while naming a kernel says that it is not compiled in."""
    out = run_python(
        "import sys; sys.modules['megalfs_ext._kernels'] = None\n"
        "import hashlib, megalfs_ext as m\n"
        "print([(tuple(m.kernels(s)), m.kernels(s).default) for s in ('cdc', 'sha256', 'blake3')])\n"
        "h = m.ChainHasher(); d = h.update(b'abc', (3).to_bytes(8, 'little'))\n"
        "assert d == h.digest() == m.sha256(b'abc') == hashlib.sha256(b'abc').digest()\n"
        "assert m.cut_points(bytes(2048), 64, 256, 1024).tolist() == [1024, 2048]\n"
        "chunk = bytes(100_000)\n"
        "id = m.blake3_many(chunk, (100_000).to_bytes(8, 'little'))\n"
        "assert m.blake3_join(m.blake3_groups(chunk)) == id\n"
        "for name in ('portable', 'vbmi', 'warp'):\n"
        "    try: m.cut_points(b'', 64, 256, 1024, kernel=name)\n"
        "    except ValueError as error: print(error)\n"
    )
    assert out.splitlines() == [
        str([(("reference",), "reference")] * 3),
        "cdc kernel not compiled in: 'portable'",
        "cdc kernel not compiled in: 'vbmi'",
        "unknown cdc kernel: 'warp'",
    ]


def test_calls_from_many_threads_agree():
    """The GIL is free during the work; nothing is shared between calls."""
    buffer = np.random.default_rng(7).bytes(2_000_000)
    ends = megalfs_ext.cut_points(buffer, 16384, 65536, 262144)
    expected = (megalfs_ext.blake3_many(buffer, ends), megalfs_ext.sha256_many(buffer, ends))
    results = []

    def work() -> None:
        again = megalfs_ext.cut_points(buffer, 16384, 65536, 262144, threads=2)
        results.append((megalfs_ext.blake3_many(buffer, again), megalfs_ext.sha256_many(buffer, again)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_stub_names_what_the_module_has():
    kernels = pytest.importorskip("megalfs_ext._kernels", reason="the compiled module is missing")
    stub = (ROOT / "megalfs_ext" / "_kernels.pyi").read_text()
    promised = set(re.findall(r"^def (\w+)", stub, flags=re.MULTILINE))
    assert promised == {name for name in dir(kernels) if not name.startswith("_")}
