"""Nodes with links and git clients beside them, as real processes; and a peer of our own making that lies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import Done, Megalfs, Running, wait_until

FAST = {"MEGALFS_GOSSIP_INTERVAL_S": "0.5", "MEGALFS_SYNC_INTERVAL_S": "0.5", "MEGALFS_DURABLE": "false"}
AUTHOR = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_COMMITTER_DATE": "1700000000 +0000",
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
}  # fmt: skip


class P2pNode:
    """A root, its node when it runs, and git as its user types it."""

    def __init__(self, directory: Path, **environ: str) -> None:
        self.megalfs = Megalfs(directory, environ=FAST | environ)
        self.directory = directory
        self.running: Running | None = None
        self.git_environ = self.megalfs.environ | AUTHOR | {
            "MEGALFS_ROOT": str(self.megalfs.root),
            "PATH": helpers_on_path(directory, self.megalfs.environ["PATH"]),
        }  # fmt: skip
        self.key = self.megalfs.ok("auth", "init", "--json").records[0]["key"]

    def start(self, *argv: object, addr: str = "127.0.0.1:0") -> P2pNode:
        """Runs `node start`."""
        self.running = self.megalfs.serve("node", "start", "--addr", addr, *argv)
        return self

    @property
    def addr(self) -> str:
        assert self.running is not None
        return f"127.0.0.1:{self.running.ready['link_port']}"

    @property
    def http(self) -> str:
        assert self.running is not None
        return f"http://{self.running.address}"

    @property
    def bootstrap(self) -> str:
        """As `--bootstrap-node` takes it."""
        return f"{self.key}@{self.addr}"

    def url(self, repo: str = "tiny.git", **more: str) -> str:
        """A URL that needs no discovery."""
        query = "".join(f"&{name}={value}" for name, value in more.items())
        return f"p2p://{self.key}/{repo}?addr={self.addr}{query}"

    def git(
        self, *argv: object, cwd: Path | None = None, ok: bool = True, stdin: str = "", **environ: str
    ) -> Done:
        """Runs stock git."""
        done = subprocess.run(
            ["git", *map(str, argv)], cwd=cwd or self.directory, env=self.git_environ | environ,
            input=stdin.encode(), capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        result = Done(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert not ok or result.code == 0, f"git {argv}: {result.code}\n{result.err}"
        return result

    def repository(
        self, name: str = "tiny", *, commits: int = 2, bare: bool = False, names: str = "sha1"
    ) -> Path:
        """A repository with a few commits and a tag."""
        path = self.directory / name
        self.git("init", "-q", "-b", "main", f"--object-format={names}", path)
        for number in range(commits):
            self.commit(path, f"file{number}.txt", f"{name} {number}\n")
        self.git("tag", "-a", "-m", "one", "v1", cwd=path)
        if bare:
            self.git("clone", "-q", "--bare", path, f"{path}.git")
            return Path(f"{path}.git")
        return path

    def commit(self, path: Path, name: str, content: str) -> str:
        """Another commit; returns its id."""
        (path / name).write_text(content)
        self.git("add", ".", cwd=path)
        self.git("commit", "-q", "-m", f"change {name}", cwd=path)
        return self.head(path)

    def head(self, path: Path, ref: str = "HEAD") -> str:
        return self.git("rev-parse", ref, cwd=path).out.strip()

    def share(self, path: Path, *argv: object) -> str:
        """`repo add`; returns the id."""
        return str(self.megalfs.ok("repo", "add", "--path", path, *argv, "--json").records[0]["repo"])

    def repos(self) -> dict[str, dict[str, object]]:
        """`repo list`, by name."""
        done = self.megalfs.run("repo", "list", "--json")
        return {str(record["name"]): record for record in done.records} if done.code == 0 else {}

    def until(self, name: str, **fields: object) -> dict[str, object]:
        """Waits until a repository is listed so."""

        def is_so() -> bool:
            record = self.repos().get(name, {})
            return bool(record) and all(record.get(field) == value for field, value in fields.items())

        wait_until(is_so, f"{name} {fields}; {self.repos().get(name)}")
        return self.repos()[name]

    def stop(self) -> None:
        if self.running is not None:
            self.running.stop()

    def close(self) -> None:
        self.megalfs.close()


def helpers_on_path(directory: Path, path: str) -> str:
    """A PATH that begins with the three remote helpers of this checkout."""
    binaries = directory / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    for name in ("p2p", "megalfs", "mega"):
        script = binaries / f"git-remote-{name}"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m megalfs.git.remote_helper "$@"\n')
        script.chmod(0o755)
    return os.pathsep.join([str(binaries), path])
