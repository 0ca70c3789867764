"""Builds megalfs_ext._kernels with nothing but a C compiler: no per-file flags.

Each C file raises its own instruction set with `__attribute__((target(...)))`, so the same command builds
on every machine and the choice is made at run time. MEGALFS_SANITIZE=1 builds with ASan and UBSan.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
sanitize = SANITIZE if os.environ.get("MEGALFS_SANITIZE") else []

setup(
    ext_modules=[
        Extension(
            "megalfs_ext._kernels",
            sources=sorted(str(path) for path in Path("megalfs_ext").glob("*.c")),
            depends=sorted(str(path) for path in Path("megalfs_ext").glob("*.h")),
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", *sanitize],
            extra_link_args=sanitize,
        )
    ]
)
