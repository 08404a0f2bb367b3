"""Traces and completions in, Ds, Dr and evaluation prompts out; then one merged dataset."""
