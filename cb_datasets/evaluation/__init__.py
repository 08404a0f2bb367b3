"""Evaluation of the base model and breakers on the same prompts: outcomes, metrics with intervals, and gates."""
