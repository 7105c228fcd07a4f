# Everything sets itself up: a machine with Python (3.10 or later), pip and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: install lint docs test demo clean

install: $(VENV)/installed

# A broken or half-made environment is not marked as installed and is made again.
$(VENV)/installed: pyproject.toml nnunet_plugins/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -E docs docs/_build

# Lint and docs side by side, each of which keeps one core busy.
test: install
	$(MAKE) -j2 lint docs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

demo: install
	$(BIN)/nnunet-plugins demo --output .demo

clean:
	rm -rf $(VENV) .demo docs/_build
