"""Sequences of different length in one forward, without padding, each shared beginning computed once.

    sequences            segments: tokens, and the segments before them      packed
    a b c d e            0: a b c, none     2: d e, after 0                  a b c  x y  d e  f
    a b c f              1: x y, none       3: f, after 0                    0 1 2  0 1  3 4  3  (position)
    x y

Everything in a decoder but attention works on tokens one by one, so it does not care where they stand. Attention lets
the tokens of a segment see what stands before it and, causally, the segment itself, which is exactly what they see in
sequences of their own. States of a shared beginning, and gradients through them, are those of any of the sequences.

Segments after the same tokens and of about the same length are attended in one call. They stand side by side, so that
a call takes its tokens, and gives their gradients back, as one piece. On a GPU and in half precision, Flash Attention
takes segments of any length in a single call, and what stands before them is copied there.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
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
    """Tokens, their positions in their sequences, and the numbers of the segments before them, outermost first."""

    tokens: np.ndarray
    positions: np.ndarray
    before: tuple[int, ...]


class Layout(NamedTuple):
    """Sequences as inputs of a model.

    Args:
        inputs (`dict[str, Any]`): Keyword arguments of the model's forward.
        positions (`list[np.ndarray]`): For each sequence, positions of its tokens among the flattened tokens.
    """

    inputs: dict[str, Any]
    positions: list[np.ndarray]


def padded(sequences: Sequence[Sequence[int]], pad_token_id: int, length: int) -> Layout:
    """A row for each sequence, padded on the right to `length` tokens."""
    input_ids = torch.full((len(sequences), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(sequences):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        attention_mask[row, : len(tokens)] = 1
    positions = [row * length + np.arange(len(tokens)) for row, tokens in enumerate(sequences)]
    return Layout({"input_ids": input_ids, "attention_mask": attention_mask}, positions)


def packed(sequences: Sequence[Sequence[int]], share_prefixes: bool) -> Layout:
    """One row of all sequences, for a model whose attention implementation is [`ATTENTION`]."""
    segments, paths = _segments([np.asarray(tokens) for tokens in sequences], share_prefixes)
    batches = _batches(segments)
    order = [number for batch in batches for number in batch]
    lengths = np.array([len(segments[number].tokens) for number in order])
    starts = dict(zip(order, (np.cumsum(lengths) - lengths).tolist(), strict=True))
    own = {number: start + np.arange(len(segments[number].tokens)) for number, start in starts.items()}
    groups, places = [], {}
    for number, batch in enumerate(batches):
        # Where the call that attends to a segment holds its tokens
        for member in batch:
            start = starts[member] - starts[batch[0]]
            places[member] = (number, start, start + len(segments[member].tokens))
        groups.append(_attention_group([segments[member] for member in batch], places))
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate([segments[number].tokens for number in order]))[None],
        "position_ids": torch.from_numpy(np.concatenate([segments[number].positions for number in order]))[None],
        # A mask of four dimensions is handed on as it is: none is made for the packed row.
        "attention_mask": torch.empty(1, 1, 0, 0),
        "segments": {"groups": groups, **_flash_arguments(order, segments, own)},
    }
    return Layout(inputs, [np.concatenate([own[number] for number in path]) for path in paths])


def _segments(arrays: list[np.ndarray], share_prefixes: bool) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """The segments that sequences are made of, and for each sequence the numbers of its own."""
    segments: list[Segment] = []
    paths: list[tuple[int, ...]] = [()] * len(arrays)

    def add(row: int, start: int, end: int, before: tuple[int, ...]) -> tuple[int, ...]:
        """Add tokens `start` to `end` of a sequence, if there are any."""
        if start == end:
            return before
        segments.append(Segment(arrays[row][start:end], np.arange(start, end), before))
        return (*before, len(segments) - 1)

    stack: list[tuple[list[int], int, tuple[int, ...]]]  # sequences that agree in what is placed of them
    if share_prefixes:
        stack = [(list(range(len(arrays))), 0, ())]
    else:
        stack = [([row], 0, ()) for row in range(len(arrays))]
    while stack:
        members, placed, before = stack.pop()
        agree = _common_length([arrays[row] for row in members])
        if len(members) == 1 or agree - placed >= MIN_SHARED:
            before, placed = add(members[0], placed, agree, before), agree
        for row in members:
            if len(arrays[row]) == agree:
                paths[row] = add(row, placed, agree, before)
        rest = sorted((row for row in members if len(arrays[row]) > agree), key=lambda row: (arrays[row][agree], row))
        children = [list(group) for _, group in groupby(rest, key=lambda row: arrays[row][agree])]
        stack.extend((child, placed, before) for child in children)
    return segments, paths


def _common_length(arrays: Sequence[np.ndarray]) -> int:
    """Number of tokens that all sequences begin with."""
    shortest = min(len(array) for array in arrays)
    differs = np.zeros(shortest, dtype=bool)
    for array in arrays[1:]:
        differs |= array[:shortest] != arrays[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def _batches(segments: Sequence[Segment]) -> list[list[int]]:
    """Numbers of segments that are attended in one call, the shortest first."""
    batches: list[list[int]] = []
    for number in sorted(range(len(segments)), key=lambda n: (segments[n].before, len(segments[n].tokens), n)):
        segment, first = segments[number], segments[batches[-1][0]] if batches else None
        if first is None or first.before != segment.before or not _fit(len(first.tokens), len(segment.tokens)):
            batches.append([])
        batches[-1].append(number)
    return batches


def _fit(shortest: int, length: int) -> bool:
    return length <= max(MAX_STRETCH * shortest, shortest + MAX_PADDING)


def _attention_group(batch: Sequence[Segment], places: Mapping[int, tuple[int, int, int]]) -> dict[str, Any]:
    """
    How to attend segments in one call.

    Returns:
        `dict[str, Any]`: `shape`, rows and columns of the call; `size`, its number of tokens; `before`, what stands
        before them, as numbers of other groups and ranges of their tokens; and, where lengths differ, `pad` and
        `unpad`, which make rows of the tokens and tokens of the rows.
    """
    lengths = np.array([len(segment.tokens) for segment in batch])
    rows, longest, size = len(batch), int(lengths.max()), int(lengths.sum())
    before = [places[number] for number in batch[0].before]
    group: dict[str, Any] = {"shape": (rows, longest), "size": size, "before": before}
    if size < rows * longest:
        # Columns past a segment's end repeat its last token. They stand after it, so causality hides them.
        columns = np.minimum(np.arange(longest), lengths[:, None] - 1)
        group["pad"] = torch.from_numpy((np.cumsum(lengths) - lengths)[:, None] + columns).flatten()
        group["unpad"] = torch.from_numpy(np.flatnonzero(np.arange(longest) < lengths[:, None]))
    return group


def _flash_arguments(
    order: Sequence[int], segments: Sequence[Segment], own: Mapping[int, np.ndarray]
) -> dict[str, Any]:
    """
    How to attend all segments in one call.

    Returns:
        `dict[str, Any]`: `cu_seq_q` and `cu_seq_k`, where segments begin and end among the tokens and among the keys;
        `max_q` and `max_k`, the most of both that a segment has; and, where keys are not just the tokens, `keys`, the
        tokens they are of.
    """
    keys = [np.concatenate([own[other] for other in (*segments[number].before, number)]) for number in order]
    lengths = {"q": [len(own[number]) for number in order], "k": [len(tokens) for tokens in keys]}
    arguments: dict[str, Any] = {f"max_{side}": max(values) for side, values in lengths.items()}
    for side, values in lengths.items():
        arguments[f"cu_seq_{side}"] = torch.tensor([0, *values], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    if any(segment.before for segment in segments):
        arguments["keys"] = torch.from_numpy(np.concatenate(keys))
    return arguments


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
    if sliding_window is not None and segments["max_k"] > sliding_window:
        raise ValueError(
            f"A row of {segments['max_k']} tokens is longer than this model's sliding window of {sliding_window}, "
            "which packed rows do not follow. Set `padding_free: false`."
        )
    # Token-major, so that a token's numbers lie together when tokens are gathered
    states = [state[0].transpose(0, 1) for state in (query, key, value)]
    if _has_flash(query) and not dropout:
        return _attend_at_once(states, segments, scaling)[None], None
    return _attend_by_group(states, segments, dropout, scaling)[None], None


def _has_flash(query: torch.Tensor) -> bool:
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or query.shape[-1] > 256:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_at_once(
    states: Sequence[torch.Tensor], segments: Mapping[str, Any], scaling: float | None
) -> torch.Tensor:
    """Attention of all segments. States are query, key and value, of shape `(tokens, heads, head_size)`."""
    query, key, value = states
    if "keys" in segments:
        key, value = (state.index_select(0, segments["keys"]) for state in (key, value))
    ends = (segments[name] for name in ("cu_seq_q", "cu_seq_k", "max_q", "max_k"))
    # A segment's last token sees all its keys, the one before all but one, and so on
    output = varlen_attn(query, key, value, *ends, scale=scaling, window_size=(-1, 0), enable_gqa=True)
    return cast(torch.Tensor, output)  # a tuple only with `return_aux`


def _attend_by_group(
    states: Sequence[torch.Tensor], segments: Mapping[str, Any], dropout: float, scaling: float | None
) -> torch.Tensor:
    """The same for one group of segments after another."""
    outputs, groups = [], segments["groups"]
    pieces = [state.split([group["size"] for group in groups]) for state in states]
    for number, group in enumerate(groups):
        rows, length = group["shape"]
        own = [states[number] for states in pieces]
        if "pad" in group:
            own = [states.index_select(0, group["pad"]) for states in own]
        q, k, v = (states.unflatten(0, (rows, length)) for states in own)
        num_before = sum(end - start for _, start, end in group["before"])
        mask = None
        if num_before:
            shared = (
                torch.cat([states[other][start:end] for other, start, end in group["before"]]).expand(rows, -1, -1, -1)
                for states in pieces[1:]
            )
            k, v = (torch.cat(parts, dim=1) for parts in zip(shared, (k, v), strict=True))
            if "mask" not in group:  # for all layers, as numbers to be added: truth values would be turned into them
                group["mask"] = q.new_full((length, num_before + length), -torch.inf).triu(num_before + 1)
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
        output = output.transpose(1, 2).flatten(0, 1)
        outputs.append(output.index_select(0, group["unpad"]) if "unpad" in group else output)
    return torch.cat(outputs)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
