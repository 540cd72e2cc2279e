# `make` lists the targets. Everything goes into $(VENV); nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2
PYTEST := -m pytest -n $(PYTEST_WORKERS) --dist loadfile
.DEFAULT_GOAL := help
.PHONY: help demo test test-all check lint bench gpu-check seed structure clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

demo: $(INSTALLED) ## the whole pipeline on the embedded cohort, without downloads or GPU
	PATH="$(BIN):$$PATH" dvc repro
	@$(BIN)/ensemble report --show

test: $(INSTALLED) ## the tests but the slow ones; on real ECGs where ENSEMBLE_TEST_DATA and ENSEMBLE_PARITY are set
	PATH="$(BIN):$$PATH" $(BIN)/python $(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(INSTALLED) ## all tests, also those that take minutes
	PATH="$(BIN):$$PATH" $(BIN)/python $(PYTEST) $(PYTEST_ARGS)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## ruff, mypy and the tests

bench: $(INSTALLED) ## every benchmark, each with its reference in the same run
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

gpu-check: ## what a GPU makes of all this, in nine minutes at most; needs no installation (benchmarks/gpu_check.py)
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_check.py $(ARGS)

structure: ## count rooms, arrows between them, names with two meanings
	@$(PYTHON) tests/structure.py

seed: $(INSTALLED) ## pretrain the weights of expert `seed` again, in build/seed (docs/seed.md)
	mkdir -p build/seed && cp weights/seed.yaml build/seed/params.yaml
	cd build/seed && PATH="$(BIN):$$PATH" && export OMP_NUM_THREADS=1 && \
	  { [ -e records.parquet ] || { rm -rf data signals.zarr && ensemble generate && ensemble ingest; }; } && \
	  ensemble pretrain --name seed+generated
	@echo "weights: build/seed/weights/versions/seed+generated/model.safetensors"

clean: ## remove what the demo made, and the environment
	rm -rf $(VENV) .ensemble data embeddings heads plots signals.zarr
	rm -f records.parquet bad_records.csv metrics.json headline.json evaluation.json evaluate_costs.json fit_costs.json \
	  predictions.parquet gate_weights.parquet report.html dvc.lock

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
