"""Every form of TARGET, whose word about a name is followed, and what a pull will not overwrite."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from adversaries import MIB, Stage, error_of, litter, model_bytes, pull, pulled
from processes import Done, Megalfs, Running, wait_until

from megalfs.core.ids import Oid
from megalfs.core.names import NameRecord, SignedName
from megalfs.core.signing import SigningKey
from megalfs.store.blobs import Store
from megalfs.store.root import Root

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@dataclass(frozen=True)
class Scene:
    """One seeder of a model, a tiny file, an empty one and a directory."""

    stage: Stage
    contents: dict[str, bytes]
    records: dict[str, dict[str, object]]
    seeder: Running
    peer: tuple[str, str]

    def oid(self, name: str) -> str:
        """The oid of one of the files."""
        return str(self.records[name]["oid"])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("targets")
    stage = Stage(directory)
    contents = {
        "model.safetensors": model_bytes(6 * MIB),
        "tiny.json": b'{"layers": 12}\n',
        "one-chunk.bin": model_bytes(60_000, tensors=1),
        "empty.bin": b"",
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    tree = directory / "sharded"
    (tree / "weights").mkdir(parents=True)
    (tree / "weights" / "one.safetensors").write_bytes(contents["model.safetensors"])
    (tree / "run.sh").write_bytes(b"#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "config.json").write_bytes(contents["tiny.json"])
    (tree / "nothing").write_bytes(b"")
    seeder = stage.node("seeder").seed(*(directory / name for name in contents), tree)
    records = {Path(str(r["path"])).name: r for r in seeder.records if "path" in r}
    yield Scene(stage, contents, records, seeder, ("--peer", seeder.address))
    stage.close()


# Forms.


@pytest.mark.parametrize("form", ["{oid}", "sha256:{oid}", "link"])
@pytest.mark.parametrize("name", ["model.safetensors", "tiny.json", "one-chunk.bin", "empty.bin"])
def test_oid_and_link(scene: Scene, form: str, name: str) -> None:
    leecher = scene.stage.node(f"{form} {name}")
    target = str(scene.records[name]["link"]) if form == "link" else form.format(oid=scene.oid(name))
    summary = pulled(leecher, target, *scene.peer)
    assert (leecher.directory / "got.bin").read_bytes() == scene.contents[name]
    size = len(scene.contents[name])
    assert summary["files"] == [
        {"oid": scene.oid(name), "path": str(leecher.directory / "got.bin"), "size": size}
    ]
    assert litter(leecher.directory) == []


def write_pointer(path: Path, scene: Scene, name: str) -> None:
    """A git-lfs pointer to one of the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(POINTER.format(oid=scene.oid(name), size=len(scene.contents[name])))


def test_a_pointer_file_is_replaced_by_its_content(scene: Scene) -> None:
    leecher = scene.stage.node("pointer")
    path = leecher.directory / "work" / "model.safetensors"
    write_pointer(path, scene, "model.safetensors")
    leecher.ok("pull", path, *scene.peer, "--no-discover")
    assert path.read_bytes() == scene.contents["model.safetensors"]
    assert litter(leecher.directory) == []


def test_a_directory_of_pointers(scene: Scene) -> None:
    leecher = scene.stage.node("directory")
    work = leecher.directory / "work"
    write_pointer(work / "a" / "model.safetensors", scene, "model.safetensors")
    write_pointer(work / "tiny.json", scene, "tiny.json")
    write_pointer(work / ".git" / "pointer", scene, "tiny.json")
    (work / "README").write_text("not a pointer\n")
    done = leecher.ok("pull", work, *scene.peer, "--no-discover", "--json")
    assert (work / "a" / "model.safetensors").read_bytes() == scene.contents["model.safetensors"]
    assert (work / "tiny.json").read_bytes() == scene.contents["tiny.json"]
    assert (work / "README").read_text() == "not a pointer\n"
    assert (work / ".git" / "pointer").read_text().startswith("version")
    assert len(done.records[-1]["files"]) == 2  # type: ignore[arg-type]


