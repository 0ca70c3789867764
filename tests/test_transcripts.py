"""Tutorials are transcripts: every ```console block of README.md and tests/transcripts/ is typed and compared.

    node1$ megalfs node start &        a command on a machine of that name; `$` alone is the machine `you`
    megalfs: serving on [..]           what it prints, both streams; `[..]` is anything within a line
    ...                                any number of lines

Each machine is a directory with its own root; `NAME:7427` and `NAME:9000` are ports of this host. A command
that ends in `&` goes on until the end of the file; what it is shown to print must come first. A command must
exit with 0 unless it looks at `$?`. A comment above a block makes a file: <!-- file: node1/model.bin 3000000 bytes -->
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from processes import REPOSITORY, environment, wait_until

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "tests" / "transcripts").glob("*.md"))]
COMMAND = re.compile(r"(?P<machine>[a-z0-9]*)\$ (?P<command>.*)")
FILE = re.compile(r"<!-- file: (?P<path>\S+) (?P<size>\d+) bytes -->")
COMMAND_S_MAX = 120.0
DEFAULT_PORT = 7427


@dataclass
class Step:
    """One command and what it should print."""

    line: int
    machine: str
    command: str
    expected: list[str] = field(default_factory=list)

    @property
    def is_background(self) -> bool:
        return self.command.endswith(" &")


@dataclass
class Given:
    """A file that is there before the next command."""

    path: str
    size: int


def parse(text: str) -> Iterator[Step | Given]:
    """The files and steps of a document, in order."""
    step: Step | None = None
    is_block = False
    for number, line in enumerate(text.splitlines(), start=1):
        if found := FILE.match(line):
            yield Given(found["path"], int(found["size"]))
        elif line == "```console":
            is_block = True
        elif line.startswith("```"):
            if step is not None:
                yield step
            step, is_block = None, False
        elif is_block and (found := COMMAND.match(line)):
            if step is not None:
                yield step
            step = Step(number, found["machine"] or "you", found["command"])
        elif is_block:
            assert step is not None, f"line {number}: output before any command"
            if step.command.endswith("\\") and line.startswith("> "):
                step.command = step.command[:-1] + line[2:]
            else:
                step.expected.append(line)


def matches(expected: list[str], actual: list[str], *, is_prefix: bool = False) -> bool:
    """Whether the lines are as expected; with `is_prefix`, more may follow."""
    if not expected:
        return is_prefix or not actual
    if expected[0] == "...":
        return any(
            matches(expected[1:], actual[skip:], is_prefix=is_prefix) for skip in range(len(actual) + 1)
        )
    if not actual:
        return False
    pattern = ".*".join(re.escape(part) for part in expected[0].split("[..]"))
    return re.fullmatch(pattern, actual[0]) is not None and matches(
        expected[1:], actual[1:], is_prefix=is_prefix
    )


class Session:
    """The machines of one document."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports: dict[str, int] = {}
        self.link_ports: dict[str, int] = {}
        self.servers: list[tuple[Step, subprocess.Popen[bytes]]] = []
        self.shims = directory / "bin"
        self.shims.mkdir()
        for name in ("megalfs", "python"):
            words = [sys.executable, "-m", "megalfs"] if name == "megalfs" else [sys.executable]
            shim = self.shims / name
            shim.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            shim.chmod(0o755)
        for name in ("p2p", "megalfs"):
            helper = self.shims / f"git-remote-{name}"
            helper.write_text(
                f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m megalfs.git.remote_helper "$@"\n'
            )
            helper.chmod(0o755)

    def machine(self, name: str) -> Path:
        """The directory of a machine, and a port for it."""
        if name not in self.ports:
            with socket.socket() as probe, socket.socket() as link:
                probe.bind(("127.0.0.1", 0))
                link.bind(("127.0.0.1", 0))
                self.ports[name] = probe.getsockname()[1]
                self.link_ports[name] = link.getsockname()[1]
            (self.directory / name).mkdir()
        return self.directory / name

    def give(self, given: Given) -> None:
        """Makes a file that is the same in every run: a safetensors file when its name says so."""
        name, _, path = given.path.partition("/")
        target = self.machine(name) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        header = b""
        if target.suffix == ".safetensors":
            fields = {"weight": {"dtype": "U8", "shape": [given.size], "data_offsets": [0, given.size]}}
            text = json.dumps(fields).encode()
            header = len(text).to_bytes(8, "little") + text
        target.write_bytes(header + Random(given.path).randbytes(given.size))

    def run(self, step: Step) -> None:
        """Types one command and compares."""
        (self._start if step.is_background else self._run)(step)

    def _environ(self, name: str) -> dict[str, str]:
        home = self.machine(name)
        environ = environment(home)
        environ["PATH"] = os.pathsep.join([str(self.shims), environ["PATH"]])
        return environ | {"MEGALFS_LISTEN": f"127.0.0.1:{self.ports[name]}"}

    def _run(self, step: Step) -> None:
        home = self.machine(step.machine)
        state = home / ".state"
        # Variables and the directory live on from one command to the next, as they do in a shell.
        script = f"[ -e {state} ] && . {state}; set -a; {self._to_here(step.command)}\ncode=$?\n"
        script += f"{{ export -p; echo cd \"'$PWD'\"; }} > {state}; exit $code"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=home,
            env=self._environ(step.machine),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S_MAX,
            check=False,
        )
        actual = self._to_story(done.stdout.decode()).splitlines()
        assert matches(step.expected, actual), self._difference(step, actual)
        assert done.returncode == 0 or "$?" in step.command, f"line {step.line}: exit {done.returncode}"

    def _start(self, step: Step) -> None:
        home = self.machine(step.machine)
        log = home / f".log-{len(self.servers)}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._to_here(step.command).removesuffix(' &')}"],
                cwd=home,
                env=self._environ(step.machine),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.servers.append((step, process))

        def has_printed() -> bool:
            assert process.poll() is None, f"line {step.line}: it ended\n{log.read_text()}"
            return matches(step.expected, self._to_story(log.read_text()).splitlines(), is_prefix=True)

        try:
            wait_until(has_printed, f"line {step.line}: {step.command}")
        except AssertionError as error:
            raise AssertionError(
                self._difference(step, self._to_story(log.read_text()).splitlines())
            ) from error

    def _to_here(self, command: str) -> str:
        """`node1:7427` is a port of this host."""
        for name in re.findall(r"\b([a-z0-9]+):(?:7427|9000)\b", command):
            self.machine(name)
            command = command.replace(f"{name}:{DEFAULT_PORT}", f"127.0.0.1:{self.ports[name]}")
            command = command.replace(f"{name}:9000", f"127.0.0.1:{self.link_ports[name]}")
        return command

    def _to_story(self, output: str) -> str:
        for name, port in self.ports.items():
            output = output.replace(f"127.0.0.1:{port}", f"{name}:{DEFAULT_PORT}")
            output = output.replace(f"127.0.0.1:{self.link_ports[name]}", f"{name}:9000")
            output = output.replace(str(self.directory / name), "~")
        return output

    def _difference(self, step: Step, actual: list[str]) -> str:
        expected = "\n".join(step.expected)
        printed = "\n".join(actual)
        return f"line {step.line}: {step.command}\n--- expected\n{expected}\n--- printed\n{printed}\n---"

    def close(self) -> list[str]:
        """Stops the servers by pid, the youngest first; says which did not end well."""
        faults = []
        for step, process in reversed(self.servers):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code != 0:
                faults.append(f"line {step.line}: {step.command} ended with {code}")
        return faults


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_transcript(document: Path, tmp_path: Path) -> None:
    steps = list(parse(document.read_text(encoding="utf-8")))
    assert any(isinstance(step, Step) for step in steps), "no ```console block"
    session = Session(tmp_path)
    try:
        for step in steps:
            if isinstance(step, Given):
                session.give(step)
            else:
                session.run(step)
    finally:
        faults = session.close()
    assert not faults


def test_matching() -> None:
    assert matches(["a [..] c", "...", "z"], ["a b c", "1", "2", "z"])
    assert matches(["...", "z"], ["z"])
    assert matches(["a"], ["a", "b"], is_prefix=True)
    assert not matches(["a"], ["a", "b"])
    assert not matches(["a", "b"], ["a"])
    assert not matches(["a.c"], ["abc"])
