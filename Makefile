# `make help` lists what there is. Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each compiles kernels, which takes most of the time, and needs up to 7 GB of the GPU's memory.
GPU_WORKERS ?= 8
# mypy cannot follow an editable install whose folders are mapped, so it reads this picture of the package.
TYPES := build/types

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint test-slow test-gpu bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv and install longconv with every tested version

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## train, distil and generate with a small Hyena language model (about 6 minutes)
	$(BIN)/longconv demo

test: lint  ## lint, types and the whole test suite
	$(BIN)/pytest -n auto -m "not slow and not gpu and not network"

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/longconv
	@ln -s $(CURDIR)/longconv/* $(CURDIR)/kernels $(CURDIR)/tasks $(CURDIR)/experiments $(TYPES)/longconv/
	MYPYPATH=$(TYPES) $(BIN)/mypy -p longconv

test-slow: $(STAMP)  ## tests that take more than a minute each: every kernel compiled for every GPU (about 20 minutes)
	$(BIN)/pytest -n auto -m "slow and not gpu and not network"

test-gpu: $(STAMP)  ## tests that need a GPU, in GPU_WORKERS processes (8: about 60 GB of its memory)
	$(BIN)/pytest -m gpu -n $(GPU_WORKERS) tests

bench: $(STAMP)  ## benchmarks of operators, on a GPU if there is one: experiments/benchmarks/results/*.csv
	$(BIN)/longconv bench fftconv

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
