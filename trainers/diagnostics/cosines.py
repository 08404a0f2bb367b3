"""
Cosines of hidden states of rows to those of the base model, and to those that it has after the clean prompt.
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


def measure(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict[str, Any]], batch_tokens: int
) -> dict[str, dict[str, Any]]:
    """
    Cosines of rows by class, see `trainers/diagnostics.py`.

    Args:
        model ([`~peft.PeftModel`]):
            The base model with all adapters; each is switched on in turn, and all are switched off for the base.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows (`Iterable[dict[str, Any]]`):
            Samples.
        batch_tokens (`int`):
            Most tokens of one forward pass, padding included.

    Raises:
        ValueError: If there are no rows.
    """
    layers = range(1, len(get_decoder(model).layers) + 1)
    tallies: dict[str, ClassCosineStats] = {}
    for some, prepared in _batches(rows, tokenizer, batch_tokens):
        for row, ready, cosines in zip(some, prepared, _cosines(model, tokenizer, prepared, layers), strict=True):
            name = row["priority_class"]
            if name not in tallies:
                tallies[name] = ClassCosineStats(list(model.peft_config), len(layers))
            tallies[name].add(ready, cosines)
    if not tallies:
        raise ValueError("Cosines over zero rows are no numbers: the data hold no sample.")
    return {name: tallies[name].told() for name in sorted(tallies)}


def _batches(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Rows, and the same prepared, as many together as fit into one forward pass; at least one."""
    as_it_is = Augmentation(seed=0)
    some: list[dict[str, Any]] = []
    prepared: list[dict[str, Any]] = []
    longest = 0
    for row in rows:
        ready = prepare_row(row, tokenizer, {}, as_it_is)
        longest = max(longest, len(ready["input_ids"]))
        if some and longest * (len(some) + 1) > batch_tokens:
            yield some, prepared
            some, prepared, longest = [], [], len(ready["input_ids"])
        some.append(row)
        prepared.append(ready)
    if some:
        yield some, prepared


def _cosines(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: list[dict[str, Any]], layers: Sequence[int]
) -> list[dict[str, dict[str, np.ndarray]]]:
    """For each row `{measure: {model: cosines}}`, of shape `(layers, tokens)`."""
    sequences = [row["input_ids"] for row in batch]
    attacked = [at for at, row in enumerate(batch) if row["clean_ids"]]
    base = _states(model, tokenizer, sequences, layers, None)
    clean = _states(model, tokenizer, [batch[at]["clean_ids"] for at in attacked], layers, None)
    clean_of = dict(zip(attacked, clean, strict=True))
    result: list[dict[str, dict[str, np.ndarray]]] = [{"cosine": {}, "to_clean": {}} for _ in batch]
    for name in (BASE, *model.peft_config):
        states = base if name == BASE else _states(model, tokenizer, sequences, layers, name)
        for at, own in enumerate(states):
            if name != BASE:
                result[at]["cosine"][name] = _cosine(own, base[at])
            if at in clean_of:
                number = len(batch[at]["input_ids"]) - batch[at]["prompt_length"]
                result[at]["to_clean"][name] = _cosine(own[:, -number:], clean_of[at][:, -number:])
    return result


def _cosine(states: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    return token_cosine(states, others).cpu().numpy()


def _states(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: list[list[int]],
    layers: Sequence[int],
    adapter: str | None,
) -> list[torch.Tensor]:
    """For each sequence its states, shape `(layers, tokens, hidden_size)`; of the base if `adapter` is `None`."""
    if not sequences:
        return []
    longest = max(len(tokens) for tokens in sequences)
    # What is padded is masked, so any token serves.
    inputs, positions = padded(sequences, tokenizer.pad_token_id or 0, longest)
    reads = {str(at): (layers, torch.from_numpy(own).to(model.device)) for at, own in enumerate(positions)}
    if adapter is not None:
        model.set_adapter(adapter)
    put_aside: AbstractContextManager = model.disable_adapter() if adapter is None else nullcontext()
    with torch.inference_mode(), put_aside:
        on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        states = hidden_states_at(model, get_decoder(model), on_device, len(layers), reads)
    return [torch.stack(states[str(at)]) for at in range(len(sequences))]
