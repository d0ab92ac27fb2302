# `make help` lists what there is. Every target installs and builds what it needs, and can be repeated.

PYTHON ?= $(shell for p in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# The environment is right when it was made for this very pyproject.toml.
INSTALLED := .venv/.installed-$(shell sha256sum pyproject.toml | cut -c1-16)
export KUBECONFIG_CONTEXT DASKFLEET_IMAGES

.DEFAULT_GOAL := help
.PHONY: chaos help venv demo test test-unit test-api test-e2e test-deployers lint kubernetes images down bench bench-kubernetes bench-operator bench-deployers

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  KUBECONFIG_CONTEXT=NAME  use that context of your kubeconfig instead of kind or a node from source"
	@echo "  ARGS='-k name -x'        more arguments for pytest"

demo: $(INSTALLED) ## a cluster, the operator, kubectl apply, and a real job on it, in one go
	@$(BIN)/python -m tests.cluster.demo

test: $(INSTALLED) ## all tests
	@$(BIN)/python -m pytest -n auto --dist loadgroup tests/unit tests/api tests/e2e $(ARGS)

test-unit: $(INSTALLED) ## tests that need no Kubernetes
	@$(BIN)/python -m pytest tests/unit $(ARGS)

test-api: $(INSTALLED) ## tests against a real API server
	@$(BIN)/python -m pytest tests/api $(ARGS)

test-e2e: $(INSTALLED) ## tests with real pods
	@$(BIN)/python -m pytest tests/e2e $(ARGS)

test-deployers: $(INSTALLED) ## command lines, SSH, MPI and batch queues on real daemons (as root, with apt-get)
	@$(BIN)/python -m pytest tests/deployers $(ARGS)

lint: $(INSTALLED) ## style, types and the layers of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

kubernetes: $(INSTALLED) ## just the Kubernetes, with the images on it
	@$(BIN)/python -m tests.cluster images
	@$(BIN)/python -m tests.cluster status

images: kubernetes

down: $(INSTALLED) ## take the Kubernetes down; only caches stay
	@$(BIN)/python -m tests.cluster down

chaos: $(INSTALLED) ## work while workers are killed, against the same in peace; a million tasks in bounded memory
	@$(BIN)/python -m tests.benchmarks.chaos $(ARGS)

bench: $(INSTALLED) ## the runtime's figures
	@$(BIN)/python -m tests.benchmarks.runtime $(ARGS)

bench-kubernetes: $(INSTALLED) ## the figures on Kubernetes, against dask-kubernetes
	@$(BIN)/python -m tests.benchmarks.kubernetes $(ARGS)

bench-operator: $(INSTALLED) ## an operator's figures at a thousand workers on simulated nodes, against dask-kubernetes
	@$(BIN)/python -m tests.benchmarks.operator $(ARGS)

bench-deployers: $(INSTALLED) ## seconds until 64 workers are there, by SSH, three queues and MPI, against the peers
	@$(BIN)/python -m tests.benchmarks.deployers $(ARGS)

venv: $(INSTALLED) ## the Python environment in .venv

$(INSTALLED):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3, or PYTHON=/path/to/python3 make"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "[daskfleet] installing python3-venv with apt-get …"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv >/dev/null; \
	  else echo "Python's venv is missing: apt-get install python3-venv"; exit 1; fi; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "[daskfleet] installing the project and its test dependencies into .venv …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[test,operator]'
	@rm -f .venv/.installed-* && touch $@
