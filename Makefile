# make demo    set up, run the pipeline on the demo images, say where to look
# make test    set up, lint, run all tests
# make setup   only the environment and the demo images
# make backends    ONNX Runtime and OpenVINO besides, see docs/networks.md
# make view    the viewer of view.py besides
# make formats    readers of CZI, LIF, ND2 and more besides, see docs/formats.md
# make model MODEL=mito-em DATA=...    train a shipped model again, see recipes/README.md
# make bench WORK=... BENCH_PEERS=... BENCH_TABLE=... BENCH_STARDIST=...    docs/benchmarks.md
# make docs    the pages of docs/ as a site, docs/_build/index.html
# Another Python: make demo PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test setup backends view formats docs bench model force

PYTHON ?= python3
THREADS ?= 1
VENV := .venv
BIN := $(VENV)/bin
# Written last, with the folder that the environment was made for: without it, or after a move,
# the environment is made again.
READY := $(VENV)/.ready
DEMO := resources/demo/.ready

ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): force
endif

setup: $(READY) $(DEMO)

$(READY): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $$($(PYTHON) --version) found; needs Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	printf '%s' '$(CURDIR)' > $@

backends view formats: %: $(VENV)/.ready-%

docs: $(VENV)/.ready-docs
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build
	@echo "Look at $(CURDIR)/docs/_build/index.html"

$(VENV)/.ready-%: requirements-%.txt $(READY)
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@

$(DEMO): workflow/scripts/demo.py $(READY)
	$(BIN)/python workflow/scripts/demo.py --output resources/demo
	touch $@

demo: setup
	$(BIN)/snakemake --cores all
	@echo "Look at $(CURDIR)/results/summary.html"

test: setup backends view formats $(VENV)/.ready-docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	  --no-loadscope-reorder

# Tables and page of docs/benchmarks.md. The large image needs a table of training, a Python with
# StarDist, ome-zarr and ngff-zarr, and a StarDist model (comparison/README.md).
bench: setup backends
	$(BIN)/python benchmarks/speed/run.py --work $(WORK) --output docs/benchmarks --peers $(BENCH_PEERS)
	$(BIN)/python benchmarks/speed/profiles.py --work $(WORK) --output docs/benchmarks/profiles.csv
	$(BIN)/python benchmarks/speed/mosaic.py --table $(BENCH_TABLE) --stardist $(BENCH_STARDIST) \
	  --peers $(BENCH_PEERS) --backends torch openvino --work $(WORK)/mosaic \
	  --output docs/benchmarks/mosaic.csv
	$(BIN)/python benchmarks/load/load.py --plan 0 --run 400 --work $(WORK)/load \
	  --output docs/benchmarks/load.json
	$(BIN)/python benchmarks/measuring/speed.py --work $(WORK) --output docs/measuring.md
	$(BIN)/python benchmarks/speed/page.py --tables docs/benchmarks --output docs/benchmarks.md

model: setup
	$(BIN)/python recipes/make.py --model $(MODEL) --data $(DATA) --threads $(THREADS)
