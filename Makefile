PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $(INSTALLED)

install: $(INSTALLED)  ## Make a virtual environment in .venv and install the package into it

demo: $(INSTALLED)  ## Train a teacher, distil a student from it, show what it gained (offline, minutes)
	$(BIN)/python scripts/demo.py

test: $(INSTALLED)  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile

test-slow: $(INSTALLED)  ## Run the slow tests too (several processes, ImageNet weights, compilation)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile -m "slow or not slow"

check: $(INSTALLED)  ## Lint: style, formatting, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: $(INSTALLED)  ## Build the documentation into site/; broken links and unknown names fail
	$(BIN)/mkdocs build --quiet --strict

benchmark: $(INSTALLED)  ## Time the distillation step, the trainer, the losses, augmentation and mIoU against plain versions
	$(BIN)/python scripts/benchmark.py
	$(BIN)/python scripts/benchmark_fakd.py
	$(BIN)/python scripts/benchmark_losses.py
	$(BIN)/python scripts/benchmark_data.py
	$(BIN)/python scripts/benchmark_large.py

gpu: $(INSTALLED)  ## Run what needs a GPU, and write what a step costs on it into docs/gpu.md (8 minutes)
	$(BIN)/python scripts/gpu_check.py

clean:  ## Remove the virtual environment and caches, keep runs/
	rm -rf $(VENV) site .pytest_cache .ruff_cache .import_linter_cache *.egg-info

.PHONY: help install demo test test-slow check docs benchmark gpu clean
