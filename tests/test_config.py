"""Settings: precedence, refusal of what is unknown, and the default file that shows every key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from megalfs.config import Settings, config_files, load, parse_bytes, parse_duration, parse_rate
from megalfs.core.identity import NodeKey
from megalfs.errors import ConfigError
from megalfs.formats.hostport import HostPort

CONFIGS = Path(__file__).parent.parent / "configs"
KEY = NodeKey(bytes(range(32)))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_file_shows_every_key_at_its_default() -> None:
    text = (CONFIGS / "node.toml").read_text(encoding="utf-8")
    assert list(tomllib.loads(text)) == list(Settings.__struct_fields__)
    assert load(flags={}, environ={}, files=[CONFIGS / "node.toml"]) == Settings()
    lines = text.splitlines()
    for name in Settings.__struct_fields__:  # a comment stands above each key, or above its group
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{name} ="))
        while lines[at - 1] and not lines[at - 1].startswith("#"):
            at -= 1
        assert "#" in lines[at - 1] + lines[at - 2], name


@pytest.mark.parametrize("name", ["seeder.toml", "lan.toml"])
def test_the_other_files_load_and_only_differ(name: str) -> None:
    path = CONFIGS / name
    changed = load(flags={}, environ={}, files=[path])
    for key in tomllib.loads(path.read_text(encoding="utf-8")):
        assert getattr(changed, key) != getattr(Settings(), key)


def test_a_flag_beats_the_environment_beats_the_user_beats_the_system(tmp_path: Path) -> None:
    user = _write(tmp_path / "user.toml", 'limit_up = "2M"\nrack = "user"\nzone = "user"')
    system = _write(
        tmp_path / "system.toml", 'limit_up = "1M"\nrack = "system"\nzone = "system"\nhost = "system"'
    )
    environ = {"MEGALFS_LIMIT_UP": "3M", "MEGALFS_RACK": "environ", "MEGALFS_ROOT": "/nowhere"}
    found = load(flags={"limit_up": 4_000_000, "limit_down": None}, environ=environ, files=[user, system])
    assert (found.limit_up, found.rack, found.zone, found.host) == (4_000_000, "environ", "user", "system")
    assert found.limit_down is None


def test_values_become_types() -> None:
    environ = {
        "MEGALFS_LISTEN": "[::1]:7427", "MEGALFS_PEERS": "a:1, b:2",
        "MEGALFS_TRUSTED_KEYS": f"{KEY} {KEY.peer_id}",
        "MEGALFS_DISCOVER": "off", "MEGALFS_UPLOAD_SLOTS": "9", "MEGALFS_ANNOUNCE_INTERVAL_S": "2m",
    }  # fmt: skip
    found = load(flags={}, environ=environ, files=[])
    assert found.listen == HostPort("::1", 7427)
    assert found.peers == (HostPort("a", 1), HostPort("b", 2))
    assert found.trusted_keys == {KEY}
    assert (found.discover, found.upload_slots, found.announce_interval_s) == (False, 9, 120.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limt_up = 1", "unknown key 'limt_up'"),
        ("[node]\nlisten = ''", "unknown key 'node'"),
        ('limit_up = "fast"', "limit_up: not a size: 'fast'"),
        ('limit_up = "0"', "limit_up: a rate of nothing"),
        ("limit_up = true", "limit_up: text is expected"),
        ("connections_max = 0", "connections_max: a number from 1"),
        ('proof = "never"', "proof: one of auto, always"),
        ('trackers = ["ftp://x/"]', "trackers: not a usable http(s) URL"),
        ('trackers = [["http://x/"]]', "trackers: text is expected"),
        ('trusted_keys = ["did:key:zzz"]', "trusted_keys: not an Ed25519 key"),
        ('zone = "a b"', "zone: a word of letters"),
        ("listen = ", "Invalid value"),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = _write(tmp_path / "config.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(flags={}, environ={}, files=[path])
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\AMEGALFS_SHARE: true or false is expected, not 'maybe'"):
        load(flags={}, environ={"MEGALFS_SHARE": "maybe"}, files=[])


def test_a_file_that_is_a_directory_or_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(flags={}, environ={}, files=[tmp_path])
    (tmp_path / "x").write_bytes(b'rack = "\xff"')
    with pytest.raises(ConfigError, match="cannot be read"):
        load(flags={}, environ={}, files=[tmp_path / "x"])


def test_where_the_files_are() -> None:
    assert config_files({"XDG_CONFIG_HOME": "/x"})[0] == Path("/x/megalfs/config.toml")
    assert config_files({"HOME": "/h"}) == (
        Path("/h/.config/megalfs/config.toml"),
        Path("/etc/megalfs/config.toml"),
    )
    assert config_files({"XDG_CONFIG_HOME": "relative", "HOME": "/h"})[0] == Path(
        "/h/.config/megalfs/config.toml"
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("200M", 200_000_000), ("200MB/s", 200_000_000), ("1.5GiB", 3 << 29), ("64KiB", 65536),
     ("64ki", 65536), ("1 TB", 10**12), ("7", 7), ("9B", 9)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1e9", "1.5.5G", "1X", "1 000", "9999999P", "0x10", "1G1", "nan"]
)
def test_sizes_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("30", 30), ("5m", 300), ("2h", 7200), ("1.5d", 129600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "999999999d", "inf", "1m30s"])
def test_durations_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)
