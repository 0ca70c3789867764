"""Bad paths: research/eco.md 6.3, cases 1, 2, 3 and 6."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalfs.core.pathrules import escape_for_terminal, name_fault, path_fault, paths_fault, work_tree_fault


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b/c",
        "model-00001-of-00003.safetensors",
        ".hidden",
        "...",
        "..a",
        "a..",
        "ä/日本",
        "a b",
        "-rf",
        "~",
        "x" * 255,
        "/".join(["x" * 255] * 16),
        "ab:c",
        "é" * 127,
    ],
)
def test_paths_that_are_taken(path: str) -> None:
    assert path_fault(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/",
        "/etc/x",
        "//x",
        "a//b",
        "a/",
        "a/./b",
        "a/../b",
        "../x",
        "./a",
        "a/..",
        "a\\b",
        "\\\\h\\s",
        "C:",
        "c:/x",
        "a/C:x",
        "a\x00b",
        "a\nb",
        "a\rb",
        "a\tb",
        "a\x7fb",
        "a\x85b",
        "a\x1b[31mb",
        "a\u202eb",
        "a\u2066b",
        "a\u200fb",
        "a\u200db",
        "\ufeffa",
        "a\u2028b",
        "a\u2029b",
        "a\udcffb",
        "x" * 256,
        "é" * 128,
        "/".join(["x" * 255] * 16) + "/y",
        "x/" * 3000,
    ],
)
def test_paths_that_are_refused(path: str) -> None:
    assert path_fault(path) is not None


def test_a_name_is_one_part() -> None:
    assert name_fault("a/b") is not None
    assert name_fault("a") is None


@pytest.mark.parametrize(
    "path",
    [
        ".git",
        ".GIT/config",
        "a/.Git/x",
        ".git.",
        ".git ",
        ".git. .",
        ".git::$INDEX_ALLOCATION",
        "git~1",
        "GIT~1/x",
        ".g\u200cit",
        ".gi\u200dt",
        "\ufeff.git",
        ".ｇｉｔ",
        ".gitattributes",
        "x/.gitAttributes",
        "GITATT~1",
        "gi7eba~1",
        ".gitmodules",
        ".lfsconfig",
        ".LFSconfig",
        "lfscon~1",
        ".megalfs.toml",
        "x/.MegaLFS.TOML",
    ],
)
def test_what_git_obeys_is_refused_in_a_work_tree(path: str) -> None:
    assert work_tree_fault(path) is not None


@pytest.mark.parametrize(
    "path", ["git", ".gitignore", ".github/x", "a.git", "x.gitattributes", "git~10x", ".gitx"]
)
def test_what_git_does_not_obey_is_taken(path: str) -> None:
    assert work_tree_fault(path) is None


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "a"],
        ["a", "A"],
        ["straße", "STRASSE"],
        ["\u00e9", "e\u0301"],
        ["a", "a/b"],
        ["A", "a/b"],
        ["x/y/z", "x/Y"],
        ["a", "a.b", "a/b/c/d"],
        ["a/b/c/d", "a-b", "a"],
    ],
)
def test_clashes(paths: list[str]) -> None:
    assert paths_fault(paths) is not None


@pytest.mark.parametrize("paths", [[], ["a"], ["a", "b"], ["a/b", "a/c"], ["a.b", "a/b"], ["ab", "a/b"]])
def test_no_clash(paths: list[str]) -> None:
    assert paths_fault(paths) is None


def test_escaping() -> None:
    assert escape_for_terminal("plain ä 日本") == "plain ä 日本"
    assert escape_for_terminal("a\x1b[31m\n\\\u202e\udcff\U000e0001") == (
        "a\\x1b[31m\\n\\\\\\u202e\\udcff\\U000e0001"
    )


@given(st.text())
def test_escaped_text_is_printable_and_nothing_is_lost(text: str) -> None:
    shown = escape_for_terminal(text)
    assert shown.isprintable()
    assert "".join(shown).encode("latin-1", "backslashreplace").decode("unicode_escape") == text
