# Everything a newcomer needs, with nothing but Python 3.11 and pip on the machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# What FAISS comes from: `gpu` on a machine with CUDA, which the GPU targets take by themselves.
EXTRA  ?= cpu
MODEL  := models/SmolLM2-135M-Instruct.Q4_1.gguf
DEMO   := build/demo
FAMILY := examples/dyck/family
# SmolLM2 runs at a few hundred tokens a second on two cores: less than a minute of text.
DEMO_TOKENS ?= 20000
# What `make bench` compares with; options for it, such as BENCH="--only search --quick".
PEERS  ?= build/peers
BENCH  ?=

.PHONY: help setup demo test test-full test-gpu lint docs family bench bench-gpu bench-setup clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/'

setup: $(VENV)/.installed $(MODEL)   ## make .venv, install signarium, fetch the test models

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "signarium needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRA),gguf,dev]"
	@touch $@

$(MODEL): tests/support/fetch_models.py | $(VENV)/.installed
	$(BIN)/python tests/support/fetch_models.py

demo: setup      ## ingest SmolLM2 over its vocabulary and a text, find features and writers, flip one, align two small models, query it all
	@mkdir -p $(DEMO)
	@$(BIN)/python -c "from pydoc_data.topics import topics; print('\n'.join(topics[k] for k in sorted(topics)))" > $(DEMO)/python-topics.txt
	$(BIN)/signarium --db $(DEMO)/demo.duckdb ingest $(MODEL) --name SmolLM2-135M --text $(DEMO)/python-topics.txt --max-tokens $(DEMO_TOKENS)
	$(BIN)/signarium --db $(DEMO)/demo.duckdb sql "SELECT model, site, subject, centre, n, indexed FROM code_sets ORDER BY subject, site, centre"
	$(BIN)/signarium --db $(DEMO)/demo.duckdb sql "SELECT site, round(avg(entropy), 3) AS bit_entropy, round(max(argmax_share), 3) AS loudest_dim_share FROM dimensions GROUP BY site ORDER BY site"
	$(BIN)/signarium --db $(DEMO)/demo.duckdb nearest 'type:" king"' -k 8
	$(BIN)/signarium --db $(DEMO)/demo.duckdb nearest 'type:" Monday"' -k 8
	$(BIN)/signarium --db $(DEMO)/demo.duckdb nearest "raise an exception" --in states --where "NOT is_first" -k 8
	$(BIN)/signarium --db $(DEMO)/demo.duckdb features list --kind category --survives --limit 10
	$(BIN)/signarium --db $(DEMO)/demo.duckdb features show european_country --site resid_post.5 --centre mean
	$(BIN)/signarium --db $(DEMO)/demo.duckdb features read "The king of France sailed to Norway in May and ate cold fish."
	$(BIN)/signarium --db $(DEMO)/demo.duckdb nearest feature:calendar --site resid_post.29 --centre mean --in neurons -k 8
	$(BIN)/signarium --db $(DEMO)/demo.duckdb neurons show 29/305
	$(BIN)/signarium --db $(DEMO)/demo.duckdb flip calendar --site resid_post.29 --centre mean --text $(DEMO)/python-topics.txt
	$(BIN)/signarium --db $(DEMO)/demo.duckdb evidence
	@$(BIN)/python -m examples.dyck --text 1500 --output $(DEMO)/brackets.jsonl
	$(BIN)/signarium --plugin examples/dyck --db $(DEMO)/brackets.duckdb ingest $(FAMILY)/shared-0 --text $(DEMO)/brackets.jsonl --stages types,states --sites 'resid_post.0;resid_mid.1' --max-tokens 5000
	$(BIN)/signarium --plugin examples/dyck --db $(DEMO)/brackets.duckdb ingest $(FAMILY)/shared-1 --text $(DEMO)/brackets.jsonl --stages types,states --sites 'resid_post.0;resid_mid.1' --max-tokens 5000
	$(BIN)/signarium --plugin examples/dyck --db $(DEMO)/brackets.duckdb align shared-0 shared-1 --text $(DEMO)/brackets.jsonl --steer resid_mid.1
	$(BIN)/signarium --db $(DEMO)/brackets.duckdb rotations show shared-0 shared-1 --site resid_mid.1
	$(BIN)/signarium --plugin examples/dyck --db $(DEMO)/brackets.duckdb nearest "([{}" --model shared-0 --across shared-1 --site resid_mid.1 -k 5
	@echo; echo "The catalogue is $(DEMO)/demo.duckdb. Yours next: $(BIN)/signarium ingest MODEL --text PATH"

# Bytecode is kept, whatever the shell says: without it every process compiles the package and pytest every test.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test: setup      ## every property, with a fifth of the examples (less than six minutes on 2 cores)
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

family: setup    ## what rotations between the seeds of the toy family carry: the table in the README (about half an hour on 2 cores)
	$(BIN)/python benchmarks/family.py

bench: setup     ## what the README claims about speed, measured here beside peers (45 minutes on 2 cores; make bench-setup first)
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