def test_a_pointer_with_the_wrong_size_is_not_filled(scene: Scene) -> None:
    leecher = scene.stage.node("wrong size")
    path = leecher.directory / "model.safetensors"
    path.write_text(POINTER.format(oid=scene.oid("model.safetensors"), size=12_345_678))
    before = path.read_bytes()
    done = leecher.run("pull", path, *scene.peer, "--no-discover", "--json", "--wait-peers", "1")
    error = error_of(done, 4)
    assert error["rejected"] == {}  # who sends the right bytes is not to blame
    assert path.read_bytes() == before
    assert litter(leecher.directory) == []


def test_one_unknown_name_of_several_does_not_keep_back_the_others(scene: Scene) -> None:
    leecher = scene.stage.node("one unknown")
    work = leecher.directory / "work"
    work.mkdir()
    targets = ("nobody-knows-this", scene.oid("tiny.json"), scene.oid("one-chunk.bin"))
    argv = ("pull", *targets, *scene.peer, "-o", work, "--no-discover", "--wait-peers", "1")
    error = error_of(leecher.run(*argv, "--json"), 9)
    assert [file["size"] for file in error["files"]] == [
        len(scene.contents[name]) for name in ("tiny.json", "one-chunk.bin")
    ]
    assert (work / scene.oid("tiny.json")).read_bytes() == scene.contents["tiny.json"]
    lines = [line for line in leecher.run(*argv).err.splitlines() if "nobody-knows-this" in line]
    assert len([line for line in lines if line.startswith("megalfs: nobody-knows-this: ")]) == 1
    # Nothing at all: the failure's own code.
    assert leecher.run("pull", "no-such", "nor-this", *scene.peer, "--no-discover").code == 3


def test_a_tree_is_recreated(scene: Scene) -> None:
    leecher = scene.stage.node("tree")
    link = scene.records["sharded"]["link"]
    done = leecher.ok("pull", link, *scene.peer, "--no-discover", "--json")
    found = {
        str(path.relative_to(leecher.directory / "sharded")): path
        for path in (leecher.directory / "sharded").rglob("*")
        if path.is_file()
    }
    assert sorted(found) == ["config.json", "nothing", "run.sh", "weights/one.safetensors"]
    assert found["weights/one.safetensors"].read_bytes() == scene.contents["model.safetensors"]
    assert found["run.sh"].stat().st_mode & stat.S_IXUSR
    assert not found["config.json"].stat().st_mode & stat.S_IXUSR
    assert len(done.records[-1]["files"]) == 4  # type: ignore[arg-type]
    assert litter(leecher.directory / "sharded") == []
    again = leecher.ok("pull", link, *scene.peer, "--no-discover", "--json").records[-1]
    assert again["bytes_fetched"] == 0


def test_a_tree_names_the_x_bits_of_equal_files(new_node: Callable[[str], Megalfs]) -> None:
    """The second of two equal files comes from this disk, and so do both of the second pull."""
    node, leecher = new_node("publisher"), new_node("leecher")
    tree = node.directory / "tree"
    tree.mkdir()
    for name, mode in (("a", 0o644), ("b.sh", 0o755), ("c", 0o644)):
        (tree / name).write_bytes(b"#!/bin/sh\n")
        (tree / name).chmod(mode)
    server = node.serve("seed", tree)
    for dest, argv in (("tree", []), ("two", ["-o", "two"])):
        leecher.ok("pull", server.link, "--no-discover", *argv)
        modes = {
            path.name: bool(path.stat().st_mode & 0o111) for path in (leecher.directory / dest).iterdir()
        }
        assert modes == {"a": False, "b.sh": True, "c": False}
    (leecher.directory / "tree" / "b.sh").chmod(0o644)
    leecher.ok("pull", server.link, "--no-discover")
    assert (leecher.directory / "tree" / "b.sh").stat().st_mode & 0o111
    assert leecher.ok("verify").out.count("ok") == leecher.ok("verify").out.count("\n") == 7


