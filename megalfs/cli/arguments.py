"""The types of argument values, and the flags that several commands share.

Everything heavier than argparse is imported when a value is read, so `--version` and `--help` stay quick.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from megalfs.errors import UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    from megalfs.cli.context import Context
    from megalfs.core.announcements import NodeAddress
    from megalfs.core.identity import NodeKey
    from megalfs.formats.hostport import HostPort
    from megalfs.formats.profile import Profile

    # What `add_subparsers` returns; argparse has no public name for it.
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - see above

__all__ = [
    "add_command",
    "add_common",
    "add_group",
    "add_sharing",
    "chunk_size",
    "host_port",
    "http_url",
    "node_address",
    "node_key",
    "peer",
    "rate",
    "seconds",
    "word",
]

S = TypeVar("S")
T = TypeVar("T")


def add_common(parser: argparse.ArgumentParser, *, is_main: bool = False) -> None:
    """The flags that may stand before or after the command's name.

    Those of the commands have no default, so that they do not undo what stood before the name.
    """

    def default(value: object) -> object:
        return value if is_main else argparse.SUPPRESS

    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--root",
        type=Path,
        default=default(None),
        metavar="DIR",
        help="where keys and index live ($MEGALFS_ROOT, else ~/.megalfs)",
    )
    group.add_argument(
        "--json", action="store_true", default=default(False), help="one JSON object a line on stdout"
    )
    group.add_argument(
        "-q", "--quiet", action="store_true", default=default(False), help="no progress, no notes"
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", default=default(False), help="say more on stderr"
    )
    group.add_argument("--debug", action="store_true", default=default(False), help="show tracebacks")


def add_command(
    commands: Commands, name: str, run: Callable[[Context], int], text: str
) -> argparse.ArgumentParser:
    """One command with the flags of all; `text` is its line in the list, and its description."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.allow_abbrev = False  # what is short for one flag today may be short for two tomorrow
    parser.set_defaults(run=run, prog=parser.prog)
    add_common(parser)
    return parser


def add_group(commands: Commands, name: str, text: str) -> Commands:
    """A command that has commands of its own, such as `node`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.allow_abbrev = False
    add_common(parser)
    return parser.add_subparsers(metavar="ACTION", required=True)


def add_sharing(parser: argparse.ArgumentParser, *, listen_help: str) -> None:
    """Flags of every command that serves peers."""
    parser.add_argument("--listen", type=host_port, metavar="HOST:PORT", help=listen_help)
    parser.add_argument("--advertise", type=peer, metavar="HOST:PORT", help="the address others should dial")
    parser.add_argument(
        "--limit-up", type=rate, metavar="RATE", help="bytes per second sent, such as 200M (any)"
    )
    parser.add_argument("--limit-down", type=rate, metavar="RATE", help="bytes per second received (any)")
    parser.add_argument(
        "--tracker",
        type=http_url,
        action="append",
        default=[],
        metavar="URL",
        help="where peers meet; may repeat",
    )
    parser.add_argument(
        "--no-discover", action="store_true", help="only the peers, trackers and origins that are named"
    )


def host_port(text: str) -> HostPort:
    """`HOST:PORT`; port 0 is any."""
    from megalfs.formats.hostport import HostPort

    return _parsed(HostPort.parse, text)


def peer(text: str) -> HostPort:
    """`HOST:PORT` of somebody who listens."""
    from megalfs.formats.hostport import HostPort

    def parse(text: str) -> HostPort:
        found = HostPort.parse(text, default_port=7427)
        if not found.port:
            raise UsageError(f"not a port that anybody listens on: {text!r}")
        return found

    return _parsed(parse, text)


def http_url(text: str) -> str:
    """An http or https URL without credentials."""
    from megalfs.core.link import parse_http_url

    return _parsed(parse_http_url, text)


def node_key(text: str) -> NodeKey:
    """`did:key:z...` or `12D3KooW...`."""
    from megalfs.core.identity import NodeKey

    return _parsed(NodeKey.parse, text)


def node_address(text: str) -> NodeAddress:
    """`did:key:z...@HOST:PORT`."""
    from megalfs.core.announcements import NodeAddress

    return _parsed(NodeAddress.parse, text)


def word(text: str) -> str:
    """Letters, digits, `.`, `_` and `-`."""
    from megalfs.config import parse_word

    return _parsed(parse_word, text)


def rate(text: str) -> int:
    """`200M` is 200 million bytes per second."""
    from megalfs.config import parse_rate

    return _parsed(parse_rate, text)


def seconds(text: str) -> float:
    """`30`, `250ms`, `5m`."""
    from megalfs.config import parse_duration

    return _parsed(parse_duration, text)


def chunk_size(text: str) -> Profile:
    """`128K` or `1M`, binary: the profile with that average chunk."""
    from megalfs.formats.profile import Profile

    found = re.fullmatch(r"([1-9][0-9]{0,6})([KM])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 128K or 1M")
    return _parsed(Profile.around, int(found[1]) << (10 if found[2] == "K" else 20))


def _parsed(parse: Callable[[S], T], text: S) -> T:
    """argparse names the flag when the type raises its own error."""
    try:
        return parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
