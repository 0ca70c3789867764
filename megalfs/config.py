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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from msgspec import Struct

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


class Settings(Struct, frozen=True, kw_only=True):
    """What can be set. Rates in bytes per second, durations in seconds; None is no limit, or not set."""

    # Where we are found, and whom we ask.
    listen: HostPort | None = None
    advertise: HostPort | None = None
    tls_listen: HostPort | None = None
    tls_cert: str = ""
    tls_key: str = ""
    share: bool = True
    discover: bool = True
    trackers: tuple[str, ...] = ()
    peers: tuple[HostPort, ...] = ()
    origins: tuple[str, ...] = ()
    announce_interval_s: float = 60.0

    # The peer-to-peer layer, and repositories.
    addr: HostPort | None = None
    alias: str = ""
    bootstrap_nodes: tuple[NodeAddress, ...] = ()
    gossip_interval_s: float = 10.0
    gossip_ttl: int = 16
    gossip_seen_s: float = 300.0
    sync_interval_s: float = 60.0
    sync_bytes_max: int = 10_000_000_000
    sync_lfs_bytes_max: int = 1_000_000_000

    # Whom we believe, and who may ask us.
    trusted_keys: frozenset[NodeKey] = frozenset()
    allow_keys: frozenset[NodeKey] = frozenset()
    proof: Proof = "auto"

    # Where we stand.
    host: str = ""
    rack: str = ""
    zone: str = ""

    # How much.
    limit_up: int | None = None
    limit_down: int | None = None
    limit_up_rack: int | None = None
    limit_up_zone: int | None = None
    limit_up_far: int | None = None
    limit_down_rack: int | None = None
    limit_down_zone: int | None = None
    limit_down_far: int | None = None
    limit_down_origin: int | None = None
    connections_max: int = 256
    upload_slots: int = 8
    manifest_switch_s: float = 30.0
    congestion: str = ""

    # On disk.
    link: LinkMode = "auto"
    durable: bool = True
    kernel: str = ""


# How each key is read, from a file or a variable.
_READERS: dict[str, Callable[[object], object]] = {
    **dict.fromkeys(("listen", "advertise", "tls_listen", "addr"), _optional(_host_port)),
    **dict.fromkeys(("tls_cert", "tls_key"), _text),
    **dict.fromkeys(("share", "discover", "durable"), _bool),
    **dict.fromkeys(("trackers", "origins"), _list(_url)),
    "peers": _list(_host_port),
    **dict.fromkeys(
        ("announce_interval_s", "gossip_interval_s", "gossip_seen_s", "sync_interval_s", "manifest_switch_s"),
        _duration,
    ),
    **dict.fromkeys(("alias", "host", "rack", "zone", "congestion", "kernel"), _word),
    "bootstrap_nodes": _list(_node_address),
    "gossip_ttl": _count(1, 64),
    **dict.fromkeys(("sync_bytes_max", "sync_lfs_bytes_max"), _bytes),
    **dict.fromkeys(("trusted_keys", "allow_keys"), _list(_key, frozenset)),
    "proof": _one_of(*get_args(Proof)),
    **dict.fromkeys(
        (
            "limit_up",
            "limit_down",
            "limit_up_rack",
            "limit_up_zone",
            "limit_up_far",
            "limit_down_rack",
            "limit_down_zone",
            "limit_down_far",
            "limit_down_origin",
        ),
        _optional(parse_rate),
    ),
    "connections_max": _count(1, 65536),
    "upload_slots": _count(0, 1024),
    "link": _one_of(*get_args(LinkMode)),
}


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
    values: dict[str, object] = {}
    for path in reversed(files if files is not None else config_files(environ)):
        values |= _read_file(path)
    for name, read in _READERS.items():
        variable = f"MEGALFS_{name.upper()}"
        if variable in environ:
            values[name] = _read_value(variable, environ[variable], read)
    given = {name: value for name, value in flags.items() if value is not None}
    assert not given.keys() - _READERS.keys(), f"no such settings: {given.keys() - _READERS.keys()}"
    return Settings(**(values | given))  # type: ignore[arg-type]  # each was made by its field's reader


def _read_file(path: Path) -> dict[str, object]:
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
    unknown = sorted(document.keys() - _READERS.keys())
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}", hint="configs/node.toml lists every key")
    return {name: _read_value(f"{path}: {name}", value, _READERS[name]) for name, value in document.items()}


def _read_value(where: str, value: object, read: Callable[[object], object]) -> object:
    try:
        return read(value)
    except UsageError as error:  # a ConfigError, or an id that does not parse
        raise ConfigError(f"{where}: {error}", hint=error.hint) from error
