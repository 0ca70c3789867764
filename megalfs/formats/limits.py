"""Limits that more than one format has."""

from typing import Final

__all__ = ["SIZE_MAX"]

SIZE_MAX: Final = (1 << 63) - 1  # bytes: what off_t, SQLite and most parsers of others hold
