# Everything here works on a machine with Python 3.11 to 3.14, git and make; nothing is installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test tests line search lint lock clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(INSTALLED) ## make the environment in .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "msrrn needs Python 3.11 to 3.14: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --group dev --editable '.[server]'
	@# All cores do it here, where pip takes one; a few packages hold files for other Pythons. Ours too: where Python is
	@# told to write no bytecode, each of the many processes that tests start compiled them again.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib flows msrrn pipelines || true
	@touch $@

demo: $(INSTALLED) ## the whole line on synthetic photographs
	$(BIN)/msrrn demo

lint: $(INSTALLED) ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(INSTALLED) ## environment, linter, type checker, tests
	@# Types keep one core busy for a minute; tests have the other meanwhile.
	@$(MAKE) --no-print-directory -j 2 lint tests

tests: $(INSTALLED)
	$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

line: $(INSTALLED) ## the whole line, servers, clusters and trainings on Ray, while they die: some twenty minutes
	$(BIN)/python -m pytest -m line

search: $(INSTALLED) ## the property tests with more and other examples than `make test`: two minutes
	$(BIN)/python -m pytest -n 4 --dist loadgroup -m "hypothesis and not line" --hypothesis-profile search

lock: $(INSTALLED) ## write down the versions that are installed, and keep what prefect needs from Python 3.13 on
	{ $(BIN)/python -m pip freeze --exclude-editable | grep -v ^whenever= | sed 's/+cpu//; s/ @ .*//'; \
		grep ^whenever= constraints.txt; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean: ## remove the environment and what the demo made (mlflow.db may hold real champions: it stays)
	rm -rf $(VENV) demo-out
