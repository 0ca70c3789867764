"""How repositories and pushes are shown: as fields for machines, as lines for people."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from megalfs.core.identity import NodeKey
    from megalfs.git.push_log import Push
    from megalfs.store.repos import Repo, Repos

__all__ = ["push_fields", "push_line", "repo_fields", "repo_lines"]

UPDATES = "⚠️ HAS UPDATES"


def repo_fields(repos: Repos, repo: Repo, pushes: Sequence[Push]) -> dict[str, object]:
    """What is known of a repository; `pushes` are those to it, the oldest first."""
    from megalfs.git.repos import has_updates

    states = repos.states(repo.id)
    newest = states[-1].state if states else None
    return {
        "repo": str(repo.id),
        "name": repo.name,
        "description": repo.description,
        "creator": str(repo.creator),
        "external": repo.is_external,
        "followed": repo.is_followed,
        "path": repo.path,
        "seq": newest.seq if newest else 0,
        "refs": len(newest.refs) if newest else 0,
        "here": bool(repo.path) and (not repo.is_external or repos.refs(repo.id) == (newest and newest.refs)),
        "expired": newest is not None and newest.is_expired(_now()),
        "equivocation": [each.hash for each in states] if len(states) > 1 else [],
        "has_updates": has_updates(repos, repo),
        "last_push": push_fields(pushes[-1]) if pushes else None,
        "large_files": len(repos.large_files(repo.id)),
        "clones": [clone.path for clone in repos.clones(repo.id)],
        "faults": [
            {"peer": fault.peer, "reason": fault.reason, "count": fault.count}
            for fault in repos.faults(repo.id)
        ],
    }


def repo_lines(fields: dict[str, object]) -> list[str]:
    """The same for people."""
    words = ["external" if fields["external"] else "own", f"state {fields['seq']}"]
    words += ["followed"] if fields["followed"] else []
    words += [] if fields["here"] or not fields["external"] else ["not here yet"]
    words += [f"{fields['large_files']} large files kept"] if fields["large_files"] else []
    words += ["expired"] if fields["expired"] else []
    words += [UPDATES] if fields["has_updates"] else []
    lines = [
        f"{fields['name']} {fields['repo']}",
        f"  {', '.join(words)}",
        f"  by {fields['creator']}" + (f": {fields['description']}" if fields["description"] else ""),
    ]
    if (last := cast("dict[str, object] | None", fields["last_push"])) is not None:
        lines.append(f"  last push {last['time']} to {last['ref']} by {last['key']}")
    if fields["equivocation"]:
        lines.append(
            "  EQUIVOCATION: its creator signed two states that contradict each other; neither is followed"
        )
    faults = cast("list[dict[str, object]]", fields["faults"])
    return lines + [f"  {fault['peer']} {fault['reason']} ({fault['count']} times)" for fault in faults]


def push_fields(push: Push) -> dict[str, object]:
    """One push."""
    return {
        "time": push.time,
        "ref": push.ref,
        "old": push.old,
        "new": push.new,
        "key": str(push.key),
        "signer": str(push.signer) if push.signer else None,
    }


def push_line(push: Push, aliases: Mapping[NodeKey, str]) -> str:
    """The same for people; `aliases` are what nodes call themselves, which proves nothing: the key does."""
    alias = f" ({aliases[push.key]})" if aliases.get(push.key) else ""
    signed = f", signed by {push.signer}" if push.signer else ""
    return f"{push.time} {push.ref} {push.change} by {push.key}{alias}{signed}"


def _now() -> float:
    return time.time()  # noqa: TID251 - compared with a record of another host
