# The tasks of people who work on mitu; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export CARGO_TARGET_DIR ?= $(CURDIR)/target
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# What BoringSSL's build needs beside a compiler: CMake, and libclang, which comes without a compiler's own headers.
# Cargo does not watch these variables, so that it builds BoringSSL once, however it is called.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export LD_LIBRARY_PATH := $(CURDIR)/$(VENV)/libclang$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
export C_INCLUDE_PATH := $(shell $(or $(CC),cc) -print-file-name=include)$(if $(C_INCLUDE_PATH),:$(C_INCLUDE_PATH))
export PIP_QUIET := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup build demo test test-rust test-python conformance fuzz lint lint-rust lint-python fips fmt bench peers docs wheel wheel-pgo lock ci clean

help: ## List the tasks.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

# The virtual environment, made anew when its list changes.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mitu needs Python 3.11 or newer; name one with PYTHON=…") if sys.version_info < (3, 11) else 0'
	@command -v cargo >/dev/null || { echo "cargo is missing: get Rust 1.88 or newer from https://rustup.rs" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	ln -sfn "$$($(BIN)/python -c 'import clang; print(*clang.__path__)')/native" $(VENV)/libclang
	touch $@

setup: $(VENV)/.ready ## Make the virtual environment, and get the programs that tests use (as root in CI; else name them).
	@PYTHONPATH=tests $(BIN)/python -m support.programs $(if $(CI),install,list)

build: $(VENV)/.ready ## Build the data plane and install mitu into the virtual environment.
	$(BIN)/maturin develop --quiet

demo: build ## Serve every protocol on one port, and show one request on each.
	@$(BIN)/python -m examples.demo

test: setup build test-rust test-python ## Run every test.

test-rust: ## Run the Rust tests.
	cargo test --quiet --workspace --exclude mitu-python

test-python: build ## Run the Python tests.
	cargo build --release --quiet --package mitu-load
	$(BIN)/pytest

conformance: setup build ## Run the tests that `make test` leaves out since they take minutes.
	$(BIN)/pytest -m slow

fuzz: $(VENV)/.ready ## Fuzz what reads bytes of strangers, a minute each (it needs a nightly compiler and cargo-fuzz).
	@for target in client_hello proxy_header mqtt_connect alpn_list configuration; do \
		mkdir -p fuzz/found/$$target; seeds=fuzz/corpus/$$target; \
		if [ $$target = configuration ]; then seeds=tests/golden/good; fi; \
		CARGO_PROFILE_RELEASE_LTO=off cargo +nightly fuzz run --no-cfg-fuzzing --features libfuzzer $$target fuzz/found/$$target $$seeds -- -max_total_time=60; done

lint: lint-rust lint-python ## Check everything that can be checked without running it.

lint-rust: $(VENV)/.ready
	cargo fmt --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	@$(BIN)/python -m tools.vendor --check
	@$(BIN)/python -m tools.audit rust

lint-python: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest mitu._native
	@$(BIN)/python -m tools.audit python

fips: $(VENV)/.ready ## Check that the build with the FIPS module compiles (it needs Go and Perl).
	cargo clippy --quiet --package mitu-tls --package mitu-crypto --no-default-features --features mitu-crypto/fips -- -D warnings

fmt: $(VENV)/.ready ## Format everything.
	cargo fmt
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

peers: $(VENV)/.ready ## Get nginx, HAProxy, Envoy, Caddy and the Go server for the benchmarks.
	$(BIN)/python -m benchmarks.peers install

bench: peers ## Measure mitu beside its peers (`make bench ARGS=--quick`: a few minutes).
	$(BIN)/maturin develop --quiet --release
	$(BIN)/python -m benchmarks $(ARGS)

docs: build ## Write docs/reference anew from the models.
	$(BIN)/python -m mitu.config.reference

wheel: $(VENV)/.ready ## Build the wheel into dist/.
	$(BIN)/maturin build --release --out dist

wheel-pgo: $(VENV)/.ready ## Build the wheel into dist/, optimised by a profile of its own handshakes.
	@if command -v rustup >/dev/null; then rustup component add llvm-tools; fi
	cargo build --release --quiet --package mitu-load
	$(BIN)/maturin build --release --pgo --interpreter $(BIN)/python --out dist

lock: $(VENV)/.ready ## Write constraints.txt anew from the newest versions that pyproject.toml allows.
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager --group dev .
	PIP_QUIET=0 $(BIN)/python -m pip freeze --exclude mitu > constraints.txt

ci: test lint ## What CI runs.

clean: ## Remove what the other tasks made.
	rm -rf $(VENV) target dist .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
