# `make` lists the targets. Everything goes into $(VENV); nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2
PYTEST := -m pytest -n $(PYTEST_WORKERS) --dist loadfile
.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest test-newest check lint docs dist bench gpu-check seed structure clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 13

demo: $(INSTALLED) ## the whole pipeline on the embedded cohort, without downloads or GPU
	PATH="$(BIN):$$PATH" dvc repro
	@$(BIN)/ensemble report --show

test: $(INSTALLED) ## the tests but the slow ones; on real ECGs where ENSEMBLE_TEST_DATA and ENSEMBLE_PARITY are set
	PATH="$(BIN):$$PATH" $(BIN)/python $(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(INSTALLED) ## all tests, also those that take minutes
	PATH="$(BIN):$$PATH" $(BIN)/python $(PYTEST) $(PYTEST_ARGS)

test-lowest: ## the tests but the slow ones on the lowest versions that pyproject.toml allows
	$(call tested_at,lowest-direct)

test-newest: ## the same on the newest there are
	$(call tested_at,highest)

# $(VENV)-RESOLUTION holds that environment; torch comes as the package index has it, which may be a CUDA build of gigabytes.
define tested_at
	$(PYTHON) -m venv $(VENV)-$(1)
	$(VENV)-$(1)/bin/pip install --quiet uv
	$(VENV)-$(1)/bin/uv pip compile --quiet --no-header --resolution $(1) --python $(VENV)-$(1)/bin/python \
	  --extra test --output-file $(VENV)-$(1)/versions.txt pyproject.toml
	$(VENV)-$(1)/bin/uv pip install --quiet --python $(VENV)-$(1)/bin/python -r $(VENV)-$(1)/versions.txt
	$(VENV)-$(1)/bin/uv pip install --quiet --python $(VENV)-$(1)/bin/python --no-deps --editable .
	PATH="$(abspath $(VENV)-$(1))/bin:$$PATH" $(VENV)-$(1)/bin/python $(PYTEST) -m "not slow" $(PYTEST_ARGS)
endef

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## ruff, mypy and the tests

docs: $(INSTALLED) ## the documentation as a site in build/site; a broken link is an error
	PYTHONPATH=. $(BIN)/python docs/tools/commands.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

dist: $(INSTALLED) ## wheel and source distribution in build/dist, checked
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist .
	$(BIN)/twine check --strict build/dist/*

bench: $(INSTALLED) ## every benchmark, each with its reference in the same run
	@for name in $(subst /,.,$(basename $(filter-out benchmarks/gpu_check.py,$(wildcard benchmarks/*.py benchmarks/scale/*.py)))) \
	    benchmarks.adaptation.generated benchmarks.adaptation.rotated benchmarks.verdict; do \
	  echo "== $$name"; $(BIN)/python -m $$name || exit 1; done

gpu-check: ## what a GPU makes of all this, in nine minutes at most; needs no installation (benchmarks/gpu_check.py)
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_check.py $(ARGS)

structure: ## count rooms, arrows between them, names with two meanings
	@$(PYTHON) tests/structure.py

seed: $(INSTALLED) ## train the weights of expert `seed` again (docs/seed.md); DATA: where PTB-XL lies unpacked as ptbxl-all
	@test -n "$(DATA)" || { echo "say where the records are: make seed DATA=FOLDER"; exit 1; }
	PATH="$(BIN):$$PATH" $(BIN)/python -m weights.seed_expert build/seed encoders --data $(DATA) --folds all --members 3
	PATH="$(BIN):$$PATH" $(BIN)/python -m weights.pack_seed \
	  $(foreach k,all all-1 all-2,build/seed/encoders/$(k)/weights/versions/seed+ptbxl) --records build/seed/encoders/all/records.parquet

clean: ## remove what the demo made, and the environment
	rm -rf $(VENV) .ensemble data embeddings heads plots tables maps robustness leaderboard signals.zarr
	rm -f records.parquet bad_records.csv metrics.json headline.json evaluation.json evaluate_costs.json fit_costs.json \
	  decisions.json map.html map.parquet \
	  predictions.parquet gate_weights.parquet report.html dvc.lock

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
