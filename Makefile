# What people and CI run. Every target makes what it needs: the first one builds .venv, which takes a minute.

VENV := .venv
BIN := $(VENV)/bin
DEPS := $(VENV)/.deps
READY := $(VENV)/.ready
COMPILED := $(wildcard megalfs_ext/*.c megalfs_ext/*.h megalfs/core/*.py)
SIM_SEEDS ?= 300
FUZZ_SECONDS ?= 60
TEST ?=
TEST_WORKERS ?= 3
CHECKED := megalfs megalfs_ext tests bench scripts setup.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench bench-swarm sim fuzz sanitize clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## .venv with megalfs, editable, and the tools that the other targets need

$(DEPS): pyproject.toml setup.py
	@echo "megalfs: making $(VENV)"
	@python=$$(scripts/bootstrap) && "$$python" -m venv $(VENV)
	@MEGALFS_PURE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# pip built the kernels only. This takes a minute, as it does after every change of the scheduler.
$(READY): $(DEPS) $(COMPILED)
	@echo "megalfs: compiling the kernels and the scheduler"
	@rm -f megalfs/core/*.so  # one that is not built again would hide its source
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@for each in megalfs/core/*.so; do [ ! -e "$$each" ] || touch "$$each"; done  # newer than their sources: see conftest.py
	@touch $@

demo: $(READY)  ## a real model published, seeded by several nodes, pulled from all of them at once
	@$(BIN)/python scripts/demo.py

test: $(READY)  ## everything; TEST=path::name for some of it
	@scripts/install-git-lfs
	$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile $(TEST)

check: $(READY)  ## format, lint, types, layers
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(READY)  ## rewrite what `check` would complain about, where a tool can
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

bench: $(READY)  ## kernels, publish and pull beside their rivals: the tables of bench/README.md
	$(BIN)/python bench/bench_kernels.py
	$(BIN)/python bench/bench_publish.py
	$(BIN)/python bench/bench_pull.py
	$(BIN)/python bench/bench_many.py
	$(BIN)/python bench/bench_dedup.py
	$(BIN)/python bench/bench_tls.py
	$(BIN)/python bench/bench_scheduler.py
	$(BIN)/python bench/bench_memory.py

bench-swarm: $(READY)  ## many receivers on shaped links, against what theory allows; needs root
	$(BIN)/python bench/bench_swarm.py

sim: $(READY)  ## SIM_SEEDS simulated swarms with loss and crashes; then 64, 1,000 and 10,000 nodes (half an hour)
	SIM_SEEDS=$(SIM_SEEDS) $(BIN)/python -m pytest -q $(wildcard tests/test_sim*.py tests/sim/test_*.py)
	$(BIN)/python bench/sim.py

fuzz: $(READY)  ## every parser on random input, FUZZ_SECONDS each
	@for target in tests/fuzz/fuzz_*.py; do \
		echo "$$target"; $(BIN)/python "$$target" --seconds $(FUZZ_SECONDS) || exit 1; done

sanitize: $(READY)  ## the kernels' tests under ASan and UBSan, in a build of their own
	PYTHON=$(BIN)/python sh tests/sanitize.sh

clean:  ## what was built; .venv and .cache stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f megalfs_ext/*.so megalfs/core/*.so $(READY)
	find megalfs megalfs_ext tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +
