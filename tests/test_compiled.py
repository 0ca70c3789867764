"""The compiled scheduler decides as the Python that it was compiled from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import megalfs
import megalfs_ext
from megalfs.core import swarm

TESTS = Path(__file__).parent
# When each node finished, to the last bit: one decision that differs moves it.
SCRIPT = """
import megalfs.core.swarm
from sim.scenes import broadcast, measure
world, seeder, nodes = broadcast(6, 12.5e6, seed=7)
world.run(limit=100 * world.size / 12.5e6)
print(megalfs.core.swarm.__file__.rpartition(".")[2], *(node.finished_at for node in nodes))
print(measure(world, seeder.host, nodes))
"""


def decide(path: list[Path]) -> tuple[str, str]:
    """What the scheduler found along this path is (py or so), and how its swarm went."""
    code = f"import sys; sys.path[:0] = {[str(each) for each in path]!r}\n{SCRIPT}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    kind, _, result = ran.stdout.partition(" ")
    return kind, result


def test_compiled_and_python_decide_alike(tmp_path: Path) -> None:
    if swarm.__file__.endswith(".py"):
        pytest.skip(
            "the scheduler is not compiled here: mypyc or a C compiler is missing, or MEGALFS_PURE is set"
        )
    sources = Path(megalfs.__file__).parent
    shutil.copytree(sources, tmp_path / "megalfs", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "megalfs_ext").symlink_to(Path(megalfs_ext.__file__).parent)
    kind, result = decide([tmp_path, TESTS])
    compiled_kind, compiled_result = decide([sources.parent, TESTS])
    assert (kind, compiled_kind) == ("py", "so")
    assert result == compiled_result
    assert len(result.split()) > 6
