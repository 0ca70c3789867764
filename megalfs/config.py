"""Settings: one frozen value, put together once at the entry point.

A flag beats `MEGALFS_<KEY>`, which beats the user's file ($XDG_CONFIG_HOME/megalfs/config.toml), which beats
the system's (/etc/megalfs/config.toml), which beats the default. A key nobody knows is refused with the
file's name. A repository's own files are never read: a clone must not choose our keys, peers or origins (the
lesson of .lfsconfig: research/eco.md 6.2).

configs/node.toml shows every key at its default, with unit and reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from megalfs.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from megalfs.core.announcements import NodeAddress
    from megalfs.core.identity import NodeKey
    from megalfs.formats.hostport import HostPort

__all__ = [
    "LinkMode",
    "Proof",
    "Settings",
    "config_files",
    "load",
    "parse_bytes",
    "parse_duration",
    "parse_rate",
    "parse_word",
]

Proof = Literal["auto", "always"]
LinkMode = Literal["auto", "reflink", "hard", "sym", "copy"]

SYSTEM_FILE = Path("/etc/megalfs/config.toml")
CONFIG_BYTES_MAX = 1 << 20
LIST_MAX = 1024  # entries of one list: a config file, not a database
BYTES_MAX = 1 << 50
SECONDS_MAX = 366 * 86400.0

_UNITS = {"": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("KMGTP", start=1)
    for suffix, base in (("", 1000), ("B", 1000), ("I", 1024), ("IB", 1024))
} | {"B": 1}  # fmt: skip
_BYTES = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})(?:/s)?\Z")
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([a-z]{0,3})\Z")
_WORD = re.compile(r"[A-Za-z0-9._-]{0,63}\Z")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


def parse_bytes(text: str) -> int:
    """`64KiB` is 65536, `1.5GB` is 1.5e9; a bare number is bytes.

    Raises:
        ConfigError: anything else.
    """
    found = _BYTES.match(text)
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ConfigError(f"not a size: {text[:80]!r}", hint="200M is 200 million, 1.5GiB is 1.5 * 2**30")
    size: int = round(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit
    if size > BYTES_MAX:
        raise ConfigError(f"too large: {text[:80]!r}")
    return size


def parse_rate(text: str) -> int:
    """Bytes per second: `200M` is 200 million of them.

    Raises:
        ConfigError: not a size, or zero.
    """
    rate = parse_bytes(text)
    if rate == 0:
        raise ConfigError(f"a rate of nothing: {text[:80]!r}", hint="leave the key out for no limit")
    return rate


def parse_word(text: str) -> str:
    """At most 63 letters, digits, `.`, `_` and `-`.

    Raises:
        ConfigError: anything else.
    """
    return _word(text)


def parse_duration(text: str) -> float:
    """Seconds: `250ms`, `30`, `30s`, `5m`, `2h`, `7d`.

    Raises:
        ConfigError: anything else.
    """
    found = _DURATION.match(text)
    unit = _SECONDS.get(found[2]) if found else None
    if found is None or unit is None or float(found[1]) * unit > SECONDS_MAX:
        raise ConfigError(f"not a duration: {text[:80]!r}", hint="250ms, 30s, 5m, 2h, 7d")
    return float(found[1]) * unit


# One reader per kind of value: each takes what TOML or the environment gave, and raises ConfigError.


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ConfigError(f"text is expected, not {str(value)[:80]!r}")


def _optional(read: Callable[[str], Any]) -> Callable[[object], Any]:
    """Empty means not set."""

    def reader(value: object) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
        return read(text) if text else None

    return reader


def _list(read: Callable[[str], Any], collect: Callable[[list[Any]], Any] = tuple) -> Callable[[object], Any]:
    """A TOML list; in the environment separated by commas or spaces."""

    def reader(value: object) -> Any:
        if isinstance(value, str):
            value = [part for part in re.split(r"[,\s]+", value) if part]
        if not isinstance(value, Sequence) or len(value) > LIST_MAX:
            raise ConfigError(f"a list is expected, not {str(value)[:80]!r}")
        return collect([read(_text(entry)) for entry in value])

    return reader


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise ConfigError(f"true or false is expected, not {str(value)[:80]!r}")


def _count(low: int, high: int) -> Callable[[object], int]:
    def reader(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ConfigError(f"a number from {low} to {high} is expected, not {str(value)[:80]!r}")

    return reader


def _duration(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:.6f}" if isinstance(value, float) else str(value)
    return parse_duration(_text(value))


def _bytes(value: object) -> int:
    return parse_bytes(str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value))


def _one_of(*words: str) -> Callable[[object], str]:
    def reader(value: object) -> str:
        if value in words:
            return str(value)
        raise ConfigError(f"one of {', '.join(words)} is expected, not {str(value)[:80]!r}")

    return reader


def _word(value: object) -> str:
    if isinstance(value, str) and _WORD.match(value):
        return value
    raise ConfigError(f"a word of letters, digits, '.', '_' and '-' is expected, not {str(value)[:80]!r}")


def _host_port(text: str) -> HostPort:
    from megalfs.formats.hostport import HostPort

    return HostPort.parse(text)


def _url(text: str) -> str:
    from megalfs.core.link import parse_http_url

    return parse_http_url(text)


def _key(text: str) -> NodeKey:
    from megalfs.core.identity import NodeKey

    return NodeKey.parse(text)


def _node_address(text: str) -> NodeAddress:
    from megalfs.core.announcements import NodeAddress

    return NodeAddress.parse(text)


def _by(read: Callable[[object], object]) -> dict[str, Callable[[object], object]]:
    return {"read": read}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set. Rates in bytes per second, durations in seconds; None is no limit, or not set."""

    # Where we are found, and whom we ask.
    listen: HostPort | None = field(default=None, metadata=_by(_optional(_host_port)))
    advertise: HostPort | None = field(default=None, metadata=_by(_optional(_host_port)))
    tls_listen: HostPort | None = field(default=None, metadata=_by(_optional(_host_port)))
    tls_cert: str = field(default="", metadata=_by(_text))
    tls_key: str = field(default="", metadata=_by(_text))
    share: bool = field(default=True, metadata=_by(_bool))
    discover: bool = field(default=True, metadata=_by(_bool))
    trackers: tuple[str, ...] = field(default=(), metadata=_by(_list(_url)))
    peers: tuple[HostPort, ...] = field(default=(), metadata=_by(_list(_host_port)))
    origins: tuple[str, ...] = field(default=(), metadata=_by(_list(_url)))
    announce_interval_s: float = field(default=60.0, metadata=_by(_duration))

    # The peer-to-peer layer, and repositories.
    addr: HostPort | None = field(default=None, metadata=_by(_optional(_host_port)))
    alias: str = field(default="", metadata=_by(_word))
    bootstrap_nodes: tuple[NodeAddress, ...] = field(default=(), metadata=_by(_list(_node_address)))
    gossip_interval_s: float = field(default=10.0, metadata=_by(_duration))
    gossip_ttl: int = field(default=16, metadata=_by(_count(1, 64)))
    gossip_seen_s: float = field(default=300.0, metadata=_by(_duration))
    sync_interval_s: float = field(default=60.0, metadata=_by(_duration))
    sync_bytes_max: int = field(default=10_000_000_000, metadata=_by(_bytes))
    sync_lfs_bytes_max: int = field(default=1_000_000_000, metadata=_by(_bytes))

    # Whom we believe, and who may ask us.
    trusted_keys: frozenset[NodeKey] = field(default=frozenset(), metadata=_by(_list(_key, frozenset)))
    allow_keys: frozenset[NodeKey] = field(default=frozenset(), metadata=_by(_list(_key, frozenset)))
    proof: Proof = field(default="auto", metadata=_by(_one_of(*get_args(Proof))))

    # Where we stand.
    host: str = field(default="", metadata=_by(_word))
    rack: str = field(default="", metadata=_by(_word))
    zone: str = field(default="", metadata=_by(_word))

    # How much.
    limit_up: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_down: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_up_rack: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_up_zone: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_up_far: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_down_rack: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_down_zone: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_down_far: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    limit_down_origin: int | None = field(default=None, metadata=_by(_optional(parse_rate)))
    connections_max: int = field(default=256, metadata=_by(_count(1, 65536)))
    upload_slots: int = field(default=8, metadata=_by(_count(0, 1024)))
    manifest_switch_s: float = field(default=30.0, metadata=_by(_duration))
    congestion: str = field(default="", metadata=_by(_word))

    # On disk.
    link: LinkMode = field(default="auto", metadata=_by(_one_of(*get_args(LinkMode))))
    durable: bool = field(default=True, metadata=_by(_bool))
    kernel: str = field(default="", metadata=_by(_word))


