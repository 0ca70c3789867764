"""A kernel that answers wrongly is found out by the self-measurement and not used: of a build with one that does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import megalfs_ext

REPOSITORY = Path(__file__).parent.parent
STAGE = "sha256"
PROGRAM = """
import json, megalfs_ext
found = megalfs_ext.kernels("sha256")
try:
    megalfs_ext.sha256_many(b"abc", b"\\3" + bytes(7), kernel=found.wrong[0])
    said = ""
except ValueError as error:
    said = str(error)
from megalfs.cli.doctor import _kernels
doctor = [[each.id, each.level] for each in _kernels()]
digest = megalfs_ext.sha256_many(b"abc", b"\\3" + bytes(7)).hex()
print(json.dumps([found.default, list(found), found.wrong, said, doctor, digest]))
"""


def test_a_kernel_with_wrong_results_is_not_used(tmp_path: Path) -> None:
    wrong = megalfs_ext.kernels(STAGE).default
    compiler = shutil.which("cc")
    if compiler is None or wrong in {"portable", "reference"}:
        pytest.skip("no C compiler, or no kernel but the portable one")
    package = tmp_path / "megalfs_ext"
    shutil.copytree(REPOSITORY / "megalfs_ext", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-std=gnu11", "-O1", f'-DMEGALFS_WRONG_KERNEL="{wrong}"',
         f"-I{sysconfig.get_path('include')}", *sorted(map(str, package.glob("*.c"))),
         "-o", str(package / f"_kernels{suffix}")],
        check=True,
    )  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    default, names, found, said, doctor, digest = json.loads(done.stdout)
    assert found == [wrong]
    assert default != wrong
    assert wrong not in names
    assert "wrong results" in said
    assert ["kernel-sha256", "bad"] in doctor
    assert ["kernel-blake3", "ok" if wrong != megalfs_ext.kernels("blake3").default else "bad"] in doctor
    assert digest == hashlib.sha256(b"abc").hexdigest()
