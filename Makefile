# Each target creates .venv, installs pinned versions and then runs. `make help` lists the targets.
# make test PYTHON=python3.13                          another Python
# make test CONSTRAINTS=constraints-oldest.txt         the oldest supported versions (delete .venv first)
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test kills torture check docs package install help clean

demo: $(READY)  ## train a small model on preferences and report the result (about 100 s, offline)
	@echo "== preftune demo: about 100 s on two cores; all files go to demo-run/"
	$(BIN)/preftune demo --out demo-run

test: $(READY)  ## run all tests (some minutes on two cores, offline)
	@echo "== tests: some minutes on two cores, offline"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 $(if $(findstring oldest,$(CONSTRAINTS)),-W default)

kills: $(READY)  ## kill `preftune iterate` at twenty random moments and check that it resumes (some minutes)
	PREFTUNE_KILLS=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/workflows/test_iterate.py tests/unit/train/test_every_call.py -k "kill or disk"

torture: $(READY)  ## break preftune on purpose in every way, 30 cases of each (about 10 minutes; needs Linux)
	scripts/torture all --count 30

check: $(READY)  ## lint, check the format and the types
	@scripts/check

docs: $(READY)  ## build the documentation into build/docs, and check its commands, snippets and links
	$(BIN)/python scripts/docs.py --check
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs
	@echo "== open build/docs/index.html"

package: $(READY)  ## build the source distribution and the wheel into dist/ and test them
	$(BIN)/python -m pytest tests/shape/test_package.py
	rm -rf dist
	$(BIN)/python -c 'import setuptools.build_meta as backend; backend.build_sdist("dist")'
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist dist/*.tar.gz

install: $(READY)  ## create .venv with pinned versions

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "preftune needs Python 3.11 or newer. Name one: make PYTHON=python3.12"; exit 1; }
	@echo "== setting up $(VENV) with the versions in $(CONSTRAINTS) (torch alone is about 200 MB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev,docs]'
	@touch $(READY)

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

clean:  ## delete .venv and everything that builds, tests and the demo wrote
	rm -rf $(VENV) demo-run build dist *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