def config_files(environ: Mapping[str, str]) -> tuple[Path, Path]:
    """The user's file and the system's, whether they exist or not."""
    home = environ.get("XDG_CONFIG_HOME", "")
    base = Path(home) if home.startswith("/") else Path(environ.get("HOME", "/")) / ".config"
    return base / "megalfs" / "config.toml", SYSTEM_FILE


def load(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    files: Sequence[Path] | None = None,
) -> Settings:
    """Puts the settings together.

    Args:
        flags: parsed values by key; None means that the flag was not given.
        files: the strongest first; the user's and the system's when None.

    Raises:
        ConfigError: an unknown key or a bad value; the line names the file or the variable.
    """
    readers = {entry.name: entry.metadata["read"] for entry in fields(Settings)}
    values: dict[str, object] = {}
    for path in reversed(files if files is not None else config_files(environ)):
        values |= _read_file(path, readers)
    for name, read in readers.items():
        variable = f"MEGALFS_{name.upper()}"
        if variable in environ:
            values[name] = _read_value(variable, environ[variable], read)
    given = {name: value for name, value in flags.items() if value is not None}
    assert not set(given) - set(readers), f"no such settings: {set(given) - set(readers)}"
    return Settings(**(values | given))  # type: ignore[arg-type]  # each was made by its field's reader


def _read_file(path: Path, readers: Mapping[str, Callable[[object], object]]) -> dict[str, object]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes")
        content = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    import tomllib

    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    unknown = sorted(set(document) - set(readers))
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}", hint="configs/node.toml lists every key")
    return {name: _read_value(f"{path}: {name}", value, readers[name]) for name, value in document.items()}


def _read_value(where: str, value: object, read: Callable[[object], object]) -> object:
    try:
        return read(value)
    except UsageError as error:  # a ConfigError, or an id that does not parse
        raise ConfigError(f"{where}: {error}", hint=error.hint) from error
