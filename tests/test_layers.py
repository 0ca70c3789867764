"""The law of DESIGN.md section 2: who may import whom, and a few habits that were cheap to make checks."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "megalfs"
MODULES = sorted(PACKAGE.rglob("*.py"))
LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# For each layer, the other parts of megalfs it may import. What is not here may import nothing of megalfs.
ALLOWED = {
    "core": {"core", "formats", "errors"},
    "formats": {"formats", "errors", "core.ids"},  # ids are plain values; everything else of core is above
    "store": {"store", "core", "formats", "errors", "config"},
    "net": {"net", "core", "formats", "errors", "config"},
    "node": {"node", "store", "net", "core", "formats", "errors", "config"},
    "cli": {"cli", "git", "node", "store", "net", "core", "formats", "errors", "config"},
    "git": {"git", "node", "store", "net", "core", "formats", "errors", "config"},
    "errors": set(),
    "config": {"core", "formats", "errors"},
    "__main__": {"cli"},
    "__init__": {"node", "store", "core", "formats", "errors", "config"},
}
# Layers below `node` that know the kernels.
KERNELS = {"core", "formats", "store", "net", "node", "cli", "git"}
# I/O, clocks, threads, randomness, logs: nothing of these in what a simulation must be able to run.
IMPURE = {
    "asyncio", "concurrent", "ctypes", "fcntl", "http", "io", "logging", "multiprocessing", "mmap", "os", "pathlib",
    "queue", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "sys",
    "tempfile", "threading", "time", "urllib.request", "uuid", "warnings",
}  # fmt: skip
# What the pure layers may use from outside the standard library.
PURE_LIBRARIES = {"numpy", "cryptography", "msgspec", "_typeshed"}
PURE = {"core", "formats"}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, those inside functions and under TYPE_CHECKING included."""
    package = ["megalfs", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield node.lineno, module
            if module in (
                "megalfs",
                "megalfs.core",
                "megalfs.node",
                "megalfs.store",
                "megalfs.net",
                "megalfs.cli",
            ):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


@pytest.fixture(params=MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def module(request: pytest.FixtureRequest) -> tuple[Path, str, ast.Module]:
    path: Path = request.param
    text = path.read_text(encoding="utf-8")
    return path, text, ast.parse(text)


def test_imports_point_inward(module: tuple[Path, str, ast.Module]) -> None:
    path, _, tree = module
    layer = layer_of(path)
    for line, name in imports_of(tree, path):
        parts = name.split(".")
        where = f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        if parts[0] == "megalfs_ext":
            assert layer in KERNELS, where
        elif parts[0] == "megalfs" and len(parts) > 1 and parts[1] != "__version__":
            assert {parts[1], ".".join(parts[1:3])} & ALLOWED.get(layer, set()), where


def test_core_is_pure(module: tuple[Path, str, ast.Module]) -> None:
    path, _, tree = module
    if layer_of(path) not in PURE:
        return
    for line, name in imports_of(tree, path):
        where = f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        top = name.split(".")[0]
        assert not {name, top} & IMPURE, where
        assert top in {"megalfs", "megalfs_ext"} | PURE_LIBRARIES | sys.stdlib_module_names, where
        assert top != "random" or is_only_random_class(tree), where
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{path}:{node.lineno} is async"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input", "exec", "eval"}, f"{path}:{node.lineno}"


def is_only_random_class(tree: ast.Module) -> bool:
    """The class `Random`, handed in seeded, is the one thing of `random` that a pure layer may name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names):
            return False
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            return [alias.name for alias in node.names] == ["Random"]
    return True


def test_only_ui_prints(module: tuple[Path, str, ast.Module]) -> None:
    path, _, tree = module
    if path == PACKAGE / "cli" / "ui.py":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path.relative_to(REPOSITORY)}:{node.lineno} prints"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            is_stream = node.value.attr in {"stdout", "stderr"} and node.attr == "write"
            assert not is_stream, f"{path.relative_to(REPOSITORY)}:{node.lineno} writes to a standard stream"


def test_files_and_functions_are_short(module: tuple[Path, str, ast.Module]) -> None:
    path, text, tree = module
    name = path.relative_to(REPOSITORY)
    assert text.count("\n") <= LINES_MAX, f"{name} has {text.count(chr(10))} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{name}:{node.lineno} {node.name} has {lines} lines"


def test_every_module_says_what_it_is_for(module: tuple[Path, str, ast.Module]) -> None:
    path, text, tree = module
    assert not text or ast.get_docstring(tree), f"{path.relative_to(REPOSITORY)} opens without a docstring"


TEXT_SUFFIXES = {".py", ".md", ".toml", ".c", ".h", ".pyi", ".cfg", ".sh", ""}
# Absolute paths of one machine, and the hosts of package registries: neither belongs in a file of ours.
# Put together here, so that this file names none of them itself.
FOREIGN = re.compile(
    "|".join(["/home/[a-z]+/", "/Users/[A-Za-z]+/", "/root/", r"py" r"pi\.org", r"python" r"hosted\.org"])
)


def tracked_texts() -> Iterator[Path]:
    for directory in ("megalfs", "megalfs_ext", "tests", "bench", "scripts", "configs"):
        for path in sorted((REPOSITORY / directory).rglob("*")):
            if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts:
                yield path
    yield from (
        REPOSITORY / name for name in ("Makefile", "README.md", "CHANGELOG.md", "setup.py", "pyproject.toml")
    )


def test_no_file_names_a_machine() -> None:
    for path in tracked_texts():
        if path == Path(__file__) or not path.exists():
            continue
        found = FOREIGN.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{path.relative_to(REPOSITORY)} says {found and found[0]!r}"


def test_tests_never_sleep() -> None:
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "sleep"
            ):
                owner = node.func.value
                is_time = isinstance(owner, ast.Name) and owner.id == "time"
                assert not is_time, f"{path.name}:{node.lineno} sleeps; poll with processes.wait_until"


# What the documents claim.


def test_links_in_documents_lead_somewhere() -> None:
    for document in [*REPOSITORY.glob("*.md"), REPOSITORY / "bench" / "README.md"]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_commands_in_documents_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in (REPOSITORY / "README.md", REPOSITORY / "bench" / "README.md", REPOSITORY / "Makefile"):
        text = document.read_text(encoding="utf-8")
        for name in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)  ", text, re.MULTILINE):
            assert "".join(name) in targets, f"{document.name} says make {''.join(name)}"
        for script in re.findall(r"\b((?:bench|scripts|tests)/[a-z_]+\.(?:py|sh))", text):
            assert (REPOSITORY / script).exists(), f"{document.name} runs {script}"


def test_readme_knows_every_exit_code() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = {
        int(code)
        for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)
        for code in re.findall(r"\| (\d+)", row)
    }
    source = (PACKAGE / "errors.py").read_text(encoding="utf-8")
    used = {int(code) for code in re.findall(r"exit_code = (\d+)", source)}
    assert used <= table, f"not in README.md: {used - table}"
