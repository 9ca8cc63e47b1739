# Two commands are enough on a machine with Python >= 3.11 and make:
#   make demo    a worked problem, start to finish
#   make test    the tests, but for the slowest, which make test-all runs too
# Each sets up what it needs, in .venv/<Python version>, and finds it there the next time.

PYTHON ?= python3
CORES = $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
WORKERS ?= $(if $(filter 1 2 3,$(CORES)),$(CORES),4)
ARGS ?=

# What each target installs besides the package itself.
EXTRAS_demo := models,validation
EXTRAS_test := models,validation,test,umbridge
EXTRAS_lint := models,validation,distributed,test,lint

# Compiled JAX programs are kept between runs. Switch off with: make test JAX_COMPILATION_CACHE_DIR=
JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.1
HYPOTHESIS_STORAGE_DIRECTORY ?= $(CURDIR)/.cache/hypothesis
export JAX_COMPILATION_CACHE_DIR JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS HYPOTHESIS_STORAGE_DIRECTORY

# The second name is read by pip >= 25.3 for the build backend.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-all lint lint-check lint-format lint-types format hooks clean

ifneq (,$(filter-out help clean,$(MAKECMDGOALS)))
FOUND := $(shell "$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; print("%d.%d %s" % (v + (v >= (3, 11),)))' 2>/dev/null)
PYVER := $(firstword $(FOUND))
EXAMPLE := make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12
ifeq ($(FOUND),)
$(error "$(PYTHON)" does not run: install Python 3.11 or newer, or name another, as in: $(EXAMPLE))
else ifneq ($(lastword $(FOUND)),True)
$(error "$(PYTHON)" is Python $(PYVER) and 3.11 or newer is needed: name another, as in: $(EXAMPLE))
endif
VENV := .venv/$(PYVER)
BIN := $(VENV)/bin
# An environment whose interpreter is gone (a Python upgrade does that) is made anew.
$(shell test -x $(BIN)/python || rm -f $(VENV)/.made $(VENV)/.demo $(VENV)/.test $(VENV)/.lint)
endif

help:
	@echo 'make demo      a worked problem, start to finish'
	@echo 'make test      the tests but for the slowest; ARGS goes to pytest, as in: make test ARGS="-k flow"'
	@echo 'make test-slow the slowest tests'
	@echo 'make test-all  all the tests'
	@echo 'make lint      ruff and pyright'
	@echo 'make format    let ruff mend what it can'
	@echo 'make hooks     run the linters before every git commit'
	@echo 'make clean     remove environments, caches and build results'
	@echo
	@echo 'Environments live in .venv/<Python version>; choose a Python with PYTHON=python3.12.'

demo: $(VENV)/.demo
	@$(BIN)/python -m validation.demos.lynx_hare

# Every worker has a core, so linear algebra gets no threads of its own: two sets of them on two cores stand in each
# other's way.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

# Most of the tests' time is spent compiling: here in haste, as far as this jaxlib knows the flags (an unknown one would
# end the process). test-slow and test-all compile as users do.
HASTE := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false
test: $(VENV)/.test
	@known=; for flag in $(HASTE); do \
	  if XLA_FLAGS=$$flag $(BIN)/python -c 'import jax; jax.devices()' 2>/dev/null; then known="$$known $$flag"; fi; done; \
	XLA_FLAGS="$${XLA_FLAGS-$$known}" $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(ARGS)

test-slow: $(VENV)/.test
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

test-all: $(VENV)/.test
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: lint-check lint-format lint-types

lint-check: $(VENV)/.lint
	@$(BIN)/python -m ruff check .

lint-format: $(VENV)/.lint
	@$(BIN)/python -m ruff format --check .

lint-types: $(VENV)/.lint
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python

format: $(VENV)/.lint
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

hooks: $(VENV)/.lint
	@$(BIN)/python -m pre_commit install

clean:
	rm -rf .venv .cache .hypothesis .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '"$(PYTHON)" lacks the venv module: on Debian and Ubuntu, run: apt install python$(PYVER)-venv' >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# Without compiling what is never imported, pip takes half the time.
$(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/.made
	@echo 'Installing into $(VENV) what "make $*" needs (up to a minute) ...'
	@$(BIN)/python -m pip install -q --no-compile -e '.[$(EXTRAS_$*)]'
	@touch $@
