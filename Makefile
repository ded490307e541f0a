# Everything a newcomer needs, with nothing but Python 3.11 and pip on the machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# What FAISS comes from: `gpu` on a machine with CUDA, which the GPU targets take by themselves.
EXTRA  ?= cpu
# pip would compile 13,000 files, of which a tenth are ever imported: half of its time.
PIP     = $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check
MODEL  := models/SmolLM2-135M-Instruct.Q4_1.gguf
# SmolLM2 runs at a few hundred tokens a second on two cores: less than a minute of text.
DEMO_TOKENS ?= 20000
# What `make bench` compares with; options for it, such as BENCH="--only search --quick".
PEERS  ?= build/peers
BENCH  ?=

# Bytecode is kept, whatever the shell says: without it every process compiles what it imports, and pytest every test.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo demo-full test test-full test-gpu lint docs family bench bench-gpu bench-setup clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/'

setup: $(VENV)/.installed $(MODEL)   ## make .venv, install signarium, fetch the test models

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "signarium needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e ".[$(EXTRA),gguf,dev]"
	@echo "compiling what signarium imports" && $(BIN)/python -c "import signarium.ingest.run, faiss"
	@touch $@

$(MODEL): tests/support/fetch_models.py | $(VENV)/.installed
	$(BIN)/python tests/support/fetch_models.py

demo: setup      ## a first look in six minutes: SmolLM2 reads sentences and its vocabulary, and is asked what it holds
	@BIN=$(BIN) MODEL=$(MODEL) examples/demo.sh

demo-full: setup ## all that is measured: five sites, writers, a flip, and the rotation between two toy models (twenty minutes)
	@BIN=$(BIN) MODEL=$(MODEL) DEMO_TOKENS=$(DEMO_TOKENS) examples/demo-full.sh

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test: setup      ## every property, with a fifth of the examples (eleven minutes on 2 cores)
	$(PYTEST)

test-full: setup ## the same with all examples, parameters and kills: before a release
	$(PYTEST) --full

# Both kinds of FAISS are one module, so the GPU's lives in an environment of its own.
GPU := $(MAKE) setup VENV=.venv-gpu EXTRA=gpu && .venv-gpu/bin/python

test-gpu:        ## the device paths, compared with the CPU (needs CUDA)
	$(GPU) -m pytest -m gpu

lint: setup      ## style, types, import rules, generated references
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/typing && mkdir -p build/typing/signarium && ln -s ../../examples/dyck build/typing/dyck
	@for part in *.py catalog commands ingest migrations queries; do [ ! -e $$part ] || ln -s ../../../$$part build/typing/signarium/$$part; done
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/make.py --check

docs: setup      ## write the generated references
	$(BIN)/python docs/make.py

family: setup    ## what rotations between the seeds of the toy family carry: the table in docs/rotations.md (about half an hour on 2 cores)
	$(BIN)/python benchmarks/family.py

bench: setup     ## what docs/speed.md claims, measured here beside peers (45 minutes on 2 cores; make bench-setup first)
	$(BIN)/python benchmarks/run.py --peers $(PEERS) $(BENCH)

bench-gpu:       ## the same for a GPU (needs CUDA)
	$(GPU) benchmarks/gpu.py $(BENCH)

bench-setup: $(PEERS)/.installed ## the libraries that make bench compares with, in an environment of their own

$(PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the peers need Python 3.11 or newer")'
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@touch $@

clean:           ## remove what the demo and the builds left
	rm -rf build dist *.egg-info