def test_a_tree_that_was_begun_at_dest_goes_on_there(new_node: Callable[[str], Megalfs]) -> None:
    """The first run makes DEST; for the second one it is a directory that exists, but not one to pull into."""
    node, leecher = new_node("publisher"), new_node("leecher")
    (node.directory / "tree").mkdir()
    (node.directory / "tree" / "model.bin").write_bytes(model_bytes(6 * MIB))
    server = node.serve("seed", "tree")
    argv = ["pull", server.link, "--no-discover", "-o", "dest"]
    slow = leecher.start(*argv, "--limit-down", "1M", "--json")
    wait_until(lambda: any(int(str(r["bytes_verified"])) for r in slow.records if "name" in r), "bytes")
    slow.kill()
    done = leecher.ok(*argv, "--json").records[-1]
    assert [path.name for path in (leecher.directory / "dest").iterdir()] == ["model.bin"]
    assert int(str(done["bytes_fetched"])) < 6 * MIB


def test_a_tree_where_a_file_stands(scene: Scene) -> None:
    leecher = scene.stage.node("tree on a file")
    (leecher.directory / "got").write_bytes(b"mine")
    error = error_of(pull(leecher, str(scene.records["sharded"]["link"]), *scene.peer, target="got"), 2)
    assert "got" in error["message"]
    assert (leecher.directory / "got").read_bytes() == b"mine"


def test_a_name_that_no_file_can_have(scene: Scene) -> None:
    leecher = scene.stage.node("long name")
    error_of(pull(leecher, scene.oid("tiny.json"), *scene.peer, target="n" * 256), 2)
    error_of(pull(leecher, "n" * 256, *scene.peer), 2)


@pytest.mark.parametrize("dest", ["nowhere/got.bin", "nowhere/"])
@pytest.mark.parametrize("is_here", [False, True])
def test_a_directory_that_is_not_there(
    new_node: Callable[[str], Megalfs], scene: Scene, dest: str, *, is_here: bool
) -> None:
    leecher = new_node("leecher")
    if is_here:
        pulled(leecher, scene.oid("tiny.json"), *scene.peer)
    error = error_of(pull(leecher, scene.oid("tiny.json"), *scene.peer, target=dest), 3)
    assert "no such directory: " in error["message"]
    assert not (leecher.directory / "nowhere").exists()


def test_a_tree_does_not_follow_symlinks(scene: Scene) -> None:
    leecher = scene.stage.node("tree symlink")
    elsewhere = leecher.directory / "elsewhere"
    elsewhere.mkdir()
    (leecher.directory / "sharded").mkdir()
    (leecher.directory / "sharded" / "weights").symlink_to(elsewhere)
    done = leecher.run("pull", scene.records["sharded"]["link"], *scene.peer, "--no-discover", "--json")
    error_of(done, 10)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("target", ["./gone.bin", "../gone.bin", "/gone/x.bin", "~/gone.bin"])
def test_a_file_that_is_not_there(scene: Scene, target: str) -> None:
    done = scene.stage.node("no file").run("pull", target, *scene.peer, "--no-discover", "--json")
    assert error_of(done, 3)["message"] == f"no such file: '{target}'"


def test_what_is_done_of_several_is_said(scene: Scene) -> None:
    leecher = scene.stage.node("some of several")
    oids = ["0" * 64, scene.oid("tiny.json")]
    path = str(leecher.directory / oids[1])
    for extra in ([], ["--json"]):
        done = leecher.run("pull", *oids, *scene.peer, "--no-discover", "--wait-peers", "3", *extra)
        assert done.code == 9
        if extra:
            assert done.records[-1]["files"] == [{"oid": oids[1], "path": path, "size": 15}]
        else:
            assert done.out == f"{path}\n"
            assert f"{oids[0]} is at none of the peers asked (1)" in done.err


