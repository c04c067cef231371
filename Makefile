# One verb per job; `make help` lists them. Needs python3 (3.11 or later, with venv), a C++20 compiler, cmake and make.
#
# Stamps in $(VENV) remember what is installed, so that each verb does only what changed since the last time.
# Variables: VENV (folder of the virtual environment), PYTHON (what makes it), MODEL (what `make run` downloads),
# SERVE (flags for `hostler serve`), ARGS (for pytest, or for `make bench`), GGUF (the file that is measured; without it MODEL),
# PEER (folder with llama.cpp's llama-server, llama-bench and llama-batched-bench, to compare with). To build llama.cpp for a GPU see docs/quickstart.md.

VENV ?= .venv
PYTHON ?= python3
MODEL ?= smollm2
SERVE ?=
ARGS ?=
GGUF ?=
PEER ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
# Kept beside the environment it was built for.
BUILD := build/$(subst /,_,$(VENV))

core_sources := pyproject.toml CMakeLists.txt $(shell find cpp -type f -not -path 'cpp/tests/*' 2>/dev/null)
llamacpp_sources := $(addprefix plugins/llamacpp/,pyproject.toml CMakeLists.txt) $(shell find plugins/llamacpp/cpp -type f -not -path '*/tests/*')
core := $(VENV)/.stamp-core
llamacpp := $(VENV)/.stamp-llamacpp
onnxgenai := $(VENV)/.stamp-onnxgenai
echo_engine := $(VENV)/.stamp-echo
remote := $(VENV)/.stamp-remote
test_tools := $(VENV)/.stamp-test-tools
lint_tools := $(VENV)/.stamp-lint-tools
bench_tools := $(VENV)/.stamp-bench-tools

.PHONY: help install run test test-native lint bench bench-parts docs clean

help: ## show this
	@echo 'make VERB'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS=$$'\t' read -r verb text; do \
		printf '  %-12s %s\n' "$$verb" "$$text"; done

install: $(core) $(llamacpp) $(onnxgenai) ## make or update $(VENV): the C++ core, hostler, the plugins for llama.cpp and ONNX
	@echo "hostler is installed: $(BIN)/hostler"

run: install ## install, download the default model, serve http://127.0.0.1:1337/v1
	@$(BIN)/hostler pull $(MODEL)
	@exec $(BIN)/hostler serve $(SERVE)

test: install $(echo_engine) $(remote) $(test_tools) test-native ## every test but those that need a GPU; fails if none ran on real weights
	$(PY) -m pytest -rs -m 'not gpu' --require-weights $(ARGS)

test-native: $(VENV)/.stamp-venv ## the C++ tests under ASan+UBSan and under TSan
	@mkdir -p $(BUILD)
	cpp/tests/run.sh $(BUILD)/cpp-tests .
	cpp/tests/run.sh $(BUILD)/llamacpp-tests plugins/llamacpp

lint: $(core) $(lint_tools) ## ruff and mypy (strict on core)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install $(bench_tools) ## the table of benchmarks/README.md, in hours: PEER=llama.cpp/build/bin GGUF=M.gguf ARGS=--quick
	$(PY) benchmarks/bench_all.py $(if $(GGUF),--model-path $(GGUF),--model $(MODEL)) $(if $(PEER),--peer $(PEER)) $(ARGS)

bench-parts: install $(echo_engine) $(test_tools) ## the benchmarks of hostler's own parts, which need no model
	$(PY) benchmarks/bench_ring.py
	$(PY) benchmarks/bench_cli.py
	$(PY) benchmarks/bench_host.py
	$(PY) benchmarks/bench_records.py

docs: $(core) ## write docs/configuration.md and docs/cli.md anew from the code
	$(PY) -m hostler.cli.reference

clean: ## remove what was built; downloaded models stay
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache

# -- what the verbs need ----------------------------------------------------------------------------------------------

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'hostler needs Python 3.11 or later; name one with: make PYTHON=python3.12'; exit 1; }
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); } \
		|| { echo 'python cannot make a virtual environment; on Debian: apt install python3-venv'; rm -rf $(VENV); exit 1; }
	@touch $@

# What the core is built with stays in the environment (no build isolation): only so can CMake compile just what changed.
$(VENV)/.stamp-build-tools: pyproject.toml | $(VENV)/.stamp-venv
	@echo 'installing what the C++ core is built with'
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		> $(VENV)/build-requirements.txt
	@$(PIP) -r $(VENV)/build-requirements.txt ninja
	@touch $@

$(core): $(core_sources) $(VENV)/.stamp-build-tools
	@echo 'building the C++ core and installing hostler (a minute or two the first time)'
	@command -v cmake > /dev/null || { echo 'there is no cmake; on Debian: apt install cmake g++'; exit 1; }
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(llamacpp): $(llamacpp_sources) | $(core)
	@echo 'installing the llama.cpp plugin; the first time llama.cpp itself is compiled, which takes 5 to 20 minutes'
	@mkdir -p $(BUILD)
	@$(PY) .ci/show_progress.py $(BUILD)/llamacpp.log -- \
		$(PY) -m pip --disable-pip-version-check install -v -e plugins/llamacpp
	@touch $@

# Its CPU extra; for a GPU see plugins/onnxgenai/README.md. The extras' packages overwrite each other's files: only one may be there.
$(onnxgenai): plugins/onnxgenai/pyproject.toml | $(core)
	@echo 'installing the ONNX Runtime GenAI plugin'
	@$(PIP) -e 'plugins/onnxgenai[cpu]'
	@touch $@

$(echo_engine): plugins/echo/pyproject.toml | $(core)
	@$(PIP) -e plugins/echo
	@touch $@

$(remote): plugins/remote/pyproject.toml | $(core)
	@$(PIP) -e 'plugins/remote[keyring]'
	@touch $@

$(test_tools): pyproject.toml | $(core)
	@echo 'installing what the tests need'
	@$(PY) .ci/requirements.py test > $(VENV)/test-requirements.txt
	@$(PIP) -r $(VENV)/test-requirements.txt
	@touch $@

$(lint_tools): pyproject.toml | $(core)
	@$(PY) .ci/requirements.py lint > $(VENV)/lint-requirements.txt
	@$(PIP) -r $(VENV)/lint-requirements.txt
	@touch $@

$(bench_tools): pyproject.toml | $(core)
	@$(PY) .ci/requirements.py bench > $(VENV)/bench-requirements.txt
	@$(PIP) -r $(VENV)/bench-requirements.txt
	@touch $@
