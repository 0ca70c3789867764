"""What is in the root, and keeping it in order: `ls`, `info`, `verify`, `repair`, `gc`, `pin`, `doctor`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from megalfs.cli.arguments import add_command
from megalfs.cli.ui import count_text, size_text
from megalfs.errors import IntegrityError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.core.manifest import Manifest
    from megalfs.store.blobs import Blob, Store

__all__ = ["add_commands"]

TARGET_HELP = "an oid, a link, a published name, or a file"


def add_commands(commands: Commands) -> None:
    """Adds the commands of this family."""
    add_command(commands, "ls", _ls, "list what this root knows")
    info = add_command(commands, "info", _info, "say what is known of one blob")
    info.add_argument("target", metavar="TARGET", help=TARGET_HELP)
    verify = add_command(commands, "verify", _verify, "hash files again and compare; exit 4 when one differs")
    verify.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"{TARGET_HELP}; everything when none is given"
    )
    add_command(commands, "repair", _repair, "rebuild the index, and hash again what changed")
    gc = add_command(
        commands,
        "gc",
        _gc,
        "forget blobs whose files are gone, remove partials that nobody resumed for a week",
    )
    gc.add_argument("-n", "--dry-run", action="store_true", help="only say what would be forgotten")
    for name, run, text in (
        ("pin", _pin, "keep a blob's record whatever gc finds"),
        ("unpin", _unpin, "undo pin"),
    ):
        pin = add_command(commands, name, run, text)
        pin.add_argument("targets", nargs="+", metavar="TARGET", help=TARGET_HELP)
    add_command(commands, "doctor", _doctor, "look for what would make megalfs slow or fail here")


def _ls(context: Context) -> int:
    with context.store(create=False) as store:
        names = _names_by_oid(store)
        for blob in store.blobs():
            named = names.get(str(blob.oid), [])
            context.ui.answer(_row(blob, named), _line(blob, named))
    return 0


def _names_by_oid(store: Store) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for signed in store.names():
        names.setdefault(str(signed.record.oid), []).append(signed.record.name)
    return names


def _row(blob: Blob, names: list[str]) -> dict[str, object]:
    return {
        "oid": str(blob.oid),
        "size": blob.size,
        "held": blob.is_held,
        "pinned": blob.is_pinned,
        "added": blob.added_s,
        "names": names,
        "manifests": [str(manifest) for manifest in blob.manifests],
        "paths": [{"path": str(place.path), "changed": place.is_suspect} for place in blob.places],
    }


def _line(blob: Blob, names: list[str]) -> str:
    paths = ", ".join(str(place.path) for place in blob.places if not place.is_suspect)
    state = "held" if blob.is_held else "gone"
    tags = [*(["pinned"] if blob.is_pinned else []), *(f"name={name}" for name in names)]
    return " ".join([str(blob.oid), f"{size_text(blob.size):>9}", state, *tags, paths]).rstrip()


def _info(context: Context) -> int:
    from datetime import UTC, datetime

    from megalfs.cli.targets import find_blob, link_of

    with context.store(create=False) as store:
        blob = find_blob(store, context.args.target)
        manifest = _manifest(store, blob)
        facts: dict[str, object] = _row(blob, _names_by_oid(store).get(str(blob.oid), []))
        facts["link"] = str(link_of(store, blob))
        if manifest is not None:
            facts |= _manifest_facts(store, manifest)
    if context.ui.is_json:
        context.ui.record(facts)
        return 0
    facts["size"] = f"{blob.size} ({size_text(blob.size)})"
    facts["added"] = datetime.fromtimestamp(blob.added_s, UTC).isoformat(sep=" ", timespec="seconds")
    for name, value in facts.items():
        for text in _texts(value):
            context.ui.result(f"{name.replace('_', ' '):<14} {text}")
    return 0


def _texts(value: object) -> list[str]:
    """One line per value of a list; yes and no for people."""
    match value:
        case bool():
            return ["yes" if value else "no"]
        case list():
            return [text for each in value for text in _texts(each)]
        case {"path": path, "changed": is_changed}:
            return [f"{path} (changed since it was hashed)" if is_changed else str(path)]
        case _:
            return [str(value)]


def _manifest(store: Store, blob: Blob) -> Manifest | None:
    for manifest_id in blob.manifests:
        with suppress(NotFoundError):
            return store.load_manifest(manifest_id, blob.oid)
    return None


def _manifest_facts(store: Store, manifest: Manifest) -> dict[str, object]:
    return {
        "manifest": str(manifest.id),
        "manifest_size": len(manifest.encode()),
        "profile": manifest.profile,
        "chunks": manifest.piece_count,
        "states": len(manifest.states),
        "tensors": len(manifest.tensors or ()),
        "signed_by": [str(by.key) for by in store.signatures(manifest.id, manifest.oid)],
    }


def _chosen(store: Store, targets: Iterable[str]) -> list[Blob]:
    from megalfs.cli.targets import find_blob

    return [find_blob(store, target) for target in targets] or store.blobs()


def _verify(context: Context) -> int:
    from megalfs.cli.hashing import HashProgress

    bad: list[str] = []
    with context.store(create=False) as store:
        blobs = _chosen(store, context.args.targets)
        with HashProgress(
            context.ui, "verify", total=sum(blob.size * len(blob.places) for blob in blobs)
        ) as progress:
            for blob in blobs:
                progress.name = str(blob.oid)[:12]
                for path, is_good in store.verify(blob.oid, progress=progress.add).items():
                    _report(context, blob, str(path), is_good=is_good)
                    bad += [] if is_good else [str(path)]
    if bad:
        more = f", nor do {len(bad) - 1} others" if len(bad) > 1 else ""
        raise IntegrityError(
            f"{bad[0]!r} no longer holds what was published{more}",
            hint="they are not served; pull fetches the blob again, publish takes up the new bytes",
        )
    return 0


def _report(context: Context, blob: Blob, path: str, *, is_good: bool) -> None:
    context.ui.answer(
        {"oid": str(blob.oid), "path": path, "ok": is_good},
        f"{'ok ' if is_good else 'bad'} {blob.oid} {path}",
    )


def _repair(context: Context) -> int:
    from megalfs.cli.hashing import HashProgress

    with context.store(create=False) as store:
        count = store.repair()
        suspects = [blob for blob in store.blobs() if any(place.is_suspect for place in blob.places)]
        with HashProgress(context.ui, "repair", total=sum(blob.size for blob in suspects)) as progress:
            restored = sum(store.recheck(blob.oid, progress=progress.add) for blob in suspects)
    context.ui.answer(
        {"blobs": count, "changed": len(suspects), "restored": restored},
        f"{count_text(count, 'blob')} in the index; {restored} of {len(suspects)} that changed are whole",
    )
    return 0


def _gc(context: Context) -> int:
    ui, is_dry = context.ui, bool(context.args.dry_run)
    with context.store(create=False) as store:
        report = store.gc(is_dry=is_dry)
    for oid in report.forgotten:
        ui.answer(
            {"oid": str(oid), "dry_run": is_dry}, f"{oid} {'would be forgotten' if is_dry else 'forgotten'}"
        )
    for path in report.partials:
        ui.answer(
            {"partial": str(path), "dry_run": is_dry}, f"{path} {'would be removed' if is_dry else 'removed'}"
        )
    freed = f"{'would free' if is_dry else 'freed'} {size_text(report.freed_bytes)}"
    linked = report.still_linked_bytes
    ui.note(
        f"{freed}{f', {size_text(linked)} more has other links' if linked else ''}"
        "; files of yours are never removed"
    )
    return 0


def _pin(context: Context) -> int:
    return _set_pinned(context, is_pinned=True)


def _unpin(context: Context) -> int:
    return _set_pinned(context, is_pinned=False)


def _set_pinned(context: Context, *, is_pinned: bool) -> int:
    from megalfs.cli.targets import find_blob

    with context.store(create=False) as store:
        for blob in [find_blob(store, target) for target in context.args.targets]:
            (store.pin if is_pinned else store.unpin)(blob.oid)
            if context.ui.is_json:
                context.ui.record({"oid": str(blob.oid), "pinned": is_pinned})
            context.ui.note(f"{'pinned' if is_pinned else 'unpinned'} {blob.oid}")
    return 0


def _doctor(context: Context) -> int:
    from megalfs.cli.doctor import run_doctor

    return run_doctor(context)
