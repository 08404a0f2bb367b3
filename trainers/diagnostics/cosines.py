"""
Cosines between the hidden states of adapted models and those of the base model, on the same row and on the clean one.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from cb_datasets.evaluation.compare import BASE

from ..augment import Augmentation
from ..objective.hidden_states import get_decoder, hidden_states_at
from ..objective.losses import token_cosine
from ..speed.packing import padded
from ..tokenize_rows import prepare_row
from .cosine_stats import ClassCosineStats


def measure_cosines(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict[str, Any]], batch_tokens: int
) -> dict[str, dict[str, Any]]:
    """
    Statistics of cosines by class of rows, see `trainers/diagnostics/__main__.py`.

    Args:
        model ([`~peft.PeftModel`]):
            The base model with all adapters. Each is enabled in turn, and all are disabled for the base model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows (`Iterable[dict[str, Any]]`):
            Samples.
        batch_tokens (`int`):
            Maximum number of tokens of a forward pass, padding included.

    Raises:
        ValueError: If there are no rows.
    """
    layers = range(1, len(get_decoder(model).layers) + 1)
    stats: dict[str, ClassCosineStats] = {}
    for samples, batch in _batches(rows, tokenizer, batch_tokens):
        for sample, prepared, cosines in zip(samples, batch, _cosines(model, tokenizer, batch, layers), strict=True):
            name = sample["priority_class"]
            if name not in stats:
                stats[name] = ClassCosineStats(list(model.peft_config), len(layers))
            stats[name].add_prepared_row(prepared, cosines)
    if not stats:
        raise ValueError("There are zero rows, so there are no cosines to average.")
    return {name: stats[name].class_summary() for name in sorted(stats)}


def _batches(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Samples and the prepared rows of the same samples, as many as fit into one forward pass, but at least one."""
    no_augmentation = Augmentation(seed=0)
    samples: list[dict[str, Any]] = []
    batch: list[dict[str, Any]] = []
    longest = 0
    for sample in rows:
        prepared = prepare_row(sample, tokenizer, {}, no_augmentation)
        longest = max(longest, len(prepared["input_ids"]))
        if samples and longest * (len(samples) + 1) > batch_tokens:
            yield samples, batch
            samples, batch, longest = [], [], len(prepared["input_ids"])
        samples.append(sample)
        batch.append(prepared)
    if samples:
        yield samples, batch


def _cosines(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: list[dict[str, Any]], layers: Sequence[int]
) -> list[dict[str, dict[str, np.ndarray]]]:
    """For each row `{measure: {model: cosines}}`, of shape `(layers, tokens)`."""
    sequences = [row["input_ids"] for row in batch]
    attacked = [i for i, row in enumerate(batch) if row["clean_ids"]]
    base = _states(model, tokenizer, sequences, layers, None)
    clean = _states(model, tokenizer, [batch[i]["clean_ids"] for i in attacked], layers, None)
    clean_of = dict(zip(attacked, clean, strict=True))
    cosines: list[dict[str, dict[str, np.ndarray]]] = [{"cosine": {}, "to_clean": {}} for _ in batch]
    for name in (BASE, *model.peft_config):
        states = base if name == BASE else _states(model, tokenizer, sequences, layers, name)
        for i, own in enumerate(states):
            if name != BASE:
                cosines[i]["cosine"][name] = _cosine(own, base[i])
            if i in clean_of:
                # The prompts differ in length; the completions at their ends are the same tokens
                length = len(batch[i]["input_ids"]) - batch[i]["prompt_length"]
                cosines[i]["to_clean"][name] = _cosine(own[:, -length:], clean_of[i][:, -length:])
    return cosines


def _cosine(states: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    return token_cosine(states, others).cpu().numpy()


def _states(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: list[list[int]],
    layers: Sequence[int],
    adapter: str | None,
) -> list[torch.Tensor]:
    """States of each sequence, shape `(layers, tokens, hidden_size)`; of the base model if `adapter` is `None`."""
    if not sequences:
        return []
    longest = max(len(tokens) for tokens in sequences)
    # Padding is masked, so that any token will do
    inputs, positions = padded(sequences, tokenizer.pad_token_id or 0, longest)
    gather = {str(i): (layers, torch.from_numpy(own).to(model.device)) for i, own in enumerate(positions)}
    if adapter is not None:
        model.set_adapter(adapter)
    adapter_state: AbstractContextManager = model.disable_adapter() if adapter is None else nullcontext()
    with torch.inference_mode(), adapter_state:
        on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        states = hidden_states_at(model, get_decoder(model), on_device, len(layers), gather)
    return [torch.stack(states[str(i)]) for i in range(len(sequences))]
