# gpt-oss 20B with little reasoning on a GPU node, see recipes/include/full.mk.
#
#   make evaluate RECIPE=gpt-oss-20b RAW=path/to/raw/files    (with fujitsu/ and agentdojo/ below it)
#
# The model cannot be kept from thinking: a completion begins with its analysis, and the decision is the message after it.
# `reasoning_effort=low` keeps that short. A recorded turn, which has no analysis, is not what the model would write.
#
# vLLM reads the weights as they are published, in MXFP4 (13 GB). In Transformers, which trains and measures cosines, they
# cannot be trained: without the package `kernels` it writes them out in bfloat16 (42 GB) by itself, so leave that package
# out.
#
# Checked: the prompts and calls of recorded data with the real tokenizer (recipes/local.mk, FORMAT=harmony), loss and
# gradients of a tiny gpt-oss (docs/models.md), and that every command of the recipe is one. Not yet run on a GPU, and so
# not how much longer its completions get. Licence: Apache-2.0.

DATA := data/gpt-oss-20b
MODEL := openai/gpt-oss-20b
FORMAT := harmony
TEMPLATE_SETTINGS := reasoning_effort=low
# Analysis and call.
MAX_NEW_TOKENS := 1024

include recipes/include/full.mk

AGENTDOJO_FLAGS += --max-new-tokens 2048
