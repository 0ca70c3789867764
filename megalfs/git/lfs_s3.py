"""An S3 bucket as a repository's home: `s3://BUCKET/PREFIX`, with the extra `megalfs[s3]`.

    PREFIX/<oid>             the object as it is: any other program can read it, and any S3 serves its ranges
    PREFIX/<oid>.megalfs     its manifest, so that who has another version fetches only chunks that changed

An object is one key, never one key a chunk: requests cost more than bytes there (research/eco.md 3.3). A pull
gets a presigned URL and treats it as any origin. Settings are those of the AWS tools: AWS_* variables of the
node, else `~/.aws`; instance roles are not asked for, since asking hangs wherever there are none.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from msgspec import Struct

from megalfs.core.manifest import MANIFEST_BYTES_MAX, Manifest
from megalfs.errors import MegalfsError, NotAuthorisedError, NotFoundError, TemporaryError, UsageError
from megalfs.git.lfs_client import blocks_of

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

    from megalfs.core.ids import Oid

__all__ = ["Bucket"]

MANIFEST_SUFFIX = ".megalfs"
URL_LIFE = timedelta(days=1)  # of a presigned URL: a pull of a very large object, begun again some times
PART_BYTES_MIN = 8 << 20
PARTS_AT_ONCE = 4  # in memory, of each of up to eight objects
PARTS_MAX = 9_000  # S3 takes 10,000
TRIES_MAX = 4
TRIES_S_MAX = timedelta(seconds=60)
REGION = "us-east-1"  # what servers that know no regions call theirs
# As the AWS tools call them, in files and in the environment, and as the library does; the later of two wins.
_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
    "endpoint_url": "endpoint",
}
_VARIABLES = {
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_DEFAULT_REGION": "region",
    "AWS_REGION": "region",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ENDPOINT_URL_S3": "endpoint",
}
# Where else the library finds who it is: a pod's or a task's role.
_ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")


class Bucket(Struct, frozen=True):
    """One bucket and prefix."""

    url: str
    store: S3Store

    @classmethod
    def open(cls, url: str) -> Bucket:
        """Makes the client; nothing is asked yet.

        Raises:
            UsageError: the extra is not installed.
        """
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise UsageError(f"{url} needs the extra s3", hint="pip install 'megalfs[s3]'") from error
        environ = os.environ  # noqa: TID251 - where every program that speaks S3 looks
        found = _settings(environ)
        is_known = "access_key_id" in found or any(name in environ for name in _ROLES)
        parts = urlsplit(url)
        store = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=cast("S3Config", {"region": REGION, **found}),
            skip_signature=not is_known,
            checksum_algorithm="SHA256",  # S3 refuses a part that was damaged on its way
            client_options={"allow_http": found.get("endpoint", "").startswith("http://")},
            retry_config={"max_retries": TRIES_MAX, "retry_timeout": TRIES_S_MAX},
        )
        return cls(url, store)

    async def has(self, oid: Oid, size: int) -> bool:
        """Whether the object is there, whole."""
        import obstore

        with suppress(NotFoundError):
            with _mapped(self.url, str(oid)):
                found = await obstore.head_async(self.store, str(oid))
            return found["size"] == size
        return False

    async def put(
        self, oid: Oid, size: int, path: Path, manifest: bytes, *, reached: Callable[[int], None]
    ) -> None:
        """Sends an object and its manifest; nothing of it is visible before all of it is there.

        Raises:
            NotAuthorisedError: these credentials may not write there.
            MegalfsError: it did not take it.
        """
        import obstore

        with _mapped(self.url, str(oid)):
            await obstore.put_async(
                self.store,
                str(oid),
                blocks_of(path, reached),
                chunk_size=max(PART_BYTES_MIN, -(-size // PARTS_MAX)),
                max_concurrency=PARTS_AT_ONCE,
            )
            await obstore.put_async(self.store, f"{oid}{MANIFEST_SUFFIX}", manifest)
        if not await self.has(oid, size):
            raise TemporaryError(f"{self.url} took {oid}, and has it not")

    async def find(self, oid: Oid, size: int) -> tuple[str, Manifest | None]:
        """A URL of the object for a day, and its manifest when there is a good one.

        Raises:
            NotFoundError: it is not there.
            MegalfsError: the bucket did not say.
        """
        import obstore

        if not await self.has(oid, size):
            raise NotFoundError(f"{self.url} has no object {oid}")
        with _mapped(self.url, str(oid)):
            url = await obstore.sign_async(self.store, "GET", str(oid), URL_LIFE)
        with suppress(MegalfsError):
            return url, await self._manifest(oid)
        return url, None

    async def _manifest(self, oid: Oid) -> Manifest:
        import obstore

        name = f"{oid}{MANIFEST_SUFFIX}"
        with _mapped(self.url, name):
            answer = await obstore.get_async(self.store, name)
            if answer.meta["size"] > MANIFEST_BYTES_MAX:
                raise NotFoundError(f"{self.url} has no manifest of {oid} that could be read")
            return Manifest.decode(bytes(await answer.bytes_async()), oid=oid)


@contextmanager
def _mapped(url: str, name: str) -> Iterator[None]:
    """Foreign exceptions become ours."""
    from obstore import exceptions

    shown = f"{url}/{name}"
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise NotFoundError(f"{shown} does not exist") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        hint = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the node, or ~/.aws/credentials"
        raise NotAuthorisedError(f"{shown} refused", hint=hint) from error
    except exceptions.BaseError as error:
        raise TemporaryError(f"{shown}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Keys, region and endpoint: variables first, then the profile in the files of the AWS tools."""
    home = Path(environ.get("HOME", "/")) / ".aws"
    profile = environ.get("AWS_PROFILE", "default")
    found: dict[str, str] = {}
    for variable, name in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        parser = configparser.RawConfigParser()
        with suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(environ.get(variable, home / name), encoding="utf-8")
        for section in (f"profile {profile}", profile):
            if parser.has_section(section):
                found |= {_KEYS[key]: value for key, value in parser.items(section) if key in _KEYS}
    for variable, key in _VARIABLES.items():
        if environ.get(variable):
            found[key] = environ[variable]
    return found
