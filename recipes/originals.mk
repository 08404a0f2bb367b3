# Real sources from where they are published, no model: as recipes/local.mk, with the network in place of local files.
# AgentDojo's recordings have no address that could be pinned, so they are a local copy here too.
#
#   make data RECIPE=originals RAW=path/to/raw/files      (with agentdojo/ below it)

DATA := data/originals
RAW ?= $(error RAW is not set: pass the folder that holds agentdojo/)
# A folder: one that mk/environment.mk makes, or one of your own.
TOKENIZER := .tokenizers/llama-3.1
MODEL := $(TOKENIZER)
TOKENIZER_FILE := $(TOKENIZER)/tokenizer.json
# TAU2 is read from its package, tasks and environments alike.
RECIPE_READY := $(SOURCES_READY)

SOURCES := agentdojo tau2 ultrachat xstest agentharm
HARMFUL_SETS := agentdojo_failures
RETAIN_SETS := agentdojo_resisted agentdojo_benign tau2_traces ultrachat_subset
TASKS := agentdojo multi_turn capability later_turn over_refusal agentharm

INGEST_FLAGS := --eval-fraction 0.2
INGEST_FLAGS_agentdojo = --data-dir $(call quoted,$(RAW)/agentdojo)
# Its own split holds tasks out.
INGEST_FLAGS_tau2 := --eval-fraction 0
INGEST_FLAGS_ultrachat := --n-samples 1000
COLLECT_FLAGS := --fit

# Nothing is generated: all of Ds is recorded, and there are no adversarial-safe rows. AgentDojo's recordings are of one
# family and, in all but a few runs, of one injection task. TAU2's official train split has some 260 calls that need no
# confirmation.
GATE_FLAGS := --max-recorded 1 --min-adversarial-safe 0 --max-family-share 1 --max-injection-task-share 1 --min-tau2 250
MERGE_FLAGS := --min-adversarial-safe 0
