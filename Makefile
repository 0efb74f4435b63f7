# Every target sets up .venv by itself the first time, and again when pyproject.toml or constraints.txt change.
# Without make (Windows): the README gives the same steps by hand.

PRESET ?= tiny
CLIPS ?= 2048
PY := .venv/bin/python
# The first Python on this machine that is new enough; PYTHON=/path/to/python overrides it.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
BENCHMARKS = $(sort $(wildcard benchmarks/bench_*.py))

.PHONY: help lab test train evaluate notebooks bench lint doctor
.DELETE_ON_ERROR:

help:
	@echo "make lab         open the course in JupyterLab"
	@echo "make test        run every test and print a verdict"
	@echo "make train       train the video generator (PRESET=tiny, laptop or gpu)"
	@echo "make evaluate    measure the generator (CLIPS=2048; your own: CHECKPOINT=outputs/.../sora.safetensors)"
	@echo "make notebooks   run every notebook as an untouched learner and save its outputs"
	@echo "make bench       measure the speed of the library"
	@echo "make lint        check the style of code and notebooks"
	@echo "make doctor      look for problems with this machine"

lab: .venv/lab.stamp
	@.venv/bin/jupyter lab $(ALLOW_ROOT) notebooks/00_start_here.ipynb

test: .venv/test.stamp
	@$(PY) tests/run_all.py

train: .venv/lab.stamp
	@$(PY) -m course_lib.training.train_sora --preset $(PRESET)

evaluate: .venv/lab.stamp
	@$(PY) -m course_lib.evaluate --clips $(CLIPS) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

notebooks: .venv/test.stamp
	@$(PY) -m course_lib.authoring execute $(sort $(wildcard notebooks/*.ipynb))
	@$(PY) -m course_lib.authoring check $(sort $(wildcard notebooks/*.ipynb))

bench: .venv/test.stamp $(BENCHMARKS:%=run/%)

run/%: .venv/test.stamp
	@echo "== $*"
	@$(PY) $*

lint: .venv/test.stamp
	@$(PY) -m ruff check .

doctor: .venv/lab.stamp
	@$(PY) -m course_lib.doctor

# $(call install,what pip installs)
define install
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one from python.org, or name it: make lab PYTHON=/path/to/python"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { echo "Making .venv failed (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Setting up .venv (first time only; about two minutes, 1.6 GB; several GB more beside an NVIDIA GPU) ..."
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e "$(1)"
	@touch $@
endef

.venv/lab.stamp: pyproject.toml constraints.txt
	$(call install,.)

# What tests need holds what the course needs, so this stamp serves both.
.venv/test.stamp: pyproject.toml constraints.txt
	$(call install,.[test])
	@touch .venv/lab.stamp
