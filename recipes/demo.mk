# The embedded default: look-alike prompts and office suites of our own, and the tiny agent. No download, no GPU, a quarter
# of an hour.
#
#   make demo

DATA := data/demo
MODEL := demo/tiny_agent

# Everything is on disk.
export HF_HUB_OFFLINE := 1

# Both halves: single prompts, and the agent's own runs in the office suites of demo/office.
SOURCES := lookalike agentdojo
ATTACKED := lookalike
HARMFUL_SETS := lookalike_flips agentdojo_failures
RETAIN_SETS := adversarial_safe lookalike_benign_twins refusals chat agentdojo_safe agentdojo_benign agentdojo_words
RETAIN_SOURCES := lookalike
TASKS := tool_flip multi_turn capability later_turn refusal chat irrelevance
# Plain Representation Rerouting is trained too, and shown beside the breaker.
ALSO := plain_rr

# One thread is fastest for a model this small, and makes runs repeatable.
export OMP_NUM_THREADS := 1

# The eval side is the source's own test split: words, phrasings and attack families that training never meets.
INGEST_FLAGS := --eval-fraction 0 --held-out test
# Not with vLLM where it is installed: it has no attention for heads as small as the tiny agent's.
OFFICE := --suite-module demo.office --attack lookalike --backend transformers --max-steps 8 --max-new-tokens 96 \
	--concurrency 64
RUNS_FLAGS = $(OFFICE) --suite 'office_train_*'
# Two of the four suites of test, for the time; docs/selectivity.md has all.
LIVE_FLAGS = $(OFFICE) --suite 'office_test_[01]'
# Thousands of prompts of one length: nothing to measure.
SHEET_FLAGS :=
# Two of the eight tools make most requests. A breaker has to learn about the others too.
GENERATE_FLAGS := --max-new-tokens 96 --batch-size 32 --max-prompts 1400 --max-eval-prompts 24 --per-tool 100
# The retain set needs variety more than anything: a breaker that knows few clean requests breaks unknown ones too.
DR_FLAGS := --max-prompts 1400 --per-tool 100
# As flips are sampled, so that the completions of attacked prompts are made once.
SAFE_FLAGS := --temperature 0.7 --top-p 0.95
# The agent follows nearly every attack, so nearly all adversarial-safe rows have the call of the clean twin; the report
# says how many do not.
GATE_FLAGS := --min-safe-sampled 0 --max-safe-twins 1
# Every flip has the right call of its prompt beside it in Dr. What the trainer sees of each is set by its batch sizes.
MERGE_FLAGS := --min-dr-ratio 2.5
EVAL_FLAGS := --max-prompts 400
EVALUATE_FLAGS := --max-new-tokens 96 --batch-size 32
# Small batches: keys and values of a larger one do not fit the cache of a CPU. Budgets for five minutes.
ATTACK_FLAGS := --max-new-tokens 96 --batch-size 32 --budget black_box.draws=15 \
	--budget suffix.prompts=20 --budget suffix.steps=30 --budget prefix_suffix.prompts=10 \
	--budget prefix_suffix.steps=20 --budget universal.steps=15 --budget embedding.prompts=10 --budget embedding.steps=60
# One process needs no launcher.
LAUNCH := $(BIN)/python
