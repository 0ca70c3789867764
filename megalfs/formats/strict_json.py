"""JSON with everything ambiguous taken out, and one canonical way to write it.

Parsers differ on duplicate keys, floats, NaN, huge integers and deep nesting; whoever signs or hashes JSON
must refuse them all (research/eco.md 6.3, case 11). Depth is measured before parsing, because the recursion
limit of an interpreter is not part of a format.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import NoReturn, TypeAlias

__all__ = ["JsonFault", "JsonValue", "encode", "parse", "parse_canonical"]

JsonValue: TypeAlias = "bool | int | str | list[JsonValue] | dict[str, JsonValue] | None"

DEPTH_MAX = 8  # our own formats need 4, safetensors 3
INTEGER_DIGITS_MAX = 20  # 2**64 has 20

_HUGE = re.compile(rb"[0-9]{%d}" % (INTEGER_DIGITS_MAX + 1))
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"{}[]"))
_STEP = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}


class JsonFault(ValueError):  # noqa: N818 - a fault of the text, named so that callers map it
    """The text is refused; `str()` is a stable short reason such as `duplicate-key`."""


def parse(text: bytes) -> JsonValue:
    """Parses UTF-8 JSON that has one meaning only.

    Raises:
        JsonFault: not UTF-8, not JSON, nested deeper than 8, a duplicate key, a float, a huge integer.
    """
    bare = _STRING.sub(b"", text)
    if _depth(bare) > DEPTH_MAX:
        raise JsonFault("json-too-deep")
    if _HUGE.search(bare):  # also: int() is quadratic, and its own limit is a setting
        raise JsonFault("integer-too-long")
    try:
        value: JsonValue = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except JsonFault:
        raise
    except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are both
        raise JsonFault("json-invalid") from e
    return value


def encode(value: JsonValue) -> bytes:
    """The canonical form: sorted keys, no spaces, UTF-8 unescaped.

    Raises:
        JsonFault: a string holds a lone surrogate, which UTF-8 cannot say.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as e:
        raise JsonFault("json-invalid") from e


def parse_canonical(text: bytes) -> JsonValue:
    """Parses only what `encode` would have written.

    Raises:
        JsonFault: as `parse`, and `json-not-canonical`.
    """
    value = parse(text)
    if encode(value) != text:
        raise JsonFault("json-not-canonical")
    return value


def _depth(bare: bytes) -> int:
    """Deepest nesting of JSON whose strings were taken out; headers are read before numpy is imported."""
    brackets = bare.translate(None, _NO_BRACKET)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise JsonFault("duplicate-key")
    return fields


def _refuse_number(_digits: str) -> NoReturn:
    raise JsonFault("not-an-integer")
