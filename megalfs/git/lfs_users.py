"""Who may push to this node's LFS server: names with a token each; only the token's hash is kept."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from megalfs.errors import NotFoundError, StoreError, UsageError
from megalfs.store.files import map_os_errors, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from megalfs.store.root import Root

__all__ = ["Users", "basic_login"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
TOKEN_BYTES = 24


def basic_login(header: str) -> tuple[str, str]:
    """Name and password of an `Authorization: Basic` header; empty ones for any other."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    with suppress(binascii.Error, UnicodeDecodeError):
        name, _, password = base64.b64decode(text.strip(), validate=True).decode("utf-8").partition(":")
        return name, password
    return "", ""


class Users:
    """The file `lfs/users.json` of a root, read anew each time: a token is revoked at once."""

    def __init__(self, root: Root) -> None:
        self._path = _users_path(root)

    def add(self, name: str) -> str:
        """A new token for a name; the one it had is no longer good.

        Raises:
            UsageError: not a name.
        """
        if not _NAME.match(name):
            raise UsageError(f"not a name of letters, digits, '.', '_', '@' and '-': {name[:80]!r}")
        token = secrets.token_hex(TOKEN_BYTES)
        self._write({**self._read(), name: _hash(token)})
        return token

    def remove(self, name: str) -> None:
        """Takes the token of a name away; raises NotFoundError."""
        users = self._read()
        if name not in users:
            raise NotFoundError(f"nobody has a token under {name[:80]!r}")
        del users[name]
        self._write(users)

    def names(self) -> list[str]:
        """Who has a token."""
        return sorted(self._read())

    def is_token_of(self, name: str, token: str) -> bool:
        """Whether this is the name's token."""
        return hmac.compare_digest(self._read().get(name, ""), _hash(token))

    def _read(self) -> dict[str, str]:
        try:
            document = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {str(self._path)!r}: {error}") from error
        return {str(name): str(digest) for name, digest in document.items()}

    def _write(self, users: dict[str, str]) -> None:
        with map_os_errors(f"cannot write {str(self._path)!r}"):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(self._path, json.dumps(users, indent=1).encode())


def _users_path(root: Root) -> Path:
    return root.path / "lfs" / "users.json"


def _hash(token: str) -> str:
    # A token is random and long: no salt and no stretching make it harder to guess.
    return hashlib.sha256(b"megalfs:lfs-token:v1\0" + token.encode()).hexdigest()
