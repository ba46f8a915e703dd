# `make demo` and `make test` do everything on a fresh clone: virtual environment, pinned install, the job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test kills check install clean

demo: $(READY)  ## the offline first run
	@echo "== preftune demo: about 90 s on two cores; everything goes to demo-run/"
	$(BIN)/preftune demo --out demo-run

test: $(READY)  ## all tests
	@echo "== tests: some minutes on two cores, offline"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

kills: $(READY)  ## preftune iterate, killed at twenty random moments
	PREFTUNE_KILLS=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/workflows/test_iterate.py -k killed

check: $(READY)  ## lint, format and types
	@scripts/check

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "preftune needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@echo "== setting up $(VENV) with the versions in constraints.txt (torch alone is about 200 MB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) demo-run build dist *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
