"""Trees: one encoding, only safe paths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalfs.core.ids import Oid
from megalfs.core.pathrules import path_fault, paths_fault
from megalfs.core.tree import TREE_ENTRIES_MAX, Tree, TreeEntry
from megalfs.errors import IntegrityError, PolicyError

OID = Oid(bytes(range(32)))
HEAD = b"megalfs tree 1\n"


def entry(path: str, size: int = 5, *, is_executable: bool = False) -> TreeEntry:
    return TreeEntry(path, is_executable, OID, size)


def line(path: str, *, oid: str = str(OID), size: str = "5", mode: str = "-") -> bytes:
    return f"{oid} {size} {mode} {path}\n".encode()


def test_known_answer() -> None:
    tree = Tree.of([entry("b/run me.sh", 0, is_executable=True), entry("a.safetensors", 140_000_000_000)])
    expected = HEAD + line("a.safetensors", size="140000000000") + line("b/run me.sh", size="0", mode="x")
    assert tree.encode() == expected
    assert Tree.decode(expected) == tree
    assert tree.total_size == 140_000_000_000


def test_an_empty_tree() -> None:
    assert Tree.decode(HEAD) == Tree(())
    assert Tree(()).encode() == HEAD


def test_sorted_by_bytes_not_by_code_units() -> None:
    tree = Tree.of([entry("\U00010000"), entry("\uffee"), entry("a/b"), entry("a.b"), entry("B")])
    assert [e.path for e in tree.entries] == ["B", "a.b", "a/b", "\uffee", "\U00010000"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.integers(0, (1 << 63) - 1), st.booleans()), max_size=6))
def test_round_trips(files: list[tuple[str, int, bool]]) -> None:
    paths = [path for path, _, _ in files]
    is_good = all(path_fault(path) is None for path in paths) and paths_fault(paths) is None
    if not is_good:
        with pytest.raises(IntegrityError):
            Tree.of([TreeEntry(path, x, OID, size) for path, size, x in files])
        return
    tree = Tree.of([TreeEntry(path, x, OID, size) for path, size, x in files])
    assert Tree.decode(tree.encode()) == tree


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        HEAD[:-1],
        HEAD + b"\n",
        HEAD + line("a")[:-1],
        HEAD + line("a") + b"x",
        HEAD + line("a").replace(b"\n", b"\r\n"),
        HEAD + line("b") + line("a"),
        HEAD + line("a") + line("a"),
        HEAD + line("a") + line("A"),
        HEAD + line("a") + line("a/b"),
        HEAD + line("../a"),
        HEAD + line("/a"),
        HEAD + line(""),
        HEAD + line("a", oid="AB" * 32),
        HEAD + line("a", oid="ab" * 31),
        HEAD + line("a", size="05"),
        HEAD + line("a", size="-5"),
        HEAD + line("a", size="+5"),
        HEAD + line("a", size="\u0665"),
        HEAD + line("a", size=str(1 << 63)),
        HEAD + line("a", size="9" * 30),
        HEAD + line("a", mode="w"),
        HEAD + line("a").replace(b" - ", b"  - "),
        HEAD + line("a").replace(b"a\n", b"\xff\n"),
        HEAD + line("a\x1b[31m"),
        HEAD + line("a\u2028b"),
    ],
)
def test_bad_trees_are_refused(encoded: bytes) -> None:
    with pytest.raises(IntegrityError):
        Tree.decode(encoded)


def test_another_version_needs_an_upgrade() -> None:
    with pytest.raises(PolicyError):
        Tree.decode(b"megalfs tree 2\n")


def test_the_largest_size_is_taken() -> None:
    assert Tree.decode(HEAD + line("a", size=str((1 << 63) - 1))).total_size == (1 << 63) - 1


def test_too_many_files() -> None:
    with pytest.raises(IntegrityError, match="limit"):
        Tree((entry("a"),) * (TREE_ENTRIES_MAX + 1))
    with pytest.raises(IntegrityError):
        Tree.decode(HEAD + line("a") * (TREE_ENTRIES_MAX + 1))


@pytest.mark.parametrize("path", ["a/.git/hooks/x", ".gitattributes", "x/.LFSCONFIG"])
def test_work_tree(path: str) -> None:
    tree = Tree.of([entry(path)])
    with pytest.raises(IntegrityError):
        tree.check_for_work_tree()
    Tree.of([entry("a/git/x")]).check_for_work_tree()
