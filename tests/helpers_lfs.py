"""People with a home, a root, git and git-lfs of their own; real processes, loopback only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from processes import Done, Megalfs, wait_until

requires_git_lfs = pytest.mark.skipif(
    shutil.which("git-lfs") is None or shutil.which("git") is None, reason="git-lfs is not installed"
)
GIT_S_MAX = 120.0


class Person(Megalfs):
    """One user of one machine: `install` is all the set-up that git gets, once."""

    def __init__(self, directory: Path, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(directory)
        self.environ = {name: v for name, v in self.environ.items() if not name.startswith("GIT_")}
        self.environ |= {
            "GIT_CONFIG_GLOBAL": str(directory / ".gitconfig"),
            "GIT_CONFIG_SYSTEM": str(directory / "system-gitconfig"),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_FORCE_PROGRESS": "1",
            "MEGALFS_ROOT": str(self.root),
            "MEGALFS_LISTEN": "127.0.0.1:0",
            "MEGALFS_DISCOVER": "false",
            **(environ or {}),
        }
        for key, value in (
            ("user.name", "A Person"),
            ("user.email", "person@example.invalid"),
            ("init.defaultBranch", "main"),
            ("protocol.file.allow", "always"),
            ("advice.detachedHead", "false"),
        ):
            self.git("config", "--global", key, value)
        self.git("lfs", "install", "--skip-repo")

    def install(self) -> Person:
        """`megalfs lfs install`."""
        self.ok("lfs", "install")
        return self

    def try_git(
        self, *argv: object, cwd: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> Done:
        """Runs git to its end, whatever that is."""
        done = subprocess.run(
            [*self.prefix, "git", *map(str, argv)],
            cwd=cwd or self.directory,
            env=self.environ | dict(environ or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_S_MAX,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def git(self, *argv: object, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
        """Runs git, which must succeed; what it prints."""
        done = self.try_git(*argv, cwd=cwd, environ=environ)
        assert done.code == 0, f"git {argv}: exit {done.code}\n{done.out}{done.err}"
        return done.out + done.err

    @contextmanager
    def git_running(
        self, *argv: object, cwd: Path, environ: Mapping[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A git of its own process group that may still run."""
        log = self.directory / "git-running.log"
        with (
            log.open("wb") as out,
            subprocess.Popen(
                [*self.prefix, "git", *map(str, argv)],
                cwd=cwd,
                env=self.environ | dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    @property
    def node(self) -> dict[str, object] | None:
        """What the node of this root says of itself."""
        try:
            document = json.loads((self.root / "node.json").read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT` of the node that an agent started."""
        assert self.node is not None
        return f"127.0.0.1:{self.node['http_port']}"

    def kill_node(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends the node that an agent started, by its pid."""
        if self.node is None:
            return
        pid = self.node["owner"]["pid"]  # type: ignore[index]
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        wait_until(lambda: not is_running(pid), f"the end of node {pid}")

    def new_repository(self, name: str = "work", **options: object) -> Path:
        """An empty work tree that tracks `*.bin`, with a bare remote, set up by `init-repo`."""
        remote, work = self.directory / f"{name}.git", self.directory / name
        self.git("init", "-q", "--bare", remote)
        self.git("init", "-q", work)
        self.git("remote", "add", "origin", remote, cwd=work)
        (work / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
        self.git("add", "-A", cwd=work)
        self.git("commit", "-qm", "start", cwd=work)
        flags = [part for key, value in options.items() for part in (f"--{key}", value)]
        self.ok("lfs", "init-repo", "--name", f"swarm/{name}", *flags, cwd=work)
        return work

    def commit(self, work: Path, files: Mapping[str, bytes]) -> None:
        """Writes and commits files."""
        for name, content in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
        self.git("add", "-A", cwd=work)
        self.git("commit", "-qm", f"{len(files)} files", cwd=work)

    def close(self) -> None:
        """Ends everything, the node too."""
        super().close()
        self.kill_node()


def received(person: Person) -> int:
    """Bytes of pieces that the node of a root has got from anywhere, since it started."""
    return int(str(person.ok("status", "--json").records[0]["bytes_in"]))


def is_running(pid: int) -> bool:
    """Whether a process runs, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def new_person(tmp_path: Path) -> Iterator[Callable[..., Person]]:
    """Makes people by name; ends what they started."""
    made: list[Person] = []

    def make(name: str, **environ: str) -> Person:
        made.append(Person(tmp_path / name, environ))
        return made[-1]

    yield make
    for each in made:
        each.close()


def content(seed: int, size: int) -> bytes:
    """The same bytes for the same seed."""
    return Random(seed).randbytes(size)


def oid_of(data: bytes) -> str:
    """As a pointer names it."""
    return sha256(data).hexdigest()


def objects_in(git_directory: Path) -> set[str]:
    """The oids in the LFS storage of a clone."""
    return {path.name for path in (git_directory / "lfs" / "objects").glob("??/??/*") if path.is_file()}
