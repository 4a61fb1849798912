# make search: set up and run a real multitask search. make test: set up and run all tests.
# make docs: the site, in build/docs. make notebooks: the notebooks, out of the sources beside them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: search test lint docs notebooks clean

search: .venv/run.stamp
	$(BIN)/python -m experiments.multitask

test: .venv/dev.stamp
	$(BIN)/python -m pytest --numprocesses=auto

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs.stamp
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

notebooks: .venv/dev.stamp
	$(BIN)/python -m jupytext --to notebook notebooks/*.py

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev.stamp: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[dev]
	touch $@ .venv/run.stamp

.venv/docs.stamp: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[docs]
	touch $@
