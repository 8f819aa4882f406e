# dgis: the two commands are `make demo` and `make test`. Needs Python >= 3.11 with venv, and make; nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
HOME_UP ?= .grid
N      ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo up test soak lint bench docs golden lock clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the virtual environment with everything that tests and tools need

$(STAMP): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dgis needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: install it (Debian: apt-get install python3-venv)"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

demo: $(STAMP) ## a grid on this machine does the main job on real images and shows it in a table
	@$(BIN)/dgis demo

up: $(STAMP) ## a local grid that stays up for your own viewer (Ctrl-C stops it; state in $(HOME_UP))
	$(BIN)/dgis up --home $(HOME_UP)

test: $(STAMP) ## every test that this machine can run
	$(BIN)/python -m pytest -n $(N) --dist loadfile tests || { [ $$? = 1 ] && $(BIN)/python -m tests.again; }

soak: $(STAMP) ## the long runs (an hour): kills, 10,000 associations, 1300 images
	$(BIN)/python -m pytest -m soak -o timeout=3600 -s tests

lint: $(STAMP) ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

golden: $(STAMP) ## what the example sites render to, written anew in tests/golden: look at the diff
	DGIS_GOLDEN=write $(BIN)/python -m pytest tests/golden

bench: $(STAMP) ## side by side with the peers that this machine has (half an hour); docs/speed.md shows it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m bench; code=$$?; $(BIN)/python -m bench.page && exit $$code

docs: $(STAMP) ## the documentation as HTML in docs/_build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html

lock: $(STAMP) ## write constraints.txt anew from what is installed now
	$(BIN)/python -m pip freeze --exclude-editable --exclude dgis | grep -v ' @ ' > constraints.txt

clean: ## what the commands above left here (not $(HOME_UP))
	rm -rf $(VENV) docs/_build .demo build dist *.egg-info
