"""Completions of prompts: `Dataset.map` over durable shards, and the backends that run the model."""

from .backend import Backend, Completion, Sampling, Scorer
from .complete import complete


__all__ = ["Backend", "Completion", "Sampling", "Scorer", "complete"]
