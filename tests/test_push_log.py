"""The log of pushes, as its own hook writes it and as a full disk, or a stranger, may have left it."""

from __future__ import annotations

from pathlib import Path

from megalfs.core.repoid import RepoId
from megalfs.core.signing import SigningKey
from megalfs.git.push_log import Push, push_log, read_pushes
from megalfs.store.root import Root

KEY = SigningKey(b"k" * 32).public
ONE, TWO = (RepoId.of(name * 40, KEY) for name in "12")
OLD, NEW, NONE = "a" * 40, "b" * 40, "0" * 40
TIME = "2026-11-26T13:00:00Z"


def line(
    repo: RepoId, ref: str = "refs/heads/main", old: str = OLD, new: str = NEW, who: object = KEY
) -> str:
    return f"{TIME} {repo} {ref} {old} {new} {who}\n"


def test_pushes_by_repository_and_what_became_of_the_refs(tmp_path: Path) -> None:
    root = Root.open(tmp_path / "root", create=True)
    assert read_pushes(root) == {}
    push_log(root).write_text(
        line(ONE) + line(TWO, old=NONE) + line(ONE, new=NONE, who=f"{KEY} signed by {KEY}")
    )
    pushes = read_pushes(root)
    assert pushes[ONE] == [
        Push(TIME, "refs/heads/main", OLD, NEW, KEY, None),
        Push(TIME, "refs/heads/main", OLD, NONE, KEY, KEY),
    ]
    shown = [each.change for each in (*pushes[ONE], *pushes[TWO])]
    assert shown == ["aaaaaaaaaa..bbbbbbbbbb", "deleted, was aaaaaaaaaa", "new, bbbbbbbbbb"]


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    root = Root.open(tmp_path / "root", create=True)
    bad = [
        "",
        "x",
        line(ONE)[:-40],
        line(ONE, who="eve"),
        line(ONE, who=f"{KEY} signed by eve"),
        "\x1b[2J" * 9,
    ]
    bad += [
        line(ONE, ref="refs/heads/../x"),
        line(ONE, who=f"{KEY} and {KEY}"),
        f"{TIME} x y {OLD} {NEW} {KEY}",
    ]
    push_log(root).write_bytes("\n".join(bad).encode() + b"\n\xff\xfe\n" + line(ONE).encode())
    assert [each.new for each in read_pushes(root)[ONE]] == [NEW]
