# The field's benchmarks, asked of a breaker that is trained already: nothing is trained, and no Ds or Dr is made.
#
#   make evaluate RECIPE=yardsticks MODEL=path/or/hub-id ADAPTER=path/or/hub-id RAW=path/to/raw/files
#
# RAW may hold agentdojo/, agentdyn/, injecagent/, llmail/, ultrachat/ and xstest/. What is not there is fetched from its
# publisher, and left out if it has none (AgentDojo's and AgentDyn's recordings) or with HF_HUB_OFFLINE=1. BFCL comes with
# its package, the look-alikes with this one. AgentDojo's own live benchmark joins the same report:
#
#   make agentdojo RECIPE=yardsticks MODEL=... ADAPTER=... SUITES="banking slack travel workspace"
#
# For another model or breaker, name another DATA, to keep both reports.

DATA := data/yardsticks
MODEL ?= $(error MODEL is not set: the base model of ADAPTER, a folder or a Hub id)
RAW ?=
# BFCL's data.
RECIPE_READY := $(SOURCES_READY)

PUBLISHED := injecagent llmail ultrachat xstest
ON_DISK := $(foreach name,agentdojo agentdyn $(PUBLISHED),$(shell test ! -e $(call quoted,$(RAW)/$(name)) || echo $(name)))
SOURCES := lookalike bfcl $(ON_DISK) $(if $(filter 1,$(HF_HUB_OFFLINE)),,$(filter-out $(ON_DISK),$(PUBLISHED)))
SOURCE_OF_agentdyn := agentdojo
TASKS := injecagent llmail fidelity agentdojo tool_flip forged_turn forced_call multi_turn \
	capability later_turn irrelevance over_refusal refusal chat

# All of a benchmark is asked. A breaker that was trained on a part of one, which its model card names, saw that part.
INGEST_FLAGS := --eval-fraction 1
INGEST_FLAGS_lookalike := --eval-fraction 0 --held-out test
from_disk = $(if $(filter $(1),$(ON_DISK)),--data-dir $(call quoted,$(RAW)/$(1)))
INGEST_FLAGS_ultrachat = --n-samples 1000 $(call from_disk,ultrachat)
$(foreach name,$(filter-out ultrachat,$(ON_DISK)),$(eval INGEST_FLAGS_$(name) = $$(call from_disk,$(name))))

# InjecAgent has 2,108 prompts, and a part of them is another benchmark. Of other tasks, as many are a sample.
EVAL_FLAGS := --max-prompts 2108
EVALUATE_FLAGS ?= --max-new-tokens 256
# The adapter's strength, the weights when merged, and general ability, on held-out conversations.
SCALES := 0.5 0.75 1.25
MERGE_DTYPES := bfloat16
ABILITY_DATA := $(filter %/ultrachat,$(SOURCES:%=$(DATA)/traces/%))
