"""`megalfs auth`: the key of this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megalfs.cli.arguments import add_command, add_group
from megalfs.errors import NotFoundError

if TYPE_CHECKING:
    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.core.identity import NodeKey

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Adds `auth init` and `auth show`."""
    actions = add_group(commands, "auth", "the key of this node")
    add_command(actions, "init", _init, "make the key of this root; never replaces one")
    add_command(actions, "show", _show, "print the key of this root")


def _init(context: Context) -> int:
    root = context.root(create=True)
    _print(context, root.create_key().public)
    context.ui.note(f"made a key in {root.host}; whoever reads it can sign as this node")
    return 0


def _show(context: Context) -> int:
    root = context.root(create=False)
    private = root.load_key()
    if private is None:
        raise NotFoundError(f"no key in {str(root.host)!r}", hint="megalfs auth init makes one")
    _print(context, private.public)
    return 0


def _print(context: Context, key: NodeKey) -> None:
    if context.ui.is_json:
        context.ui.record({"key": key.did, "peer_id": key.peer_id})
    else:
        context.ui.result(key.did)
        context.ui.note(f"the same key as a peer id: {key.peer_id}")
