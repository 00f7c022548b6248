# Everything a bare machine with Python 3.11, gcc and make needs: an environment in .venv, then the command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/$(shell date +%Y-%m-%d-%H%M%S)

.PHONY: report test lint clean

report: $(VENV)/ready
	$(BIN)/python -m harness run --all --out $(OUT)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/in_jax
	$(BIN)/python -m pytest -m alone

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV)
