"""The metrics of an evaluation, and the same as modules for `evaluate.load`."""
