# make demo and make test need Python 3.11 or later and make; each sets up .venv by itself.
PYTHON ?= python3
VENV ?= .venv
# processes that share the tests, whole files each; 0 is one process, in order
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo train-demo train-pages test test-full-size lint bench clean

help:
	@echo "make demo             the whole way on a small trained model: export, int8, search, recall, timings"
	@echo "make train-demo       that model again, into demo-checkpoint; an interrupted run goes on"
	@echo "make train-pages      the small document model again, into pages-checkpoint; an interrupted run goes on"
	@echo "make test             the tests"
	@echo "make test-full-size   865 M random parameters: export, memory, parity (10 GB of disk, minutes)"
	@echo "make lint             ruff, ruff format, mypy"
	@echo "make bench            the full-size latencies in bench/results"
	@echo "make clean            remove .venv and the caches"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "edgeclip needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/edgeclip demo

train-demo: $(READY)
	$(BIN)/edgeclip bench train-demo demo-checkpoint

train-pages: $(READY)
	$(BIN)/edgeclip bench train-pages pages-checkpoint

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-full-size: $(READY)
	$(BIN)/python -m pytest -m full_size -s

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/edgeclip bench full-size bench/results

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
