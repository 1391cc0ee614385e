# make compare [DATA=census-income]   set-up, then the main job: train the methods side by side and write a report
# make test                           set-up, then all tests
# make check                          set-up, then format, lint, types and the import contract
PYTHON ?= python3
DATA ?= complete-journey
ARGS ?=
BIN := .venv/bin
export EQUIPOISE_DATA ?= $(abspath $(firstword $(wildcard ../shared/data)))
export PYTHONUNBUFFERED := 1

.PHONY: setup compare test check clean

setup: .venv/.installed

# torch first: its build for machines without a GPU carries a local version ("+cpu") that only some indexes have.
.venv/.installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "equipoise needs Python 3.11 or newer, found $$($(PYTHON) --version). Say which: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	if $(BIN)/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$$torch')" 2>/dev/null; then :; \
	elif command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q "torch==$$torch"; \
	elif $(BIN)/pip install -q "torch==$$torch+cpu" 2>/dev/null; then :; \
	else echo "No CPU-only build of torch $$torch in pip's indexes: taking the standard build, several GB larger."; \
	  echo "(To avoid that, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, see pytorch.org, and run make again.)"; \
	  $(BIN)/pip install -q "torch==$$torch"; fi
	@echo "Installing equipoise and its tools into .venv ..."
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

compare: setup
	$(BIN)/equipoise compare --data $(DATA) $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv runs build dist
