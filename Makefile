# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Many tests wait for deadlines of processes that they start; a module's tests share what it has made.
PARALLEL := -n 3 --dist loadfile

.PHONY: bench demo test test-slow test-all lint types lock clean

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

lock: $(STAMP)  ## Write requirements.lock anew after a change of pyproject.toml; UPGRADE=--upgrade takes new versions
	$(BIN)/uv --config-file lock.toml pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --extra dev \
		--generate-hashes --no-annotate --no-emit-package torch --custom-compile-command 'make lock' \
		--output-file requirements.lock pyproject.toml

# torch comes by its pin: a range would fetch a build for GPUs. It comes after the lock, which has all that a build for
# CPUs needs; see lock.toml. Wheels only, for what builds a package has no hash.
$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes --only-binary :all: --requirement requirements.lock
	$(INSTALL) torch==2.13.0
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-out
