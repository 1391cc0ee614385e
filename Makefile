# make compare [DATA=census-income]   set-up, then the main job: train the methods side by side and write a report
# make test                           set-up, then all tests
# make test-distributed               set-up of TorchRec and the integrations, then the tests that need them
# make test-floor                     set-up of the lowest versions that pyproject.toml promises, then all tests with them
#                                     (on x86_64 pip may take several GB for the older torch)
# make evidence                       set-up, then every method on every data set of benchmarks/evidence.yaml, tuned alike
#                                     (hours; interrupt it at will, the same command goes on)
# make nightly                        set-up, then the tests that take minutes, such as the short form of that suite
# make accelerator                   tests and speed on an accelerator, at most 8 minutes; no set-up: PYTHON needs torch and
#                                     pytest only, and the results come into benchmarks/results/accelerator
# make bench                          set-up of other libraries to compare with, then the timings of this machine, at most
#                                     20 minutes: rewrites the tables in benchmarks/results. Let nothing run beside it
# make bench-compare                  which ratios of these tables became worse by more than 3 % against the committed ones;
#                                     no set-up. ARGS="--before FOLDER --after FOLDER" compares two folders
# make check                          set-up, then format, lint, types and the import contract
# make docs                           set-up of the documentation's tools, then the site, in site/: open site/index.html
# make docs-serve                     the same on http://127.0.0.1:8000, built anew when a page changes
# make release                        build the wheels and the source distribution in dist/, check them, and try the wheel of this
#                                     machine in an environment that holds torch alone; uploads nothing
# make clean                          remove the environments and what was built
# PYTHON=python3.13 takes that Python for a new environment. ARGS="..." goes on to the command: pytest's for tests.
PYTHON ?= python3
DATA ?= complete-journey
ARGS ?=
BIN := .venv/bin
DISTRIBUTED := .venv-distributed/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# make test-floor FLOOR_TORCH=... keeps everything else at its lowest version and takes another torch.
FLOOR_TORCH ?= $(shell sed -n 's/^torch==//p' constraints-floor.txt)
FLOOR := .venv-floor/$(FLOOR_TORCH)
BENCH := .venv-bench/bin
RELEASE := .venv-release/tools
# An editable install builds the C library of the forks, too: hatch_build.py.
BUILT_FROM := pyproject.toml hatch_build.py $(wildcard src/equipoise/forks/cpu_kernels*.[ch])
TORCH_ALONE := .venv-release/torch-alone
# Two files at a time, each with one thread: most tests wait for one core or for processes of their own.
PYTEST := -m pytest -n 2 --dist loadfile
export EQUIPOISE_DATA ?= $(abspath $(firstword $(wildcard ../shared/data)))
export PYTHONUNBUFFERED := 1

.PHONY: setup compare evidence nightly test test-distributed test-floor accelerator bench bench-compare check docs docs-serve release clean

setup: .venv/.installed

# torch first: its build for machines without a GPU carries a local version ("+cpu") that only some indexes have.
# $(1): folder of a virtual environment, which gets Python and torch; $(2): the version of torch.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "equipoise needs Python 3.11 or newer, found $$($(PYTHON) --version). Say which: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1) || { rm -rf $(1); \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@if $(1)/bin/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$(2)')" 2>/dev/null; then :; \
	elif command -v nvidia-smi >/dev/null 2>&1; then $(1)/bin/pip install -q "torch==$(2)"; \
	elif $(1)/bin/pip install -q "torch==$(2)+cpu" 2>/dev/null; then :; \
	else echo "No CPU-only build of torch $(2) in pip's indexes: taking the standard build, several GB larger."; \
	  echo "(To avoid that, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, see pytorch.org, and run make again.)"; \
	  $(1)/bin/pip install -q "torch==$(2)"; fi
endef

.venv/.installed: constraints.txt $(BUILT_FROM)
	$(call environment,.venv,$(TORCH))
	@echo "Installing equipoise and its tools into .venv ..."
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# An environment of its own, because TorchRec holds torchmetrics at a release of 2023. TorchRec comes without its
# dependencies: it asks for the CUDA build of fbgemm-gpu under another name.
.venv-distributed/.installed: constraints.txt $(BUILT_FROM)
	$(call environment,.venv-distributed,$(TORCH))
	@echo "Installing equipoise, TorchRec and the integrations into .venv-distributed ..."
	@sed 's/^torchmetrics==.*/torchmetrics==1.0.3/' constraints.txt > .venv-distributed/constraints.txt
	@$(DISTRIBUTED)/pip install -q -c .venv-distributed/constraints.txt -e '.[dev,integrations]' \
	  fbgemm-gpu-cpu tensordict pyre-extensions
	@$(DISTRIBUTED)/pip install -q --no-deps -c .venv-distributed/constraints.txt torchrec
	@touch $@

