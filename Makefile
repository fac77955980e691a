# Everything a fresh clone needs: Python 3.11 or newer and make. Each target installs what it uses into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Versions that the tests are known to pass with; CONSTRAINTS=/dev/null takes the newest.
CONSTRAINTS ?= constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

# Tests that compile no network: seconds each. `make test` runs all of them.
FAST := tests/audit tests/data tests/formats tests/metrics tests/prepare tests/synthetic \
  $(wildcard tests/test_canvas.py tests/test_files.py tests/test_palette.py tests/test_prose.py tests/test_rooms.py)

.PHONY: help demo test check lint types fast tpu docs format clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

demo: .venv/.demo  ## segment synthetic circuit boards by example, fine-tune, segment again, draw a picture
	$(BIN)/python demo.py $(DEMO)

test: .venv/.test  ## the whole test suite, on two processes
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

check: lint types fast  ## lint, types and the fast tests: run this before every commit

lint: .venv/.test  ## style and formatting, and the container file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: .venv/.test  ## type-check the public face
	$(BIN)/basedpyright --pythonpath $(BIN)/python

fast: .venv/.test  ## the tests that compile no network
	$(BIN)/python -m pytest -n 2 $(FAST)

tpu: .venv/.test  ## compile a training step for a TPU that is not there
	$(INSTALL) --editable '.[tpu-compile]'
	$(BIN)/python -m pytest -m tpu tests/benchmarks

docs: .venv/.docs  ## build the documentation site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: .venv/.test  ## fix style and formatting in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, the demo's results and the built site
	rm -rf .venv demo_run site

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "found Python %d.%d, expected 3.11 or newer: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	touch $@

.venv/.docs: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[docs]'
	touch $@

# PyTorch first: it is the one package whose CPU build has to be requested by its exact version.
.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) --editable '.[demo,test]'
	touch $@
