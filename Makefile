# The pipeline, as targets. A step's result is the report it writes last, so a step that failed or was killed counts as
# not done, and running `make` again does what is missing.
#
#   make demo                                        the whole pipeline on the tiny agent that ships with the project
#   make data RECIPE=local RAW=path/to/raw/files     real sources -> checked, merged, preflighted dataset
#
# Recipes (recipes/<name>.mk) set the variables; every one of them can be overridden on the command line.

RECIPE ?= demo
PYTHON ?= python3.11

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Steps print their own progress; `make -n` shows the commands.
.SILENT:

include mk/environment.mk
include recipes/$(RECIPE).mk
include mk/pipeline.mk
include mk/project.mk

# Library caches are stored with the data.
export HF_DATASETS_CACHE ?= $(abspath $(DATA))/cache
export TOKENIZERS_PARALLELISM ?= false
export PYTHONUNBUFFERED = 1

.PHONY: help demo test

help:  ## Show the targets
	grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'
	echo
	echo "  RECIPE=$(RECIPE) (recipes/$(RECIPE).mk), data in $(DATA)"

demo: $(READY)  ## Run the whole pipeline on the embedded tiny agent and print base against breaker
	# Two steps at a time where the data allow it: each runs the model on one thread.
	$(MAKE) --no-print-directory -j2 RECIPE=demo evaluate

# The tests of a file share expensive fixtures, so they stay in one process; those of the fewest tests, which start
# programs, must not come last. A process may take a gigabyte.
test: $(READY) $(SOURCES_READY) $(EXTRAS_READY) $(TOKENIZERS_READY)  ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