$(FLOOR)/.installed: constraints-floor.txt $(BUILT_FROM)
	$(call environment,$(FLOOR),$(FLOOR_TORCH))
	@echo "Installing equipoise and the lowest versions of what it needs into $(FLOOR) ..."
	@sed 's/^torch==.*/torch==$(FLOOR_TORCH)/' constraints-floor.txt > $(FLOOR)/constraints.txt
	@$(FLOOR)/bin/pip install -q -c $(FLOOR)/constraints.txt -e '.[dev]'
	@touch $@

# An environment of its own, because the other libraries ask for old versions of what equipoise needs: they come without
# their dependencies. The benchmark goes without one that is not installed.
.venv-bench/.installed: constraints.txt $(BUILT_FROM) benchmarks/neighbours/requirements.txt
	$(call environment,.venv-bench,$(TORCH))
	@echo "Installing equipoise and the libraries to compare it with into .venv-bench ..."
	@$(BENCH)/pip install -q -c constraints.txt -e '.[dev]' pandas tqdm transformers h5py==3.16.0 'ray[data]==2.60.0'
	@for library in $$(grep -v '^#' benchmarks/neighbours/requirements.txt); do \
	  $(BENCH)/pip install -q --no-deps $$library || echo "The benchmark goes without $$library."; done
	@touch $@

# An environment of its own, so that the set-up stays as quick as it is.
.venv-docs/.installed: constraints.txt $(BUILT_FROM)
	$(call environment,.venv-docs,$(TORCH))
	@echo "Installing equipoise and the documentation's tools into .venv-docs ..."
	@.venv-docs/bin/pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

# The tools that build and check need neither equipoise nor torch.
$(RELEASE)/.installed: constraints.txt
	@test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	@echo "Installing the tools for a release into $(RELEASE) ..."
	@$(RELEASE)/bin/pip install -q -c constraints.txt build hatchling twine
	@touch $@

compare: setup
	$(BIN)/equipoise compare --data $(DATA) $(ARGS)

evidence: setup
	$(BIN)/equipoise evidence benchmarks/evidence.yaml --out benchmarks/evidence $(ARGS)

nightly: setup
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m nightly $(ARGS)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) $(ARGS)

test-distributed: .venv-distributed/.installed
	OMP_NUM_THREADS=1 $(DISTRIBUTED)/python $(PYTEST) tests/distributed tests/ranking/metrics $(ARGS)

test-floor: $(FLOOR)/.installed
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python $(PYTEST) $(ARGS)

accelerator:
	PYTHONPATH=src $(PYTHON) benchmarks/accelerator.py --out benchmarks/results/accelerator $(ARGS)

bench: .venv-bench/.installed
	$(BENCH)/python benchmarks/bench.py $(ARGS)

bench-compare:
	$(PYTHON) benchmarks/bench_compare.py $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The variable silences Material's advertisement of its successor, which --strict does not concern.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1

docs: .venv-docs/.installed
	.venv-docs/bin/mkdocs build --quiet --strict $(ARGS)
	@echo "Written: site/index.html"

docs-serve: .venv-docs/.installed
	.venv-docs/bin/mkdocs serve $(ARGS)

# The wheel is built from the source distribution, so that both are known to be whole.
release: $(RELEASE)/.installed
	@rm -rf dist $(TORCH_ALONE)
	$(RELEASE)/bin/python -m build --no-isolation --outdir dist
	@# A second wheel for other machines, without the C library.
	CC=false $(RELEASE)/bin/python -m build --no-isolation --wheel --outdir dist
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/python release/check_distributions.py dist
	$(call environment,$(TORCH_ALONE),$(TORCH))
	$(TORCH_ALONE)/bin/pip install -q -c constraints.txt $$(ls dist/*.whl | tail -n 1)
	@# torch remarks that there is no NumPy; that is what is tried here.
	cd $(TORCH_ALONE) && bin/python -I -W "ignore:Failed to initialize NumPy" $(CURDIR)/release/try_core.py

clean:
	rm -rf .venv .venv-bench .venv-distributed .venv-docs .venv-floor .venv-release runs build dist site
