"""Bundles: a repository's history as files, the first with all of it, each next one with what came since.

Packs are not reproducible, so a bundle is made once, by the owner; everybody else keeps and seeds the bytes
that the signed state names. Applying them ends at exactly the refs of the state, or changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from megalfs.core.refs import ObjectFormat
from megalfs.core.repo_state import RepoState
from megalfs.errors import IntegrityError, StoreError
from megalfs.git.gitcmd import Setting, run_git

__all__ = ["apply_bundles", "has_objects", "make_bundle", "make_mirror"]

_INCOMING = "refs/megalfs/incoming/"
_STRICT: tuple[Setting, ...] = (
    ("fetch.fsckObjects", "true"),
    ("fetch.unpackLimit", "1"),
    ("fetch.recurseSubmodules", "false"),
)
_EMPTY = "Refusing to create empty bundle"


def make_bundle(git_dir: Path, path: Path, refs: Iterable[str], basis: Iterable[str]) -> bool:
    """Writes what `refs` reach and `basis` does not; False when there is nothing.

    Raises:
        StoreError: git failed.
    """
    lines = [*refs, *(f"^{oid}" for oid in basis)]
    try:
        run_git(
            git_dir, "bundle", "create", "--quiet", path, "--stdin", stdin="\n".join(lines).encode() + b"\n"
        )
    except StoreError as error:
        path.unlink(missing_ok=True)
        if _EMPTY in str(error):
            return False
        raise
    return True


def has_objects(git_dir: Path, oids: Iterable[str]) -> list[str]:
    """Those of the objects that are there."""
    asked = "".join(f"{oid}\n" for oid in oids).encode()
    answer = run_git(git_dir, "cat-file", "--batch-check=%(objectname) %(objecttype)", stdin=asked).decode()
    return [line.split()[0] for line in answer.splitlines() if not line.endswith(" missing")]


def make_mirror(mirror: Path, names: ObjectFormat) -> None:
    """A bare repository of ours, made when there is none; its objects are named as the owner's are."""
    if not (mirror / "HEAD").is_file():
        mirror.mkdir(mode=0o700, parents=True, exist_ok=True)
        run_git(mirror, "init", "--quiet", "--bare", f"--object-format={names}", ".")


def apply_bundles(mirror: Path, bundles: Sequence[Path], state: RepoState) -> None:
    """Takes the objects of the bundles, then sets branches and tags to exactly those of the state.

    Raises:
        IntegrityError: a bundle is damaged, or the refs of the state are not in what the bundles bring.
    """
    for path in bundles:
        spec = f"+refs/*:{_INCOMING}*"
        run_git(
            mirror, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", path, spec,
            settings=_STRICT, error=IntegrityError,
        )  # fmt: skip
    wanted = sorted(set(state.refs.values()))
    missing = set(wanted) - set(has_objects(mirror, wanted))
    if missing:
        raise IntegrityError(f"the bundles of {state.name!r} lack {min(missing)}, which its state names")
    # What git fetched it walked; a state that names something in between must be whole as well.
    stdin = "".join(f"{oid}\n" for oid in wanted).encode()
    run_git(
        mirror, "rev-list", "--quiet", "--objects", "--stdin", "--not", "--all",
        stdin=stdin, error=IntegrityError,
    )  # fmt: skip
    _set_refs(mirror, state)


def _set_refs(mirror: Path, state: RepoState) -> None:
    """One transaction: what the state names, and nothing else."""
    present = run_git(mirror, "for-each-ref", "--format=%(refname)").decode().splitlines()
    commands = [f"update {name} {oid}\n" for name, oid in state.refs.items()]
    commands += [f"delete {name}\n" for name in present if name not in state.refs]
    run_git(mirror, "update-ref", "--stdin", stdin="".join(commands).encode(), error=IntegrityError)
    run_git(mirror, "symbolic-ref", "HEAD", state.branch)
