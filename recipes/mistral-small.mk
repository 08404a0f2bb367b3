# Mistral Small 3 (24B, January 2025) on a GPU node, see recipes/include/full.mk.
#
#   make evaluate RECIPE=mistral-small RAW=path/to/raw/files    (with fujitsu/ and agentdojo/ below it)
#
# Its prompts are those of version 7 of Mistral's tokenizers, and its calls a list in JSON, as since version 3. The chat
# template on the Hub does not write tools in every revision, so the recipe takes the one that mistral-common generates
# for version 7, as `.tokenizers/mistral-v7` has it.
#
# Checked: with mistral-common's own tokens for version 7, this template writes the same ids as mistral-common in four
# conversations with tools, calls and results; every command of the recipe is one. Not checked: that the Hub's tokenizer
# of this model gives these tokens the same ids. Not yet run on a GPU: 47 GB of weights fit on one of 80 GB. Licence:
# Apache-2.0.
#
# Mistral Small 3.1 and 3.2 are models of images and texts, 3.1 with the prompts of version 7 and 3.2 with those of version 11
# (FORMAT=mistral_v11 CHAT_TEMPLATE=.tokenizers/mistral-v11/chat_template.jinja). Their repositories have no tokenizer for
# Transformers in every revision, and LoRA must leave out the vision tower. Neither was tried.

DATA := data/mistral-small
MODEL := mistralai/Mistral-Small-24B-Instruct-2501
FORMAT := mistral_v3
CHAT_TEMPLATE := .tokenizers/mistral-v7/chat_template.jinja

include recipes/include/full.mk
