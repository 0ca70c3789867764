"""Which format a file has, asked with its first bytes."""

from __future__ import annotations

from megalfs.formats import gguf, safetensors
from megalfs.formats.layout import NeedMore, Plain, Reading, Refused

__all__ = ["read_layout"]


def read_layout(prefix: bytes | memoryview, size: int) -> Reading:
    """Where the tensors of a file of `size` bytes lie, as far as its first bytes say.

    Returns:
        A `Layout`; `Plain` with a reason; or `NeedMore`, when `prefix` is too short to tell. A whole file as
        prefix never needs more, and no answer changes with a longer prefix.
    """
    assert len(prefix) <= size
    probe_bytes = min(safetensors.PROBE_BYTES, size)
    if len(prefix) < probe_bytes:
        return NeedMore(probe_bytes)
    try:
        if prefix[: len(gguf.MAGIC)] == gguf.MAGIC:
            return gguf.read(prefix, size)
        if safetensors.is_safetensors(prefix):
            return safetensors.read(prefix, size)
    except Refused as e:
        return Plain(str(e))
    return Plain("unknown-format")
