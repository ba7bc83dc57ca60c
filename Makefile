# PolyDiT: everything runs from .venv, which is made (again) whenever pyproject.toml changed.
#
#   make demo       upscale real photographs with the shipped weights, results in demo_output/
#   make test       the test suite, without what takes minutes or needs a GPU
#   make test-all   the whole suite
#   make bench      benchmark tables;  make bench-acceleration only that of the caches
#   make lint       ruff and mypy;  make format writes what ruff would
#   make serve      the web demos on http://127.0.0.1:7860

PYTHON  ?= python3
VENV    ?= .venv
PIP     := $(VENV)/bin/python -m pip
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PORT    ?= 7860
ARGS    ?=

# Threads that wait by spinning make everything slow as soon as another process wants the cores.
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo test test-all bench bench-acceleration lint format serve install clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/python -m polydit.demos.make_demo $(ARGS)

# One thread each: the workers already fill the cores.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadscope --durations=15 $(ARGS)

test-all: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadscope --durations=30 -m "" $(ARGS)

bench: $(VENV)/.installed
	@set -e; for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(VENV)/bin/python "$$script" $(ARGS); done

bench-acceleration: $(VENV)/.installed
	$(VENV)/bin/python tests/benchmarks/bench_acceleration.py $(ARGS)
	$(VENV)/bin/python tests/benchmarks/bench_caches.py $(filter --quick,$(ARGS))

lint: $(VENV)/.installed-dev build/mypy/polydit
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p polydit.core

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

serve: $(VENV)/.installed-demo
	$(VENV)/bin/python -m polydit.demos.gallery --port $(PORT) $(ARGS)

install: $(VENV)/.installed

# mypy takes a package's name from its folder's; the link gives the root the name that it has once installed.
build/mypy/polydit:
	mkdir -p build/mypy
	ln -sfn ../.. $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "polydit: $(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "polydit: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Each stamp is the record that an installation from this pyproject.toml went through.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing PolyDiT into $(VENV), once; this takes a few minutes"
	$(PIP) install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing PolyDiT and its web demos into $(VENV), once; this takes a few minutes"
	$(PIP) install --quiet --disable-pip-version-check -e ".[demo]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing PolyDiT and its tests into $(VENV), once; this takes a few minutes"
	$(PIP) install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-demo

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-demo $(VENV)/.installed-test

clean:
	rm -rf build dist polydit.egg-info demo_output
