# A second, real model: SmolLM2-135M, taught to call tools by demo/train_smollm2_agent.py, on the demo's look-alike
# prompts and in its office. No download beyond PyPI and no GPU: some three hours on two cores, so everything is smaller
# than in the demo.
#
#   make smollm2

DATA := data/smollm2
MODEL := $(SMOLLM2_AGENT)
# Made first where it is not there yet, in an hour of two cores.
RECIPE_READY := $(MODEL)/model.safetensors

# Everything is on disk.
export HF_HUB_OFFLINE := 1
# One thread each makes runs repeatable.
export OMP_NUM_THREADS := 1

SOURCES := lookalike agentdojo
ATTACKED := lookalike
HARMFUL_SETS := lookalike_flips agentdojo_failures
RETAIN_SETS := adversarial_safe lookalike_benign_twins refusals chat agentdojo_safe agentdojo_benign agentdojo_words
RETAIN_SOURCES := lookalike
TASKS := tool_flip multi_turn capability later_turn refusal chat
ALSO := plain_rr

INGEST_FLAGS := --eval-fraction 0 --held-out test
OFFICE := --suite-module demo.office --attack lookalike --backend transformers --max-steps 8 --max-new-tokens 96 \
	--concurrency 32
RUNS_FLAGS = $(OFFICE) --suite 'office_train_[0-5]'
LIVE_FLAGS = $(OFFICE) --suite office_test_0
SHEET_FLAGS :=
GENERATE_FLAGS := --max-new-tokens 64 --batch-size 32 --max-prompts 240 --max-eval-prompts 8
# As flips are sampled, so that the completions of attacked prompts are made once.
SAFE_FLAGS := --temperature 0.7 --top-p 0.95
# Fewer adversarial-safe rows than a run of full size has, and nearly all with the call of the clean twin, since the agent
# follows nearly every attack; the reports say so.
GATE_FLAGS := --min-adversarial-safe 150 --min-safe-sampled 0 --max-safe-twins 1
# The agent's failures in the office are as many as the demo's.
MERGE_FLAGS := --min-adversarial-safe 150 --min-dr-ratio 2.5
EVAL_FLAGS := --max-prompts 200
EVALUATE_FLAGS := --max-new-tokens 64 --batch-size 32
# One process needs no launcher.
LAUNCH := $(BIN)/python
