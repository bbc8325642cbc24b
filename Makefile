# Punie. `make help` lists what there is.

PYTHON ?= python3
JOBS ?= 2
NAME ?= ask
N ?= 25
ARGS ?=

# The question and the folder reach the program through the environment, so that a space, a quote
# or a `$` in them is never seen by make or by a shell. Nothing of make itself is handed on: the
# daemon lives longer than this run, and a `make` it starts one day must not inherit our variables.
Q = How many Python files are in this project?
DIR = .
unexport Q DIR MAKEFLAGS MAKEOVERRIDES MFLAGS
export PUNIE_ASK_QUESTION := $(value Q)
export PUNIE_ASK_FOLDER := $(value DIR)

python := .venv/bin/python
pytest := $(python) -m pytest -n $(JOBS) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help ask test test-all faults check fix bench docs clean bootstrap

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

ask: bootstrap ## ask about this project, or: make ask Q="..." DIR=folder
	@exec .venv/bin/punie ask -C "$$PUNIE_ASK_FOLDER" -- "$$PUNIE_ASK_QUESTION" </dev/null

test: bootstrap ## the test suite (ARGS="..." goes to pytest)
	@$(pytest) $(ARGS)

test-all: bootstrap ## the suite with big doses: fuzzing, kills; what runs workers, at both levels
	@PUNIE_KILLS=$(N) $(pytest) --hypothesis-profile thorough --timeout 900 $(ARGS)
	@PUNIE_KILLS=$(N) PUNIE_TEST_ISOLATION=interpreter \
		$(pytest) --timeout 900 $(ARGS) tests/process tests/faults tests/e2e

faults: bootstrap ## kill processes at random while they work: make faults N=100
	@PUNIE_KILLS=$(N) $(pytest) tests/faults $(ARGS)

check: bootstrap ## formatting, lint, types, import contracts, lock file
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/ty check
	.venv/bin/pyright
	.venv/bin/lint-imports
	@echo uv lock --check
	@$(PYTHON) scripts/bootstrap uv lock --check

fix: bootstrap ## repair formatting and what lint can repair
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: bootstrap ## run a benchmark: make bench NAME=ask
	@$(python) -m benchmarks.$(NAME) --json $(ARGS)

docs: bootstrap ## write the generated pages of docs/reference again
	@$(python) scripts/docs.py

clean: ## remove the environment, private tools, caches, build products
	@test ! -x .venv/bin/punie || .venv/bin/punie down
	rm -rf .venv .tools dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@$(PYTHON) scripts/bootstrap
