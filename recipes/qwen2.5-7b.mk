# Qwen2.5 7B on a GPU node, see recipes/include/full.mk.
#
#   make evaluate RECIPE=qwen2.5-7b RAW=path/to/raw/files    (with fujitsu/ and agentdojo/ below it)
#
# Checked: the prompts and calls of recorded data with the real tokenizer (recipes/local.mk, FORMAT=hermes), and that every
# command of the recipe is one. Not yet run on a GPU. Licence: Apache-2.0.

DATA := data/qwen2.5-7b
MODEL := Qwen/Qwen2.5-7B-Instruct
FORMAT := hermes

include recipes/include/full.mk
