"""Checks that stop the pipeline: rules for a row, gates for a set, and a preflight with the target's tokenizer."""
