"""Attention of sequences that are decoded together, as an attention function of Transformers.

The tokens of all sequences form one row without padding. Keys and values of a prefix that sequences share are stored
once, and those of the tokens after it in the slot of each sequence:

    prefix    system, tools
    slot 0                   user: Pictures of the moon?   assistant: Here
    slot 1                   user: Who wrote this?   assistant: It was written by

Every token of a sequence attends to the prefix and to the tokens of its slot, as if they were one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import repeat_kv


ATTENTION = "circuit_breaker_decoding"


def supports(network: Any) -> bool:
    """Whether this attention is all that the network remembers of earlier tokens.

    Windows, convolutions, recurrent states and adapters that are tokens themselves are not supported.
    """
    if isinstance(network, PeftModel):
        if any(config.is_prompt_learning for config in network.peft_config.values()):
            return False
        network = network.get_base_model()
    config = network.config.get_text_config(decoder=True)
    # The layers of a cache are made from the config: one of another type has a window or a state.
    layers = DynamicCache(config=config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return plain and network._supports_attention_backend and network._can_set_attn_implementation()


@contextmanager
def decoding_attention(network: Any) -> Iterator[None]:
    """Use this attention in a network, which others may share."""
    before = network.config._attn_implementation
    network.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


class Slots:
    """Keys and values of the tokens after the prefix, of each sequence and layer.

    Args:
        number (`int`): Number of sequences.
        capacity (`int`): Largest number of tokens of a sequence.
    """

    def __init__(self, number: int, capacity: int) -> None:
        self.number, self.capacity = number, capacity
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of a layer, in which states look like `key` and `value`: `(slots, heads, capacity, size)`."""
        if index not in self._layers:
            # Zeros: what is masked must be finite.
            self._layers[index] = self._zeros_like(key), self._zeros_like(value)
        return self._layers[index]

    def _zeros_like(self, state: torch.Tensor) -> torch.Tensor:
        return state.new_zeros(self.number, state.shape[1], self.capacity, state.shape[3])

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        for states in self._layers.values():
            for state in states:
                state[target, :, :length] = state[source, :, :length]


class Step(Protocol):
    """One forward pass: which tokens of the row belong to which slots."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Store keys and values, and return the output of shape `(1, tokens, heads, size)`."""


class Prefix:
    """All tokens of a prefix, which may be empty.

    Args:
        ids (`list[int]`): The tokens. Their keys and values, by layer and of shape `(1, heads, tokens, size)`, are
            `layers`, once this step has run.
    """

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        self.layers[layer] = key, value
        return _attend_causally(query, key, value, scaling).transpose(1, 2)


class Segment(NamedTuple):
    """Tokens `[start, end)` of the row: the first ones of a slot, after a prefix."""

    start: int
    end: int
    slot: int
    prefix: Prefix


class Prefill:
    """All tokens of some sequences after their prefixes.

    Args:
        slots ([`Slots`]): The slots.
        segments (`Sequence[Segment]`): The segments of the row, in order.
    """

    def __init__(self, slots: Slots, segments: Sequence[Segment]) -> None:
        self._slots, self._segments = slots, segments

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        keys, values = self._slots.layer(layer, key, value)
        outputs = []
        for start, end, slot, prefix in self._segments:
            q, k, v = (states[:, :, start:end] for states in (query, key, value))
            keys[slot, :, : end - start], values[slot, :, : end - start] = k[0], v[0]
            if prefix.ids:
                k, v = (torch.cat(pair, 2) for pair in zip(prefix.layers[layer], (k, v), strict=True))
            outputs.append(_attend_causally(q, k, v, scaling))
        return torch.cat(outputs, 2).transpose(1, 2)


class NextToken:
    """One further token of each of the first slots.

    Args:
        slots ([`Slots`]): The slots.
        lengths (`list[int]`): Number of tokens that each slot has so far.
        prefixes (`Sequence[Prefix]`): The prefix of each.
        device (`torch.device`): The network's.
    """

    def __init__(self, slots: Slots, lengths: list[int], prefixes: Sequence[Prefix], device: torch.device) -> None:
        self._slots, self._longest = slots, max(lengths) + 1
        self._rows, self._columns = torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device)
        places = torch.arange(self._longest, device=device)
        self._hidden = (places > self._columns[:, None])[:, None, None]  # by slot, head, query and key
        members: dict[int, list[int]] = {}
        for row, prefix in enumerate(prefixes):
            if prefix.ids:
                members.setdefault(id(prefix), []).append(row)
        self._groups = [(prefixes[rows[0]], torch.tensor(rows, device=device)) for rows in members.values()]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        keys, values = self._slots.layer(layer, key, value)
        keys[self._rows, :, self._columns], values[self._rows, :, self._columns] = (
            states[0].transpose(0, 1) for states in (key, value)
        )
        keys, values = (states[: len(self._rows), :, : self._longest] for states in (keys, values))
        # By slot, key head, query of that head, and size
        q = (query[0] * scaling).transpose(0, 1).unflatten(1, (key.shape[1], -1))
        output, weight = _attend(q, keys, values, self._hidden)
        for prefix, rows in self._groups:
            [shared_keys], [shared_values] = prefix.layers[layer]
            shared_output, shared_weight = (
                states.unflatten(1, (len(rows), -1)).transpose(0, 1)
                for states in _attend(q[rows].transpose(0, 1).flatten(1, 2), shared_keys, shared_values)
            )
            # The softmax over both is the mean of the two outputs, weighted by the sums of their exponentials.
            share = (shared_weight - weight[rows]).sigmoid()
            output[rows] = torch.lerp(output[rows], shared_output, share)
        return output.to(query.dtype).flatten(1, 2)[None]


def _attend_causally(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention of queries at the last positions of their keys."""
    earlier = key.shape[2] - query.shape[2]
    mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(earlier) if earlier else None
    key, value = (repeat_kv(states, query.shape[1] // states.shape[1]) for states in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of scaled queries in float32, and the logarithm of the sum of its exponentials."""
    scores = (query @ key.transpose(-1, -2)).float()
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -torch.inf)
    total = scores.logsumexp(-1, keepdim=True)
    return ((scores - total).exp_().to(value.dtype) @ value).float(), total


def _decoding_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    decoding: Step,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a step.

    Raises:
        ValueError: If the model has a soft cap or sinks.
    """
    unsupported = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(f"{type(module).__name__} has an attention that decoding does not support: {unsupported[0]}.")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return decoding.attend(cast(int, module.layer_idx), query, key, value, scaling), None


AttentionInterface.register(ATTENTION, _decoding_attention)
