# Real files on disk, no model and no network: AgentDojo dumps and runs, the B4 record sample, TAU2, UltraChat rows and
# XSTest, up to preflight with the real tokenizer.
#
#   make data RECIPE=local RAW=path/to/raw/files      (with agentdojo/, fujitsu/, tau2/, ultrachat/ and xstest/ below it)
#
# For the model of another tokenizer, with a data folder of its own:
#
#   make data RECIPE=local RAW=path/to/raw/files TOKENIZER=.tokenizers/qwen3 FORMAT=hermes DATA=data/local-qwen3

DATA := data/local
RAW ?= $(error RAW is not set: pass the folder that holds agentdojo/, fujitsu/, tau2/, ultrachat/ and xstest/)
# A folder: one that mk/environment.mk makes, or one of your own.
TOKENIZER := .tokenizers/llama-3.1
MODEL := $(TOKENIZER)
TOKENIZER_FILE := $(TOKENIZER)/tokenizer.json
# TAU2's reference actions are replayed in its real environments.
RECIPE_READY := $(SOURCES_READY)

# Everything is on disk.
export HF_HUB_OFFLINE := 1
# Two steps at a time, unless `make -j` says otherwise; each may take 700 MB.
MAKEFLAGS += -j2

SOURCES := agentdojo fujitsu_b4 tau2 ultrachat xstest
HARMFUL_SETS := agentdojo_failures
RETAIN_SETS := agentdojo_resisted agentdojo_benign tau2_traces ultrachat_subset
TASKS := agentdojo multi_turn tool_flip capability later_turn over_refusal

INGEST_FLAGS := --eval-fraction 0.2
INGEST_FLAGS_agentdojo = --data-dir $(call quoted,$(RAW)/agentdojo)
INGEST_FLAGS_fujitsu_b4 = --data-dir $(call quoted,$(RAW)/fujitsu)
# TAU2's own split holds tasks out.
INGEST_FLAGS_tau2 = --data-dir $(call quoted,$(RAW)/tau2) --eval-fraction 0
INGEST_FLAGS_ultrachat = --data-dir $(call quoted,$(RAW)/ultrachat)
INGEST_FLAGS_xstest = --data-dir $(call quoted,$(RAW)/xstest)
# Inboxes and listings are long: older results give way, visibly, before a row is dropped.
COLLECT_FLAGS := --fit

# What these files and no model can give. Each change is listed in reports/quality_gates.json and reports/stats.json:
#   nothing is generated, so all of Ds is recorded, and there are no adversarial-safe rows;
#   all of Ds is AgentDojo's, whose recordings are of one family and, in all but a few runs, of one injection task;
#   TAU2's official train split has some 260 calls that need no confirmation.
GATE_FLAGS := --max-recorded 1 --min-adversarial-safe 0 --max-family-share 1 --max-injection-task-share 1 --min-tau2 250
MERGE_FLAGS := --min-adversarial-safe 0
