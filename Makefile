# make demo and make test each set up all they need: a virtual environment in .venv, from Python >= 3.11 and pip alone.

PYTHON ?= python3
BIN := .venv/bin
DEMO_OUT ?= demo-output

.PHONY: install demo test check docs format clean

install: .venv/installed  ## everything, for work on prefkit

demo: .venv/installed-train  ## raw ratings -> pairs -> SFT -> DPO -> evaluation, on the embedded data
	$(BIN)/python -m prefkit.demo --out $(DEMO_OUT)

# Three workers for two cores: much of a test of ranks, of Ray or of a kill is waiting.
test: .venv/installed  ## all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests

check: .venv/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## the documentation site, in site/
	$(BIN)/mkdocs build

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(DEMO_OUT) site dist .mypy_cache .ruff_cache .pytest_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "prefkit needs Python 3.11 or newer; set PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed-train: .venv/bin/python pyproject.toml constraints.txt
	@echo "pip installs prefkit and what training needs, torch above all, into .venv: some minutes, a few GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	@touch $@

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "pip installs prefkit with all extras and the tools for work on it into .venv: some minutes, a few GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,url,hub,ray,dev]'
	@touch $@ .venv/installed-train
