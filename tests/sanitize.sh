#!/bin/sh
# Runs the kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of their own.
#
# The interpreter is not instrumented, so libasan must be loaded before it; leaks are not looked for, because
# CPython frees little at its exit. Any report ends the run with an error.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
case $python in /*) ;; *) python=$PWD/$python ;; esac
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

MEGALFS_SANITIZE=1 "$python" -W ignore setup.py -q build_ext --build-temp "$build/temp" --build-lib "$build"
cp megalfs_ext/*.py megalfs_ext/*.pyi "$build/megalfs_ext/"
mkdir "$build/tests"
cp tests/test_kernels*.py "$build/tests/"
rm "$build/tests/test_kernels_wrong.py"  # compiles a module of its own, from sources that are not here
cp -R tests/vectors "$build/tests/"
cp pyproject.toml "$build/"

cd "$build"
ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=99 \
UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
PYTHONPATH=$build PYTHONDONTWRITEBYTECODE=1 \
    "$python" -m pytest -q -p no:cacheprovider "$@" tests
