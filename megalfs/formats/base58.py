"""base58btc (draft-msporny-base58): a big number in 58 digits; each leading zero byte is a leading `1`."""

from __future__ import annotations

from megalfs.errors import UsageError

__all__ = ["decode", "encode"]

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
CHARS_MAX = 128  # the arithmetic is quadratic; a key needs 52
_DIGIT = {char: digit for digit, char in enumerate(ALPHABET)}


def encode(raw: bytes) -> str:
    """Bytes to base58btc, without the multibase `z`."""
    number = int.from_bytes(raw, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(ALPHABET[digit])
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def decode(text: str) -> bytes:
    """base58btc to bytes.

    Raises:
        UsageError: longer than 128 characters, or a character outside the alphabet.
    """
    if len(text) > CHARS_MAX or any(char not in _DIGIT for char in text):
        raise UsageError(f"not base58btc: {text[:CHARS_MAX]!r}")
    number = 0
    for char in text:
        number = number * 58 + _DIGIT[char]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
