"""Sequences of different length in one forward, without padding, each shared beginning computed once.

    sequences            packed                           segments: tokens, and what stands before them
    a b c d e            a b c  d e  f  x y               0-3 nothing, 3-5 after 0-3, 5-6 after 0-3, 6-8 nothing
    a b c f              0 1 2  3 4  3  0 1  (position)
    x y

Everything in a decoder but attention works on tokens one by one, so it does not care where they stand. Attention lets
the tokens of a segment see what stands before it and, causally, the segment itself, which is exactly what they see in
sequences of their own. States of a shared beginning, and gradients through them, are those of any of the sequences.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa
from transformers.masking_utils import sdpa_mask


ATTENTION = "circuit_breaker_packed"

# A shared beginning shorter than this is computed for each sequence: a segment costs a call of its own.
MIN_SHARED = 16

# Segments are attended together, padded to the longest, up to this factor of the shortest, or so many tokens more.
MAX_STRETCH = 1.25
MAX_PADDING = 16


class Segment(NamedTuple):
    """Tokens `start` to `end` of the packed row, and the ranges that stand before them, outermost first."""

    start: int
    end: int
    before: tuple[tuple[int, int], ...]


class Layout(NamedTuple):
    """Sequences as inputs of a model.

    Args:
        inputs (`dict[str, Any]`): Keyword arguments of the model's forward.
        index (`list[np.ndarray]`): For each sequence, where its tokens stand among the flattened tokens.
    """

    inputs: dict[str, Any]
    index: list[np.ndarray]


def padded(sequences: Sequence[Sequence[int]], pad_token_id: int, length: int) -> Layout:
    """A row for each sequence, padded on the right to `length` tokens."""
    input_ids = torch.full((len(sequences), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(sequences):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        attention_mask[row, : len(tokens)] = 1
    index = [row * length + np.arange(len(tokens)) for row, tokens in enumerate(sequences)]
    return Layout({"input_ids": input_ids, "attention_mask": attention_mask}, index)


def packed(sequences: Sequence[Sequence[int]], share_prefixes: bool) -> Layout:
    """One row of all sequences, for a model whose attention implementation is [`ATTENTION`]."""
    arrays = [np.asarray(tokens) for tokens in sequences]
    paths: dict[int, list[tuple[int, int]]] = {}  # of each sequence, the ranges of the packed row that make it up
    segments: list[Segment] = []

    def add(members: list[int], start: int, end: int, before: tuple[tuple[int, int], ...]) -> tuple:
        """Place tokens `start` to `end` of `members`, which agree in them."""
        if start == end:
            return before
        at = segments[-1].end if segments else 0
        segments.append(Segment(at, at + end - start, before))
        tokens.append(arrays[members[0]][start:end])
        positions.append(np.arange(start, end))
        return (*before, (at, at + end - start))

    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    if share_prefixes:
        stack = [(list(range(len(arrays))), 0, ())]
    else:
        stack = [([row], 0, ()) for row in reversed(range(len(arrays)))]
    while stack:
        members, placed, before = stack.pop()
        agree = _common_length([arrays[row] for row in members])
        if len(members) == 1 or agree - placed >= MIN_SHARED:
            before, placed = add(members, placed, agree, before), agree
        ended = [row for row in members if len(arrays[row]) == agree]
        for row in ended:
            paths[row] = list(add([row], placed, agree, before))
        rest = sorted((row for row in members if len(arrays[row]) > agree), key=lambda row: (arrays[row][agree], row))
        children = [list(group) for _, group in groupby(rest, key=lambda row: arrays[row][agree])]
        stack.extend((child, placed, before) for child in reversed(children))

    inputs = {
        "input_ids": torch.from_numpy(np.concatenate(tokens))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        # A mask of four dimensions is handed on as it is: none is made for the packed row.
        "attention_mask": torch.empty(1, 1, 0, 0),
        "segments": _attention_groups(segments),
    }
    index = [np.concatenate([np.arange(*part) for part in paths[row]]) for row in range(len(arrays))]
    return Layout(inputs, index)


def _common_length(arrays: Sequence[np.ndarray]) -> int:
    """Number of tokens that all sequences begin with."""
    shortest = min(len(array) for array in arrays)
    differs = np.zeros(shortest, dtype=bool)
    for array in arrays[1:]:
        differs |= array[:shortest] != arrays[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def _fit(shortest: Segment, segment: Segment) -> bool:
    length, other = shortest.end - shortest.start, segment.end - segment.start
    return other <= max(MAX_STRETCH * length, length + MAX_PADDING)


def _positions(rows: np.ndarray) -> dict[str, Any]:
    """Positions of shape `(rows, length)`, as a range where they are one: it is read without a copy."""
    flat = rows.flatten()
    if (np.diff(flat) == 1).all():
        return {"start": int(flat[0]), "shape": list(rows.shape)}
    return {"index": torch.from_numpy(flat), "shape": list(rows.shape)}


def _take(states: torch.Tensor, positions: dict[str, Any]) -> torch.Tensor:
    """States of shape `(tokens, ...)` at some positions, of shape `(rows, length, ...)`."""
    if "start" in positions:
        rows, length = positions["shape"]
        taken = states[positions["start"] : positions["start"] + rows * length]
    else:
        taken = states.index_select(0, positions["index"])
    return taken.unflatten(0, positions["shape"])


def _attention_groups(segments: Sequence[Segment]) -> dict[str, Any]:
    """
    Segments that are attended in one call: after the same tokens, and of about the same length.

    Returns:
        `dict[str, Any]`: `groups`, a list of `{"own": ..., "before": ...}` with the packed row's indices, and
        `restore`, for each token of the packed row where the groups' outputs hold it.
    """
    order = sorted(segments, key=lambda segment: (segment.before, segment.end - segment.start, segment.start))
    batches: list[list[Segment]] = []
    for segment in order:
        first = batches[-1][0] if batches else None
        if first is None or first.before != segment.before or not _fit(first, segment):
            batches.append([])
        batches[-1].append(segment)
    groups, restore, offset = [], np.empty(max(segment.end for segment in segments), dtype=np.int64), 0
    for batch in batches:
        longest = batch[-1].end - batch[-1].start
        # Columns past a segment's end repeat its last token. They stand after it, so causality hides them.
        own = np.stack([np.minimum(np.arange(s.start, s.start + longest), s.end - 1) for s in batch])
        for row, segment in enumerate(batch):
            at = offset + row * longest
            restore[segment.start : segment.end] = np.arange(at, at + segment.end - segment.start)
        offset += own.size
        ranges = [np.arange(*part) for part in batch[0].before]
        before = np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)
        groups.append({"own": _positions(own), "before": torch.from_numpy(before)})
    return {"groups": groups, "restore": _positions(restore[None])}


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention of a packed row; of an ordinary batch, where a forward has no `segments`, the library's own.

    Args:
        module, query, key, value, attention_mask, dropout, scaling, sliding_window:
            As the library's attention functions take them, `query` of shape `(batch, heads, tokens, head_size)`.
        segments (`dict[str, Any]`, *optional*):
            What [`packed`] made.
    """
    if segments is None:
        kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    # Token-major, so that a token's numbers lie together when tokens are gathered
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    outputs = []
    for group in segments["groups"]:
        q, k, v = (_take(states, group["own"]) for states in (query, key, value))
        rows, length = group["own"]["shape"]
        before = group["before"]
        total = length + len(before)
        if sliding_window is not None and total > sliding_window:
            raise ValueError(
                f"A row of {total} tokens is longer than this model's sliding window of {sliding_window}, which "
                "packed rows do not follow. Set `padding_free: false`."
            )
        mask = None
        if len(before):
            shared = (states.index_select(0, before).expand(rows, -1, -1, -1) for states in (key, value))
            k, v = (torch.cat(parts, dim=1) for parts in zip(shared, (k, v), strict=True))
            if "mask" not in group:  # for all layers, as numbers to be added: truth values would be turned into them
                group["mask"] = q.new_full((length, total), -torch.inf).triu(len(before) + 1)
            mask = group["mask"]
        q, k, v = (states.transpose(1, 2) for states in (q, k, v))
        grouped = k.shape[1] < q.shape[1]
        if grouped and not use_gqa_in_sdpa(mask, k, v):
            k, v = (repeat_kv(states, q.shape[1] // states.shape[1]) for states in (k, v))
            grouped = False
        output = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _take(output, segments["restore"]), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
