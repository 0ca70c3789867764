"""Builds the C: megalfs_ext._kernels with nothing but a C compiler, and the scheduler with mypyc where it is.

Kernels need no per-file flags: each C file raises its own instruction set with `__attribute__((target(...)))`, so
the same command builds on every machine and the choice is made at run time. MEGALFS_SANITIZE=1 builds with ASan and
UBSan. The scheduler is Python all the same, and runs as such where mypyc is missing, where its C cannot be
compiled, and with MEGALFS_PURE=1: slower, with the same decisions. Without a C compiler everything is Python.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError

SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
sanitize = SANITIZE if os.environ.get("MEGALFS_SANITIZE") else []

# What a node does for every message and every piece. Types of the messages stay Python: msgspec makes them in C.
SCHEDULER = [
    f"megalfs/core/{module}.py"
    for module in (
        *("availability", "bitfield", "codec", "fetching", "gateways", "grants", "meter", "news"),
        *("picker", "pieces", "promises", "serving", "session", "state", "swarm", "uploads"),
    )
]
METADATA_ONLY = {"egg_info", "dist_info", "sdist"}  # pip asks for these first
LIBRARY = "megalfs.core._scheduler"


def compiled_scheduler() -> list[Extension]:
    """The scheduler's modules as extensions; none where they stay Python."""
    if os.environ.get("MEGALFS_PURE") or sanitize or METADATA_ONLY & set(sys.argv):
        return []
    try:
        from mypyc.build import mypycify

        # No configuration: `make check` is the judge of types, not the mypy of a later year.
        extensions: list[Extension] = mypycify(
            ["--config-file=", *SCHEDULER], opt_level="2", group_name=LIBRARY
        )
    except (ImportError, SystemExit):  # it has printed what was wrong
        sys.stderr.write("megalfs: the scheduler stays Python, which is slower\n")
        return []
    return extensions


class Build(build_ext):
    """Builds the kernels, then all of the scheduler or none of it: its modules need the library that they share.

    What cannot be built is left to Python, with a warning; but not the kernels by `make`, whose tests want them.
    """

    def build_extensions(self) -> None:
        built = []
        kernels = [each for each in self.extensions if each.name.startswith("megalfs_ext")]
        scheduler = [each for each in self.extensions if each not in kernels]
        for what, group in (("kernels", kernels), ("scheduler", scheduler)):
            self.extensions = group
            try:
                super().build_extensions()
                built += group
            except (BaseError, CompileError) as error:
                if group is kernels and "--inplace" in sys.argv:
                    raise
                self.warn(f"the {what} will run in Python, which is slower: {error}")
                for extension in group:
                    Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = built


setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        Extension(
            "megalfs_ext._kernels",
            sources=sorted(str(path) for path in Path("megalfs_ext").glob("*.c")),
            depends=sorted(str(path) for path in Path("megalfs_ext").glob("*.h")),
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", *sanitize],
            extra_link_args=sanitize,
        ),
        *compiled_scheduler(),
    ],
)
