# Two commands do everything on a fresh machine: `make search` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# One thread per test process: two of them share the cores.
test: export OMP_NUM_THREADS := 1

.PHONY: help search test check lint types imports bench ui setup
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

# Installed once; again only when the dependencies change.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,movies]'
	@touch $@

setup: $(STAMP)  ## create .venv and install

search: $(STAMP)  ## run the main job: the ViViT search, on simulated recordings when none are given
	$(BIN)/python hpo/search.py vivit $(ARGS)

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

check: lint types imports test  ## everything CI runs

bench: $(STAMP)  ## run every benchmark
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

ui: $(STAMP)  ## open the MLflow page of the local runs
	$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db --port 5000