@pytest.mark.parametrize("target", ["README", "0" * 63, "megalfs:123"])
def test_what_is_no_target(scene: Scene, target: str) -> None:
    leecher = scene.stage.node("no target")
    (leecher.directory / "README").write_text("not a pointer\n")
    done = leecher.run("pull", target, *scene.peer, "--no-discover", "--json")
    error_of(done, 3 if target == "0" * 63 else 2)


# Names.


@dataclass(frozen=True)
class Names:
    """Two publishers that signed the same name for different files, and a tracker that heard of one."""

    one: Running
    one_key: str
    two: Running
    two_key: str
    tracker: Running


@pytest.fixture(scope="module")
def names(scene: Scene) -> Names:
    tracker = scene.stage.node("tracker").serve("tracker")
    running = []
    for number, content in enumerate((b"first file\n" * 9000, b"second file\n" * 9000)):
        node = scene.stage.node(f"publisher {number}")
        path = node.directory / "file.bin"
        path.write_bytes(content)
        published = node.ok("publish", path, "--name", "llama/8b", "--json").records[-1]
        argv = ["--tracker", f"http://{tracker.address}"] if number == 0 else []
        running.append(
            (node.serve("node", "start", *argv), node.ok("auth", "show").out.split()[0], published)
        )
    return Names(running[0][0], running[0][1], running[1][0], running[1][1], tracker)


def pull_name(node: Megalfs, *argv: object) -> Done:
    """Pulls the name that both publishers signed."""
    return pull(node, "llama/8b", *argv)


def got(node: Megalfs) -> bytes:
    """The first word of what was pulled."""
    return (node.directory / "got.bin").read_bytes()[:5]


def test_a_name_from_a_peer_that_the_user_named(scene: Scene, names: Names) -> None:
    leecher = scene.stage.node("name")
    done = pull_name(leecher, "--peer", names.one.address)
    assert done.code == 0, done.err
    assert got(leecher) == b"first"
    assert names.one_key in done.err  # which key it was is shown


def test_a_name_from_a_tracker_needs_its_key(scene: Scene, names: Names) -> None:
    argv = ["--tracker", f"http://{names.tracker.address}"]
    leecher = scene.stage.node("name by tracker")
    assert pull_name(leecher, *argv).code in {3, 10}
    assert not (leecher.directory / "got.bin").exists()
    done = pull_name(leecher, *argv, "--key", names.one_key)
    assert done.code == 0, done.err
    assert got(leecher) == b"first"
    trusting = scene.stage.node("trusting", MEGALFS_TRUSTED_KEYS=names.one_key)
    assert pull_name(trusting, *argv).code == 0


def test_two_keys_that_disagree(scene: Scene, names: Names) -> None:
    leecher = scene.stage.node("two keys")
    argv = ["--peer", names.one.address, "--peer", names.two.address]
    error = error_of(pull_name(leecher, *argv), 10)
    assert names.one_key in error["message"]
    assert names.two_key in error["message"]
    assert pull_name(leecher, *argv, "--key", names.two_key).code == 0
    assert got(leecher) == b"secon"


def test_a_name_under_another_key_than_asked_for(scene: Scene, names: Names) -> None:
    leecher = scene.stage.node("other key")
    done = pull_name(leecher, "--peer", names.one.address, "--key", names.two_key)
    assert done.code in {3, 10}
    assert not (leecher.directory / "got.bin").exists()


def test_a_trusted_key_does_not_forbid_others(scene: Scene, names: Names) -> None:
    """trusted_keys adds to whom we believe; only --key narrows it."""
    leecher = scene.stage.node("trusts one", MEGALFS_TRUSTED_KEYS=names.one_key)
    assert pull_name(leecher, "--peer", names.two.address).code == 0
    assert got(leecher) == b"secon"


def serve_name(node: Megalfs, key: SigningKey, oid: str, *, seq: int, expires: int = 1 << 40) -> Running:
    """A node that answers a name with this record."""
    record = NameRecord(
        name="moving", oid=Oid.parse(oid), size=0, manifest=None, kind="blob", seq=seq, expires=expires
    )
    with Store(Root.open(node.root, create=True)) as store:
        store.put_name(SignedName.sign(key, record))
    return node.serve("node", "start")


