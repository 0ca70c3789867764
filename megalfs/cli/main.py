"""`megalfs`: parse, call one command, turn what went wrong into one line and an exit code.

Everything heavy is imported by the command that needs it: `megalfs --version` reads argparse and little else.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from megalfs import __version__
from megalfs.cli import auth, inspect, lfs, publish, pull, repo, serve
from megalfs.cli.arguments import add_common
from megalfs.cli.ui import Ui
from megalfs.errors import MegalfsError, UsageError

if TYPE_CHECKING:
    from megalfs.cli.context import Context

__all__ = ["entry", "main"]

GC_THRESHOLD = 20_000  # new objects: a pull imports 5 % faster, and a cycle that waits is 2 MB of small ones
EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_PIPE = 141  # 128 + SIGPIPE: the reader of stdout left
EXIT_TERMINATED = 143  # 128 + SIGTERM

EPILOG = """\
exit codes: 0 ok, 1 unexpected, 2 usage, 3 not found, 4 integrity, 5 temporary (no peers, time-out),
6 no space, 7 not authorised, 8 busy, 9 partial, 10 signature or policy refused, 11 origin refused,
130, 141, 143 signals
"""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where a command runs; no `except Exception` catches it."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def entry() -> NoReturn:
    """The console script."""
    # numpy's OpenBLAS would start a thread a core, each with 30 MB of address space, for algebra we never do.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What imports make stays; at the default of 700 new objects the collector looks at it hundreds of times.
    gc.set_threshold(GC_THRESHOLD, 10, 10)
    sys.exit(main(sys.argv[1:], os.environ))


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs one command and returns its exit code."""
    # Until the arguments are parsed, those that say how errors look are looked for by hand.
    ui = Ui(
        is_json="--json" in argv, is_quiet=not {"-q", "--quiet"}.isdisjoint(argv), is_debug="--debug" in argv
    )
    try:
        args, unknown = _parser().parse_known_args(argv)
        if unknown:
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", hint=f"{args.prog} --help")
        ui = Ui(is_json=args.json, is_quiet=args.quiet, is_verbose=args.verbose, is_debug=args.debug)
        from megalfs.cli.context import Context

        return _run(args.run, Context(args, environ, ui))
    except MegalfsError as error:
        ui.error(error)
        return error.exit_code
    except _Terminated:
        ui.warn("terminated")
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        ui.warn("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_PIPE
    except Exception as error:  # noqa: BLE001 - the last resort: a bug is one line and exit 1
        return _unexpected(ui, error)


def _unexpected(ui: Ui, error: Exception) -> int:
    """A path that cannot be used, too long or not ours to look at, is the user's; the rest is a bug."""
    if not isinstance(error, OSError) or error.filename is None:
        ui.unexpected(error)
        return EXIT_UNEXPECTED
    from megalfs.store.files import map_os_errors

    try:
        with map_os_errors(f"cannot use {error.filename!r}"):
            raise error
    except MegalfsError as mapped:
        ui.error(mapped)
        return mapped.exit_code


def _run(run: Callable[[Context], int], context: Context) -> int:
    signal.signal(signal.SIGTERM, _raise_terminated)
    code = run(context)
    sys.stdout.flush()  # here, where a reader that left is still handled
    return code


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _forget_stdout() -> None:
    """Python flushes stdout when it exits; that must not fail a second time."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="megalfs",
        description="Distribute large files through a verified swarm.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"megalfs {__version__}")
    add_common(parser, is_main=True)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for family in (publish, pull, serve, inspect, auth, lfs, repo):
        family.add_commands(commands)
    return parser
