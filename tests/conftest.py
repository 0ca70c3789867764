"""Fixtures that several test modules use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Megalfs


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
