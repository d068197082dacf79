# `make reproduce` and `make test` need only Python 3.11 or 3.12 and a C++ compiler; all else goes into $(VENV).
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& { echo $$p; break; }; done)
METHOD ?= ssc
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help reproduce test lint clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

reproduce: $(VENV)/.installed  ## install and reproduce METHOD (default: ssc) on the generated data set; ARGS="key=value ..." adds arguments
	$(BIN)/python reproduce.py --method $(METHOD) $(ARGS)

test: $(VENV)/.installed-dev  ## install with the test tools and run the test suite; ARGS="-m slow" runs the slow ones
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff check, ruff format --check, pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:  ## remove the virtual environment (results in .wsss stay)
	rm -rf $(VENV)

# The stamps are older than pyproject.toml after it changed: then pip runs again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@ $(VENV)/.installed

# pydensecrf2 (the dense CRF) comes as C++ source: say what is missing before pip fails in the middle.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found: install one, or give its" \
		"path as make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@for c in "$(CXX)" c++ g++ clang++; do command -v $$c >/dev/null 2>&1 && exit 0; done; \
		echo "A C++ compiler is needed to build pydensecrf2 and was not found: install one" \
		"(Debian, Ubuntu: apt install g++; macOS: xcode-select --install)" >&2; exit 1
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; \
		sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' \
		|| { echo "The headers of $(PYTHON) are needed to build pydensecrf2: install them" \
		"(Debian, Ubuntu: apt install python3-dev)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) can not make a virtual environment: install" \
		"its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
