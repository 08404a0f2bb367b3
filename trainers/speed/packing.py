"""Packed rows: sequences of different lengths in one forward, without padding, shared prefixes computed once.

    sequences            segments: tokens, and the prefix segments           packed
    a b c d e            0: a b c, none     2: d e, prefix 0                 a b c  x y  d e  f
    a b c f              1: x y, none       3: f, prefix 0                   0 1 2  0 1  3 4  3  (position)
    x y

Everything in a decoder but attention works on each token alone, so the order of tokens does not matter to it. In
attention the tokens of a segment attend to its prefix segments and, causally, to the segment itself: exactly the
tokens they attend to in their own sequences. So the states of a shared prefix are those that it has in each of its
sequences, and their gradients are summed over these.

Segments with the same prefix and of similar length are attended in one call (`packed_attention.py`). They are adjacent
in the packed row, so that the tokens of a call, and the gradients of these tokens, are one slice. On a GPU and in half
precision Flash Attention takes segments of any length in a single call, for which the prefixes are copied.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch


# A shared prefix with fewer tokens is computed for each sequence: every further segment can cost an attention call.
MIN_SHARED = 16

# Segments are attended in one call, padded to the longest, if that has at most this factor of the tokens of the
# shortest, or so many tokens more.
MAX_STRETCH = 1.25
MAX_PADDING = 16


class Segment(NamedTuple):
    """Tokens, their positions in their sequences, and the numbers of their prefix segments, outermost first."""

    tokens: np.ndarray
    positions: np.ndarray
    prefix: tuple[int, ...]


class Layout(NamedTuple):
    """Sequences laid out as the inputs of a model.

    Args:
        inputs (`dict[str, Any]`): Keyword arguments of the model's forward.
        positions (`list[np.ndarray]`): For each sequence, positions of its tokens among the flattened tokens.
    """

    inputs: dict[str, Any]
    positions: list[np.ndarray]


def padded(sequences: Sequence[Sequence[int]], pad_token_id: int, length: int) -> Layout:
    """One row per sequence, padded on the right to `length` tokens."""
    input_ids = torch.full((len(sequences), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(sequences):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        attention_mask[row, : len(tokens)] = 1
    positions = [row * length + np.arange(len(tokens)) for row, tokens in enumerate(sequences)]
    return Layout({"input_ids": input_ids, "attention_mask": attention_mask}, positions)


def packed(
    sequences: Sequence[Sequence[int]],
    share_prefixes: bool,
    identities: Sequence[Sequence[int] | np.ndarray] | None = None,
) -> Layout:
    """
    All sequences in one row, for a model whose attention implementation is `packed_attention.ATTENTION`.

    Args:
        sequences (`Sequence[Sequence[int]]`):
            Token ids.
        share_prefixes (`bool`):
            Whether tokens that several sequences begin with are computed once.
        identities (`Sequence[Sequence[int] | np.ndarray]`, *optional*):
            Numbers that say which tokens are the same, where the token ids alone do not: tokens whose embeddings are
            perturbed differently must not be shared.
    """
    arrays = [np.asarray(tokens) for tokens in sequences]
    same = arrays if identities is None else [np.asarray(numbers) for numbers in identities]
    segments, paths = _segments(arrays, same, share_prefixes)
    batches = _batches(segments)
    order = [number for batch in batches for number in batch]
    lengths = np.array([len(segments[number].tokens) for number in order])
    starts = dict(zip(order, (np.cumsum(lengths) - lengths).tolist(), strict=True))
    own = {number: start + np.arange(len(segments[number].tokens)) for number, start in starts.items()}
    # Number of the group of each segment, and range of the segment's tokens among those of the group
    places: dict[int, tuple[int, int, int]] = {}
    groups = []
    for number, batch in enumerate(batches):
        for member in batch:
            start = starts[member] - starts[batch[0]]
            places[member] = (number, start, start + len(segments[member].tokens))
        groups.append(_attention_group([segments[member] for member in batch], places))
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate([segments[number].tokens for number in order]))[None],
        "position_ids": torch.from_numpy(np.concatenate([segments[number].positions for number in order]))[None],
        # Transformers passes on a mask of four dimensions, instead of making a causal one for the whole row
        "attention_mask": torch.empty(1, 1, 0, 0),
        "segments": {"groups": groups, **_flash_arguments(order, segments, own)},
    }
    return Layout(inputs, [np.concatenate([own[number] for number in path]) for path in paths])


def _segments(
    arrays: list[np.ndarray], identities: list[np.ndarray], share_prefixes: bool
) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """
    The segments that sequences consist of: the edges of the prefix tree of their identities.

    Returns:
        `tuple[list[Segment], list[tuple[int, ...]]]`: the segments, each after those of its prefix, and for each
        sequence the numbers of its segments.
    """
    segments: list[Segment] = []
    paths: list[tuple[int, ...]] = [()] * len(arrays)

    def add_segment(row: int, start: int, end: int, prefix: tuple[int, ...]) -> tuple[int, ...]:
        """Add tokens `start` to `end` of a sequence, if there are any, and return the prefix of what follows."""
        if start == end:
            return prefix
        segments.append(Segment(arrays[row][start:end], np.arange(start, end), prefix))
        return (*prefix, len(segments) - 1)

    # Subtrees to do: their sequences, the number of their common tokens that are in segments, and these segments
    groups = [list(range(len(arrays)))] if share_prefixes else [[row] for row in range(len(arrays))]
    stack: list[tuple[list[int], int, tuple[int, ...]]] = [(group, 0, ()) for group in groups]
    while stack:
        members, done, prefix = stack.pop()
        common = _common_length([identities[row] for row in members])
        # A short common part is left to the children, each of which then has its own copy
        if len(members) == 1 or common - done >= MIN_SHARED:
            prefix, done = add_segment(members[0], done, common, prefix), common
        for row in members:
            if len(arrays[row]) == common:
                paths[row] = add_segment(row, done, common, prefix)
        # One child for each token that comes next
        rest = sorted(
            (row for row in members if len(arrays[row]) > common), key=lambda row: (identities[row][common], row)
        )
        children = [list(group) for _, group in groupby(rest, key=lambda row: identities[row][common])]
        stack.extend((child, done, prefix) for child in children)
    return segments, paths


def _common_length(arrays: Sequence[np.ndarray]) -> int:
    """Number of tokens that all sequences begin with."""
    shortest = min(len(array) for array in arrays)
    differs = np.zeros(shortest, dtype=bool)
    for array in arrays[1:]:
        differs |= array[:shortest] != arrays[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def _batches(segments: Sequence[Segment]) -> list[list[int]]:
    """Numbers of the segments of each attention call, the shortest first."""
    batches: list[list[int]] = []
    for number in sorted(range(len(segments)), key=lambda n: (segments[n].prefix, len(segments[n].tokens), n)):
        segment, first = segments[number], segments[batches[-1][0]] if batches else None
        if (
            first is None
            or first.prefix != segment.prefix
            or not _fit_together(len(first.tokens), len(segment.tokens))
        ):
            batches.append([])
        batches[-1].append(number)
    return batches


def _fit_together(shortest: int, length: int) -> bool:
    return length <= max(MAX_STRETCH * shortest, shortest + MAX_PADDING)


def _attention_group(batch: Sequence[Segment], places: Mapping[int, tuple[int, int, int]]) -> dict[str, Any]:
    """
    Arguments of the attention call of a group of segments.

    Returns:
        `dict[str, Any]`: `shape`, rows and columns of the call; `size`, its number of tokens; `prefix`, the tokens
        before all of its segments, as numbers of other groups and ranges of their tokens; and, where lengths differ,
        `pad` and `unpad`, indices that turn the tokens into padded rows and back.
    """
    lengths = np.array([len(segment.tokens) for segment in batch])
    rows, longest, size = len(batch), int(lengths.max()), int(lengths.sum())
    prefix = [places[number] for number in batch[0].prefix]
    group: dict[str, Any] = {"shape": (rows, longest), "size": size, "prefix": prefix}
    if size < rows * longest:
        # Columns past a segment's end repeat its last token: the causal mask hides them from its tokens
        columns = np.minimum(np.arange(longest), lengths[:, None] - 1)
        group["pad"] = torch.from_numpy((np.cumsum(lengths) - lengths)[:, None] + columns).flatten()
        group["unpad"] = torch.from_numpy(np.flatnonzero(np.arange(longest) < lengths[:, None]))
    return group


def _flash_arguments(
    order: Sequence[int], segments: Sequence[Segment], own: Mapping[int, np.ndarray]
) -> dict[str, Any]:
    """
    Arguments of the one call of Flash Attention for all segments.

    Returns:
        `dict[str, Any]`: `cu_seq_q` and `cu_seq_k`, the boundaries of the segments among the queries and among the
        keys; `max_q` and `max_k`, the largest numbers of queries and keys of a segment; and, where some segment has a
        prefix, `keys`, the indices of the keys' tokens.
    """
    keys = [np.concatenate([own[other] for other in (*segments[number].prefix, number)]) for number in order]
    lengths = {"q": [len(own[number]) for number in order], "k": [len(tokens) for tokens in keys]}
    arguments: dict[str, Any] = {f"max_{name}": max(values) for name, values in lengths.items()}
    for name, values in lengths.items():
        arguments[f"cu_seq_{name}"] = torch.tensor([0, *values], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    if any(segment.prefix for segment in segments):
        arguments["keys"] = torch.from_numpy(np.concatenate(keys))
    return arguments
