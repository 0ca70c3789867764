"""`megalfs auth`: the key of this node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megalfs.cli.arguments import add_command, add_group
from megalfs.errors import BusyError, NotFoundError

if TYPE_CHECKING:
    from megalfs.cli.arguments import Commands
    from megalfs.cli.context import Context
    from megalfs.core.identity import NodeKey
    from megalfs.core.signing import SigningKey

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Adds the commands of this family."""
    actions = add_group(commands, "auth", "the key of this node")
    add_command(actions, "init", _init, "make the key of this root; never replaces one")
    add_command(actions, "show", _show, "print the key of this root")
    export = add_command(actions, "export", _export, "the key in a form that other programs can sign with")
    export.add_argument(
        "--ssh",
        type=Path,
        required=True,
        metavar="FILE",
        help="an OpenSSH private key, for git push --signed; must not exist",
    )


def _init(context: Context) -> int:
    root = context.root(create=True)
    _print(context, root.create_key().public)
    context.ui.note(f"made a key in {root.host}; whoever reads it can sign as this node")
    return 0


def _show(context: Context) -> int:
    _print(context, _load(context).public)
    return 0


def _export(context: Context) -> int:
    from megalfs.git.serving import ssh_public_key
    from megalfs.store.files import map_os_errors, write_new

    private, path = _load(context), context.args.ssh.absolute()
    with map_os_errors(f"cannot write the key {str(path)!r}"):
        if not write_new(path, _openssh(private)):
            raise BusyError(f"{str(path)!r} exists", hint="a key is never replaced; choose another file")
    if context.ui.is_json:
        context.ui.record({"path": str(path), "ssh": ssh_public_key(private.public)})
    else:
        context.ui.result(ssh_public_key(private.public))
        context.ui.note(f"whoever reads {path} can sign as this node")
        context.ui.note(f"git config gpg.format ssh; git config user.signingKey {path}; git push --signed")
    return 0


def _openssh(private: SigningKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(private.seed)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())


def _load(context: Context) -> SigningKey:
    root = context.root(create=False)
    private = root.load_key()
    if private is None:
        raise NotFoundError(f"no key in {str(root.host)!r}", hint="megalfs auth init makes one")
    return private


def _print(context: Context, key: NodeKey) -> None:
    if context.ui.is_json:
        context.ui.record({"key": key.did, "peer_id": key.peer_id})
    else:
        context.ui.result(key.did)
        context.ui.note(f"the same key as a peer id: {key.peer_id}")
