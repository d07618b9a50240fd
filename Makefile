# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Many tests wait for deadlines of processes that they start; a module's tests share what it has made.
PARALLEL := -n 3 --dist loadfile

.PHONY: bench demo test test-slow test-all lint types clean

demo: $(STAMP)  ## Train a model under encryption on this machine
	$(BIN)/hefl demo --out demo-out --force

test: $(STAMP)  ## The tests, but those that take long
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(STAMP)  ## The tests that take long; FUZZ_SEED=7 make test-slow tries other inputs
	$(BIN)/python -m pytest -m slow $(PARALLEL)

test-all: test test-slow

bench: $(STAMP)  ## Measure, and write benchmarks/README.md from what was measured
	for name in engines rounds threads authenticate startup load soak report; do $(BIN)/python benchmarks/$$name.py || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# torch comes first and by its pin: a range would fetch a build for GPUs.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-out
