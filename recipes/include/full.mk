# What the recipes for a GPU node have in common: a model's own completions of B4's attacked prompts and in the situations
# of AgentDojo's recorded agents, with vLLM. B4 is gated and AgentDojo's recordings have no address that could be pinned,
# so both are local copies; the rest comes from where it is published.
#
# A recipe sets DATA, MODEL and what is decided about its chat template, and includes this file. What differs it sets:
#
#   TENSOR_PARALLEL    GPUs that share the model
#   MAX_NEW_TOKENS     length of a completion, thinking included; one that reaches it is dropped
#
# The parsers of vLLM and the rank of the adapter need no flags: a server gets them from the call format and the adapter.

RAW ?= $(error RAW is not set: pass the folder that holds fujitsu/ and agentdojo/)
TENSOR_PARALLEL ?= 1
MAX_NEW_TOKENS ?= 256
# TAU2's reference actions are replayed in its real environments.
RECIPE_READY := $(SOURCES_READY)

SOURCES := fujitsu_b4 agentdojo tau2 ultrachat xstest lookalike
ATTACKED := fujitsu_b4
# The look-alike prompts give what B4 has none of: requests to refuse, chat, and questions that need no tool. Their
# attacked prompts are not made, so that every attack in the report is of B4 or of AgentDojo.
RETAIN_SOURCES := fujitsu_b4 lookalike
HARMFUL_SETS := b4_flips agentdojo_failures
RETAIN_SETS := adversarial_safe b4_benign_twins agentdojo_resisted agentdojo_benign tau2_traces ultrachat_subset refusals chat
TASKS := tool_flip agentdojo forged_turn forced_call multi_turn capability later_turn irrelevance over_refusal refusal chat

INGEST_FLAGS := --eval-fraction 0.2
INGEST_FLAGS_fujitsu_b4 = --data-dir $(call quoted,$(RAW)/fujitsu)
INGEST_FLAGS_agentdojo = --data-dir $(call quoted,$(RAW)/agentdojo)
# Its own split holds tasks out.
INGEST_FLAGS_tau2 := --eval-fraction 0
INGEST_FLAGS_ultrachat := --n-samples 2000
INGEST_FLAGS_lookalike := --tasks refusal --tasks chat --tasks irrelevance

ENGINE_FLAGS = --backend vllm --tensor-parallel $(TENSOR_PARALLEL) --max-new-tokens $(MAX_NEW_TOKENS)
GENERATE_FLAGS = $(ENGINE_FLAGS)
# More than half of the prompts flip. Ds takes some of them, so that Dr, which asks all, is at least four times as large.
DS_FLAGS := --max-prompts 4000 --num-samples 2
# Four draws each for the prompts that the model did not resist, then four more under a warning that the rows do not
# have, until there are enough; then the clean twins' calls.
SAFE_FLAGS := --target-n 3000 --min-n 400 --retry-temperatures 0.7 --retry-temperatures 1.0 --warned-temperatures 0.7
REGENERATE_FLAGS := --fit --num-samples 2
COLLECT_FLAGS := --fit
# TAU2's official train split has some 260 calls that need no confirmation.
GATE_FLAGS := --min-tau2 250
# The definition of done: a train split of full size.
MERGE_FLAGS := --min-train 5000
EVAL_FLAGS := --max-prompts 500
EVALUATE_FLAGS = $(ENGINE_FLAGS)
ATTACK_FLAGS = --max-new-tokens $(MAX_NEW_TOKENS)
AGENTDOJO_FLAGS = --tensor-parallel $(TENSOR_PARALLEL)
LAUNCH_FLAGS ?= --num_processes 1 --num_machines 1 --mixed_precision bf16 --dynamo_backend no
