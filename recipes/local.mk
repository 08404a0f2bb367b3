# Real files on disk, no model: AgentDojo dumps, the B4 record sample and XSTest, up to preflight with the real tokenizer.
#
#   make data RECIPE=local RAW=path/to/raw/files      (with agentdojo/, fujitsu/ and xstest/ below it)

DATA := data/local
RAW ?= $(error RAW is not set: pass the folder that holds agentdojo/, fujitsu/ and xstest/)
MODEL := .tokenizers/llama-3.1
TOKENIZER_FILE := .tokenizers/llama-3.1/tokenizer.json

# Everything is on disk.
export HF_HUB_OFFLINE := 1

SOURCES := agentdojo fujitsu_b4 xstest
HARMFUL_SETS := agentdojo_failures
RETAIN_SETS := agentdojo_resisted agentdojo_benign
TASKS := agentdojo tool_flip capability over_refusal

INGEST_FLAGS := --eval-fraction 0.2
INGEST_FLAGS_agentdojo = --data-dir $(RAW)/agentdojo
INGEST_FLAGS_fujitsu_b4 = --data-dir $(RAW)/fujitsu
INGEST_FLAGS_xstest = --data-dir $(RAW)/xstest

# What eight dumps and no model can give. Each change is listed in reports/quality_gates.json and reports/stats.json:
#   nothing is generated, so all of Ds is recorded, and there are no adversarial-safe rows and no refusals;
GATE_FLAGS := --max-recorded 1 --min-adversarial-safe 0 --min-refusals 0 --min-retain-classes 2
