"""Real megalfs processes for tests: own root, own port, output kept, stopped by pid.

A server listens on port 0 and says in its `ready` record which port it got, so two tests never race for one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
READY_S_MAX = 60.0
RUN_S_MAX = 120.0
POLL_S = 0.02


def wait_until(check: Callable[[], bool], what: str, *, timeout_s: float = READY_S_MAX) -> None:
    """Polls until `check` holds; the only place where tests wait."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not check():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        pause.wait(POLL_S)


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without megalfs settings, at home in `home`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MEGALFS", "MEGAENGINE"))
    }
    kept |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "NO_PROXY": "*"}
    kept["MEGALFS_DISCOVER"] = "false"  # no multicast; the test of the LAN asks for it, on loopback
    kept["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | dict(more or {})


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, object]]:
        """The JSON objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Running:
    """A command that may still run; its output goes to files, so that it never blocks on a full pipe."""

    process: subprocess.Popen[bytes]
    out_path: Path
    err_path: Path
    ready: dict[str, object] = field(default_factory=dict)

    @property
    def out(self) -> str:
        """What it has printed on stdout so far."""
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        """What it has printed on stderr so far."""
        return self.err_path.read_text()

    @property
    def records(self) -> list[dict[str, object]]:
        """The JSON objects that are complete on stdout."""
        return [json.loads(line) for line in self.out.split("\n")[:-1]]

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT` of a server."""
        return f"127.0.0.1:{self.ready['port']}"

    @property
    def link(self) -> str:
        """The first link that it published."""
        return str(next(record["link"] for record in self.records if "link" in record))

    def wait(self, *, timeout_s: float = RUN_S_MAX) -> Done:
        """Waits until it ends by itself."""
        code = self.process.wait(timeout_s)
        return Done(code, self.out, self.err)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = 30.0) -> Done:
        """Sends a signal and waits for the end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout_s=timeout_s)

    def kill(self) -> Done:
        """kill -9."""
        return self.stop(signal.SIGKILL)


class Megalfs:
    """One root and its commands; whatever was started here is ended by `close`."""

    def __init__(
        self, directory: Path, *, root: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.root = root or directory / "root"
        self.environ = environment(directory, environ)
        self.prefix: list[str] = []  # before every command: `ip netns exec NAME`, in a bench
        self.started: list[Running] = []

    def run(
        self, *argv: object, cwd: Path | None = None, timeout_s: float = RUN_S_MAX, stdin: bytes | None = None
    ) -> Done:
        """Runs a command to its end."""
        done = subprocess.run(
            self._argv(argv),
            cwd=cwd or self.directory,
            env=self.environ,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *argv: object, cwd: Path | None = None) -> Done:
        """As `run`, for a command that must succeed."""
        done = self.run(*argv, cwd=cwd)
        assert done.code == 0, f"{argv}: exit {done.code}\n{done.err}"
        return done

    def start(self, *argv: object, cwd: Path | None = None) -> Running:
        """Starts a command and returns at once."""
        stem = self.directory / f"process-{len(self.started)}"
        out_path, err_path = stem.with_suffix(".out"), stem.with_suffix(".err")
        with out_path.open("wb") as out, err_path.open("wb") as err:
            process = subprocess.Popen(
                self._argv(argv),
                cwd=cwd or self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        running = Running(process, out_path, err_path)
        self.started.append(running)
        return running

    def serve(self, *argv: object, listen: str = "127.0.0.1:0") -> Running:
        """Starts `seed`, `node start` or `tracker`, and returns when `/readyz` answers 200."""
        running = self.start(*argv, "--listen", listen, "--json")

        def is_ready() -> bool:
            assert running.process.poll() is None, f"{argv} ended: {running.err}"
            found = [record for record in running.records if record.get("event") == "ready"]
            running.ready = found[0] if found else {}
            return bool(found) and is_ready_at(running.address)

        wait_until(is_ready, f"{argv} ready")
        return running

    def seed(self, *paths: object) -> Running:
        """Publishes and serves files."""
        return self.serve("seed", *paths)

    def close(self) -> None:
        """Ends what is still running, by pid."""
        for running in self.started:
            if running.process.poll() is None:
                running.kill()

    def _argv(self, argv: Sequence[object]) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "megalfs", "--root", str(self.root), *map(str, argv)]


def free_port() -> int:
    """A port that nobody listened on a moment ago; a node that is killed can take it again."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def is_ready_at(address: str) -> bool:
    """Whether `/readyz` answers 200."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
