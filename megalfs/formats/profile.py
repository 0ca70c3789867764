"""A chunking profile: everything two publishers must agree on to cut the same blob alike.

Its id, such as `tensor-fastcdc-64-256-1024/1`, names the method (tensor regions first, FastCDC v2020
inside), the minimum, average and maximum chunk in KiB, and a version. The version fixes the rest:
normalisation 1, the header parsers of this package, and their caps. Change any of those and the version must
change.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Self

from msgspec import Struct

from megalfs.errors import PolicyError, UsageError

__all__ = ["CHUNK_BYTES_MAX", "DEFAULT_PROFILE", "Profile"]

KIB = 1024
CHUNK_BYTES_MAX = 16 * 1024 * KIB  # fastcdc-rs v2020 MAXIMUM_MAX
AVERAGE_BYTES_MAX = 4 * 1024 * KIB  # fastcdc-rs v2020 AVERAGE_MAX
AVERAGE_BYTES_MIN = 64 * KIB  # below, the manifest passes 0.1 % of the blob
MINIMUM_BYTES_MAX = 1024 * KIB  # fastcdc-rs v2020 MINIMUM_MAX
_ID = re.compile(r"tensor-fastcdc-([1-9][0-9]{0,4})-([1-9][0-9]{0,4})-([1-9][0-9]{0,4})/1\Z")


class Profile(Struct, frozen=True, kw_only=True):
    """Chunk sizes in bytes, each a whole number of KiB, the average a power of two."""

    min: int
    avg: int
    max: int
    normalization: int = 1

    def __post_init__(self) -> None:
        assert 0 < self.min < self.avg < self.max
        assert self.min <= MINIMUM_BYTES_MAX
        assert self.avg <= AVERAGE_BYTES_MAX
        assert self.max <= CHUNK_BYTES_MAX
        assert self.avg & (self.avg - 1) == 0
        assert not any(size % KIB for size in (self.min, self.avg, self.max))
        assert self.normalization == 1

    @property
    def id(self) -> str:
        """What a manifest records."""
        return f"tensor-fastcdc-{self.min // KIB}-{self.avg // KIB}-{self.max // KIB}/1"

    @classmethod
    def around(cls, average: int) -> Self:
        """The profile with chunks of a quarter to four times the average, as the default one has.

        Raises:
            UsageError: not a power of two from 64 KiB to 4 MiB.
        """
        if average & (average - 1) or not AVERAGE_BYTES_MIN <= average <= AVERAGE_BYTES_MAX:
            raise UsageError(f"chunks of {average} bytes on average: not a power of two from 64K to 4M")
        return cls(min=average // 4, avg=average, max=4 * average)

    @staticmethod
    @lru_cache(maxsize=64)
    def parse(profile_id: str) -> Profile:
        """Reads an id.

        Raises:
            PolicyError: a method, version or size this release does not know.
        """
        found = _ID.match(profile_id)
        if found is not None:
            least, average, most = (int(kib) * KIB for kib in found.groups())
            is_ordered = least < average < most <= CHUNK_BYTES_MAX and average <= AVERAGE_BYTES_MAX
            if is_ordered and least <= MINIMUM_BYTES_MAX and average & (average - 1) == 0:
                return Profile(min=least, avg=average, max=most)
        raise PolicyError(f"unknown chunking profile {profile_id[:80]!r}", hint="upgrade megalfs")


DEFAULT_PROFILE = Profile(min=64 * KIB, avg=256 * KIB, max=1024 * KIB)  # research/cdc.md section 6
