"""Fixtures that several test modules use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_p2p import P2pNode
from processes import Megalfs

from megalfs import core


def pytest_sessionstart() -> None:
    """A compiled module hides its source: one that was changed since would be tested as it was before."""
    for compiled in Path(core.__file__).parent.glob("*.so"):
        source = compiled.with_name(compiled.name.partition(".")[0] + ".py")
        if source.exists() and source.stat().st_mtime > compiled.stat().st_mtime:
            pytest.exit(f"{source.name} was changed after it was compiled: `make` compiles it again", 1)


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[[str], Megalfs]]:
    """Makes roots by name, each with commands of its own; ends everything they started."""
    made: list[Megalfs] = []

    def make(name: str) -> Megalfs:
        made.append(Megalfs(tmp_path / name))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def megalfs(new_node: Callable[[str], Megalfs]) -> Megalfs:
    """One root and its commands."""
    return new_node("node")


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory, owner: P2pNode) -> Iterator[P2pNode]:
    """Has a node, which knows the `owner` of its module."""
    node = P2pNode(tmp_path_factory.mktemp("member")).start("--bootstrap-node", owner.bootstrap)
    yield node
    node.close()