def test_a_name_does_not_go_back(scene: Scene) -> None:
    key = SigningKey(bytes(range(32)))
    new = serve_name(scene.stage.node("new"), key, EMPTY, seq=2)
    old = serve_name(scene.stage.node("old"), key, scene.oid("tiny.json"), seq=1)
    leecher = scene.stage.node("moving")
    assert pull(leecher, "moving", "--peer", new.address, *scene.peer).code == 0
    error = error_of(pull(leecher, "moving", "--peer", old.address, *scene.peer, "--force"), 10)
    assert "seq" in error["message"]
    assert (leecher.directory / "got.bin").read_bytes() == b""


def test_an_expired_name(scene: Scene) -> None:
    old = serve_name(scene.stage.node("expired"), SigningKey(bytes(32)), EMPTY, seq=1, expires=1_000_000)
    error = error_of(pull(scene.stage.node("late"), "moving", "--peer", old.address), 10)
    assert "expired" in error["message"]


def test_a_name_nobody_knows(scene: Scene) -> None:
    error_of(pull(scene.stage.node("no name"), "nobody/knows", *scene.peer), 3)
    error_of(pull(scene.stage.node("no peer"), "nobody/knows", "--peer", "127.0.0.1:9"), 5)


def test_a_named_tree_after_an_interrupted_pull(scene: Scene) -> None:
    """The directory is there already, without a pointer in it: the same command goes on with the name."""
    node = scene.stage.node("tree publisher")
    tree = node.directory / "sharded"
    tree.mkdir()
    (tree / "a.bin").write_bytes(b"a" * 100_000)
    node.ok("publish", tree, "--name", "sharded")
    server = node.serve("node", "start")
    leecher = scene.stage.node("interrupted")
    (leecher.directory / "sharded").mkdir()
    leecher.ok("pull", "sharded", "--peer", server.address, "--no-discover")
    assert (leecher.directory / "sharded" / "a.bin").read_bytes() == b"a" * 100_000


# What stands at the target.


def test_an_unknown_file_is_kept_without_force(scene: Scene) -> None:
    leecher = scene.stage.node("unknown file")
    target = leecher.directory / "got.bin"
    target.write_bytes(b"mine")
    error = error_of(pull(leecher, scene.oid("tiny.json"), *scene.peer), 10)
    assert "got.bin" in error["message"]
    assert "--force" in pull(leecher, scene.oid("tiny.json"), *scene.peer).err
    assert target.read_bytes() == b"mine"
    assert litter(leecher.directory) == []
    pulled(leecher, scene.oid("tiny.json"), *scene.peer, "--force")
    assert target.read_bytes() == scene.contents["tiny.json"]


def test_what_was_pulled_is_replaced_without_force(scene: Scene) -> None:
    leecher = scene.stage.node("pulled before")
    pulled(leecher, scene.oid("tiny.json"), *scene.peer)
    pulled(leecher, scene.oid("one-chunk.bin"), *scene.peer)
    assert (leecher.directory / "got.bin").read_bytes() == scene.contents["one-chunk.bin"]


def test_what_was_edited_since_is_kept(scene: Scene) -> None:
    leecher = scene.stage.node("edited")
    pulled(leecher, scene.oid("tiny.json"), *scene.peer)
    with (leecher.directory / "got.bin").open("ab") as file:
        file.write(b"my work")
    error_of(pull(leecher, scene.oid("one-chunk.bin"), *scene.peer), 10)
    assert (leecher.directory / "got.bin").read_bytes().endswith(b"my work")


