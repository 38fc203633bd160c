# `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-model test chaos bench lint format lock clean

BIN := .venv/bin
SOURCES := rerank_actor jobs tests dev
UV ?= $(BIN)/uv
WORKERS ?= 2
UV_COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --custom-compile-command "make lock" \
	--group dev $(if $(UPGRADE),--upgrade)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: ## make .venv with all that is needed (EXTRA=cpu or EXTRA=gpu chooses the engine)
	@dev/setup.sh

demo: setup ## set up, then score the sample pairs (FOLDER=demo-out chooses where)
	$(BIN)/python -m jobs.demo $(if $(FOLDER),--folder $(FOLDER))

demo-model: setup ## make the demo's model anew from its word lists and measure it (about an hour)
	$(BIN)/python dev/train_demo_model.py

test: setup lint ## set up, check style, types and imports, then run the tests, two files at a time (WORKERS=1: one)
	$(BIN)/pytest $(if $(filter-out 1,$(WORKERS)),--numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder)

chaos: setup ## put a job through twenty storms of faults (about half an hour)
	PYTHONPATH=tests/support $(BIN)/python dev/chaos.py --seeds 20
	PYTHONPATH=tests/support $(BIN)/python dev/chaos_outputs.py --seeds 12

bench: setup ## measure the job beside other tools (half an hour), and print which ratios moved
	$(BIN)/python -m jobs.benchmark --workloads grouped shuffled --compare docs/benchmarks.json
	$(BIN)/python dev/bench_scale.py --folder benchmark-out/scale-$$$$ --compare docs/benchmarks.json

lint: setup ## check style, types and imports
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## put the sources into the common style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: setup ## make requirements/*.lock from pyproject.toml (UPGRADE=1 for the newest versions)
	$(UV_COMPILE) --extra gpu -o requirements/gpu.lock pyproject.toml
	$(UV_COMPILE) --extra cpu -o requirements/cpu.lock pyproject.toml \
		--overrides requirements/cpu-overrides.txt --excludes requirements/cpu-excludes.txt

clean: ## remove the virtual environment, caches and the demo's output
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist demo-out benchmark-out
	find rerank_actor jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
