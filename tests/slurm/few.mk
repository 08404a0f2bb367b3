# The demo with fewer sets, prompts and steps of training, and no runs in the office: enough for each of four array tasks
# to have shards.

include recipes/demo.mk

DATA := data/few
SOURCES := lookalike
HARMFUL_SETS := lookalike_flips
RUNS_FLAGS :=
LIVE_FLAGS :=
RETAIN_SETS := lookalike_benign_twins refusals
ALSO :=
GENERATE_FLAGS := --max-new-tokens 96 --batch-size 128 --max-prompts 200 --max-eval-prompts 10
DR_FLAGS :=
EVAL_FLAGS := --max-prompts 10
# No adversarial-safe rows are made, so their gate fails until it is lowered.
MERGE_FLAGS := --min-dr-ratio 1 --min-adversarial-safe 0
# Ten prompts of a task prove nothing of a breaker.
EVALUATE_FLAGS += --min-asr-reduction -100 --min-benign-kept 0
