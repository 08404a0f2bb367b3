# Qwen3 8B without thinking on a GPU node, see recipes/include/full.mk.
#
#   make evaluate RECIPE=qwen3-8b RAW=path/to/raw/files    (with fujitsu/ and agentdojo/ below it)
#
# With `enable_thinking=false` the prompt closes the thinking, so the first tokens of a completion are its decision, and
# recorded turns are what the model itself would write. To let it think, set TEMPLATE_SETTINGS to nothing and
# MAX_NEW_TOKENS to 4096: what is cut off is dropped, and the attacker's call comes after words that no set has seen.
#
# Checked: the prompts and calls of recorded data with the real tokenizer (recipes/local.mk, FORMAT=hermes), and that every
# command of the recipe is one. Not yet run on a GPU. Licence: Apache-2.0.

DATA := data/qwen3-8b
MODEL := Qwen/Qwen3-8B
FORMAT := hermes
TEMPLATE_SETTINGS := enable_thinking=false

include recipes/include/full.mk
