# Two commands: `make lab` and `make test`. What they need goes into .venv; nothing else on the machine changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAB := $(VENV)/.lab
DEV := $(VENV)/.dev
SITE := $(VENV)/.site
BENCH := benchmarks/.venv
ARGS ?=
# Tests of one file share what is slow to make (a browser, a site, a trained model); files run side by side, in their order,
# which begins with the slowest, those in the browser.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help lab test test-quick types export lessons hooks lowest bench site panels clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "ARGS=... is passed on, as in 'make lab ARGS=--no-browser'. PYTHON=... picks the Python (3.11 to 3.13)."

define install
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
  { echo "The course needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is not one of them: name one, as in 'make $(or $(MAKECMDGOALS),lab) PYTHON=python3.12'." >&2; exit 1; }
$(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

# These files are written last, so that an installation that was interrupted is taken up again by the next command.
# A learner is spared what only the tests need; the tests need what the lessons need, so .dev stands for both, and for .site.
$(LAB): settings.ini setup.py constraints.txt
	$(call install,lab)
	@touch $@

$(DEV): settings.ini setup.py constraints.txt
	$(call install,dev)
	@touch $(LAB) $(SITE) $@

$(SITE): settings.ini setup.py constraints.txt
	$(call install,site)
	@touch $@

lab: $(LAB)  ## open the lessons in JupyterLab
	@$(BIN)/diffusion-course lab $(ARGS)

test: $(DEV)  ## every test; drives the lessons in a browser where one can be had
	@$(BIN)/python tests/interface.py --install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-quick: $(DEV)  ## the tests for every change, without notebooks and browser (under 2 minutes)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not browser" $(ARGS)

types: $(DEV)  ## check the library's types with mypy
	$(BIN)/python -m mypy $(ARGS)

export: $(DEV)  ## write diffusion_course/ from the notebooks, clean these, and write docs/reference/
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/reference.py

lessons: $(DEV)  ## execute all notebooks and store their outputs (ARGS=nbs/01_distributions.ipynb for one)
	$(BIN)/python tools/execute.py $(ARGS)

# Ours and the others' released packages, in an environment of their own.
$(BENCH)/.done: settings.ini setup.py constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[hub]'
	$(BENCH)/bin/python -m pip install --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	@touch $@

bench: $(BENCH)/.done  ## measure what the README claims, half an hour (ARGS="loop unet" for two topics, ARGS=--quick)
	$(BENCH)/bin/python benchmarks/run.py $(ARGS)

site: $(SITE)  ## build the web edition in _site/ from the stored notebooks
	$(BIN)/python -m sphinx -q -W --keep-going -c site -d build/site . _site $(ARGS)
	@echo "Open _site/index.html."

panels: $(DEV)  ## compute the panels of the web edition that have changed (ARGS=01_distributions for one lesson)
	$(BIN)/python tools/panels_ahead.py $(ARGS)

clean:  ## remove everything that can be made again, .venv too
	rm -rf $(VENV) $(BENCH) build dist out _site jupyter_execute *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
