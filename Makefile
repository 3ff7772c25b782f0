# The only front door for people who develop Olivine: `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
export PYTHONUTF8 := 1
# A proxy to the outside does not know the embedded clusters' addresses.
export NO_PROXY := $(if $(NO_PROXY),$(NO_PROXY),localhost,127.0.0.1),10.88.0.0/14
export no_proxy := $(NO_PROXY)

.PHONY: help env lock generate fmt verify test test-full bench-trainer bench-results bench-bundle demo cluster put cluster-down clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: .venv/.complete ## Install what is needed: Debian packages, uv, the locked environment in .venv

.venv/.complete: requirements.lock pyproject.toml tools/bootstrap.sh
	@tools/bootstrap.sh

lock: ## Resolve pyproject.toml anew into requirements.lock
	uv pip compile --universal --generate-hashes --python-version 3.11 --all-extras --upgrade -q pyproject.toml -o requirements.lock

generate: env ## Write crds/, the chart's copies and docs/reference/ from operator/olivine_api
	$(PY) tools/generate.py

fmt: env ## Format
	ruff check --fix-only -q . && ruff format -q .

verify: env ## Format, lint, types, layers, generated files, chart, links in the docs
	ruff format --check -q .
	ruff check -q .
	pyright
	lint-imports --no-cache
	$(PY) tools/generate.py --check
	$(PY) tools/check_docs.py
	helm=$$($(PY) -m devcluster clients)/helm tools/check_chart.sh

test: env ## Run the tests: unit, API server, pods on the embedded cluster
	$(PY) -m devcluster build
	tools/with_cluster.sh $(PY) -m pytest -m "not full"

test-full: env ## Run the long tests too: matrices, soaks, every command of the docs
	$(PY) -m devcluster build --addons jobset,kueue
	tools/with_cluster.sh $(PY) -m pytest

bench-trainer: env ## Compare the trainer with transformers' Trainer and TRL's SFTTrainer; writes docs/benchmarks/trainer.md
	$(PY) -m tests.bench.trainer $(BENCH)

bench-results: env ## Fine-tune on Banking77 and NLU++ slots from DATA=FOLDER, against baselines; writes docs/benchmarks/results.md
	$(PY) -m tests.bench.results --data $(if $(DATA),$(DATA),$(error write make bench-results DATA=FOLDER, which holds banking77 and nlupp-banking)) $(BENCH)

bench-bundle: env ## Compare bundles with merged models and Olive; writes docs/benchmarks/bundle.md
	$(PY) -m tests.bench.bundle $(BENCH)

demo: cluster ## Fine-tune a small model on the embedded cluster and show base and tuned side by side
	$(PY) tools/demo.py

cluster: env ## Start the embedded cluster with S3, the base model and the operator, and leave it running
	@rm -f .olivine/temporary
	$(PY) -m devcluster up

put: env ## Put FILE into the embedded cluster's store, for data.train.uri
	$(PY) -m tools.put $(FILE)

cluster-down: ## Stop the embedded cluster and remove every trace of it
	@[ ! -x $(PY) ] || $(PY) -m devcluster down

clean: cluster-down ## Remove what the targets made in the checkout
	rm -rf .venv .olivine .pytest_cache .ruff_cache