def test_a_right_file_costs_no_network(scene: Scene) -> None:
    leecher = scene.stage.node("right file")
    (leecher.directory / "got.bin").write_bytes(scene.contents["model.safetensors"])
    nobody = ["--peer", "127.0.0.1:9"]
    summary = pulled(leecher, scene.oid("model.safetensors"), *nobody)
    assert summary["bytes_fetched"] == 0
    assert pulled(leecher, scene.oid("model.safetensors"), *nobody)["bytes_fetched"] == 0


def test_a_blob_on_this_disk_costs_no_network_and_shares_no_inode(scene: Scene) -> None:
    """A program that writes into the copy must not damage the file that was published."""
    leecher = scene.stage.node("on this disk")
    original = leecher.directory / "original.bin"
    original.write_bytes(scene.contents["model.safetensors"])
    leecher.ok("publish", original)
    summary = pulled(leecher, scene.oid("model.safetensors"), "--peer", "127.0.0.1:9")
    assert summary["bytes_fetched"] == 0
    with (leecher.directory / "got.bin").open("r+b") as file:
        file.write(b"edited")
    assert original.read_bytes() == scene.contents["model.safetensors"]


def make_symlink(path: Path) -> None:
    """To a file that must not be touched."""
    (path.parent / "precious").write_bytes(b"precious")
    path.symlink_to(path.parent / "precious")


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("make", [make_symlink, os.mkfifo, Path.mkdir], ids=["symlink", "fifo", "directory"])
def test_what_is_never_replaced(scene: Scene, make: Callable[[Path], None], force: list[str]) -> None:
    leecher = scene.stage.node("never replaced")
    target = leecher.directory / "got.bin"
    make(target)
    before = target.lstat().st_ino
    wanted = leecher.directory / "tiny.json" if make is Path.mkdir else None
    if wanted is not None:  # -o DIRECTORY means: into it
        (target / scene.oid("tiny.json")).mkdir()
    error_of(pull(leecher, scene.oid("tiny.json"), *scene.peer, *force), 10)
    assert target.lstat().st_ino == before
    precious = leecher.directory / "precious"
    assert not precious.exists() or precious.read_bytes() == b"precious"


@pytest.mark.parametrize("way", ["hard", "sym"])
def test_a_blob_on_this_disk_is_linked_on_request(scene: Scene, way: str) -> None:
    leecher = scene.stage.node(f"link {way}")
    argv = [scene.oid("tiny.json"), *scene.peer, "--link", way]
    pulled(leecher, *argv)
    for _ in range(2):  # the second finds the link
        assert pulled(leecher, *argv, target="linked.bin")["bytes_fetched"] == 0
    first, linked = leecher.directory / "got.bin", leecher.directory / "linked.bin"
    assert linked.is_symlink() == (way == "sym")
    assert linked.samefile(first)
    assert leecher.ok("verify").out.count("ok ") == (1 if way == "sym" else 2)


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_a_symlink_is_kept_when_the_blob_lies_on_this_disk(scene: Scene, force: list[str]) -> None:
    leecher = scene.stage.node("symlink and blob")
    pulled(leecher, scene.oid("tiny.json"), *scene.peer, target="first.bin")
    make_symlink(leecher.directory / "got.bin")
    error_of(pull(leecher, scene.oid("tiny.json"), *scene.peer, *force), 10)
    assert (leecher.directory / "got.bin").is_symlink()


def test_two_targets_of_one_blob_are_fetched_once(new_node: Callable[[str], Megalfs]) -> None:
    seeder, puller = new_node("twins-seeder"), new_node("twins-puller")
    content = bytes(range(256)) * 4096
    (seeder.directory / "model.bin").write_bytes(content)
    node = seeder.seed("model.bin")
    oid = hashlib.sha256(content).hexdigest()
    for name in ("a.bin", "b.bin"):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"
        (puller.directory / name).write_text(pointer)
    done = puller.ok("pull", "a.bin", "b.bin", "--peer", node.address, "--listen", "127.0.0.1:0", "--json")
    assert done.records[-1]["bytes_fetched"] == len(content)
    assert all((puller.directory / name).read_bytes() == content for name in ("a.bin", "b.bin"))
