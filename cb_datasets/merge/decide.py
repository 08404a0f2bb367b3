"""Decides which rows are merged: the options, the reasons to drop a row, and the decision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

import numpy as np

from ..sample import PRIORITY_WEIGHTS
from .index import CLASSES, MergeIndex
from .near_duplicates import find_near_duplicates


# Reasons to drop a row, in the order in which they are checked; `{of}` is the row it duplicates.
DROPS = {
    "quarantined": "it broke a rule",
    "marked_bad": "a person marked it as bad",
    "duplicate": "it is identical to {of} except for call ids",
    "near_duplicate": "{of} has the same class, injection, history and call, and nearly the same request or answer",
    "near_duplicate_of_eval": "it or a sibling has nearly the same request as the eval split or an evaluation prompt",
    "over_quota": "its class has a quota of pairs, and its pair was not sampled",
    "sibling_over_quota": "its pair has a sibling that exceeds the quota of its class",
    "over_dr_ratio": "Dr had reached its number of rows per row of Ds without its pair, which was not sampled",
}


@dataclass(frozen=True)
class MergeOptions:
    """Options of the merge: splits, deduplication, quotas and the Dr ratio.

    Args:
        seed (`int`, *optional*, defaults to `0`): Seed of the row order and of the rows sampled under a quota.
        eval_fraction (`float`, *optional*): Fraction of groups to hold out, by the same hash as at ingest, in addition
            to the rows that were held out there. If left out, the splits are those of ingest.
        repeat_similarity (`float`, *optional*, defaults to `0.95`): Minimum similarity of a `near_duplicate`; no row
            is one above 1.
        quotas (`Mapping[str, int]`, *optional*): Maximum number of pairs per class in the train split. A pair over a
            quota is dropped with all its rows, so that siblings stay together.
        dr_ratio (`float`, *optional*): Number of Dr rows per Ds row to sample Dr down to. Only pairs without a row in
            Ds are dropped, and the pair that reaches the ratio is kept, so that Dr does not fall below it.
        weights (`Mapping[str, float]`, *optional*, defaults to [`PRIORITY_WEIGHTS`]): Sampling weight of each class
            under `dr_ratio`; a pair has the largest weight of its rows.
    """

    seed: int = 0
    eval_fraction: float | None = None
    repeat_similarity: float = 0.95
    quotas: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    dr_ratio: float | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def decide(index: MergeIndex, marked_bad: np.ndarray, options: MergeOptions) -> tuple[np.ndarray, np.ndarray]:
    """Decide which rows are dropped, and why.

    Args:
        index ([`MergeIndex`]): The columns of all rows.
        marked_bad (`np.ndarray`, `bool`): Whether a person marked a row as bad.
        options ([`MergeOptions`]): The options of the merge.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Two arrays with a value per row. `reasons` is 0 for a kept row, else 1 + the
        position of the reason in `DROPS`. `duplicate_of` is, for a `duplicate` or `near_duplicate`, the number of the
        row it duplicates, else -1.
    """
    reasons = np.zeros(len(index), np.int8)

    def drop(reason: str, rows: np.ndarray) -> None:
        # The first reason wins, so each dropped row is counted once.
        reasons[rows & (reasons == 0)] = 1 + list(DROPS).index(reason)

    def kept(train_only: bool = False) -> np.ndarray:
        return (reasons == 0) & ((index.split == 0) | (not train_only))

    drop("quarantined", index.quarantined)
    drop("marked_bad", marked_bad)
    exact = _duplicates(index, kept())
    drop("duplicate", exact >= 0)
    near = _near_duplicates(index, kept(), options.repeat_similarity)
    drop("near_duplicate", near >= 0)
    # A pair with a leaking row is dropped whole, so that siblings stay together.
    drop("near_duplicate_of_eval", np.isin(index.pair, index.pair[index.leaks & kept()]) & kept(train_only=True))
    # Quotas and the ratio come last, so that no row which is dropped anyway counts towards them.
    for name, quota in options.quotas.items():
        over = _over_quota(index, kept(train_only=True), CLASSES.index(name), quota)
        drop("over_quota", over & (index.row_class == CLASSES.index(name)))
        drop("sibling_over_quota", over)
    if options.dr_ratio is not None:
        drop("over_dr_ratio", _over_ratio(index, kept(train_only=True), options))
    return reasons, np.where(near >= 0, near, exact)


def _duplicates(index: MergeIndex, kept: np.ndarray) -> np.ndarray:
    """The first row with the same content as each row; -1 for the first row itself.

    Eval rows come first, so that what evaluation needs is dropped from train; then rows go by `order`, so that the
    result does not depend on the order of the folders.
    """
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((index.order[rows], -index.split[rows], index.content[rows]))]
    is_first = np.diff(index.content[rows], prepend=index.content[rows[:1]] - np.uint64(1)) != 0
    first = rows[is_first][np.cumsum(is_first) - 1]
    duplicate_of = np.full(len(index), -1)
    duplicate_of[rows[~is_first]] = first[~is_first]
    return duplicate_of


def _near_duplicates(index: MergeIndex, kept: np.ndarray, similarity: float) -> np.ndarray:
    """A row with nearly the same wording that comes earlier by `order`; -1 if there is none."""
    # Most rows are alone in their bucket and need no comparison.
    _, inverse, counts = np.unique(index.bucket, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(kept & (counts[inverse] > 1))
    rows = rows[np.argsort(index.order[rows])]
    earlier = find_near_duplicates(index.signatures[index.signature[rows]], index.bucket[rows], similarity)
    duplicate_of = np.full(len(index), -1)
    duplicate_of[rows[earlier >= 0]] = rows[earlier[earlier >= 0]]
    return duplicate_of


def _over_quota(index: MergeIndex, kept: np.ndarray, row_class: int, quota: int) -> np.ndarray:
    """Rows of the pairs that have a row of this class and are not among the first `quota` such pairs."""
    # Hashes in sorted order are pairs in random order. It is the same for every quota, so quotas keep the same pairs.
    pairs = np.unique(index.pair[kept & (index.row_class == row_class)])
    return kept & np.isin(index.pair, pairs[quota:])


def _over_ratio(index: MergeIndex, kept: np.ndarray, options: MergeOptions) -> np.ndarray:
    """Rows of the pairs that are not needed for Dr to have `dr_ratio` rows per row of Ds."""
    # The ratio as it was written: as floats, 1.1 * 10 is more than 11.
    wanted = math.ceil(Fraction(str(options.dr_ratio)) * int((kept & index.is_ds).sum()))
    # Pairs with a Ds row are kept whole, so that siblings stay together. The other pairs are sampled.
    bound = kept & np.isin(index.pair, index.pair[kept & index.is_ds])
    free = np.flatnonzero(kept & ~bound)
    weights = np.array([(PRIORITY_WEIGHTS | dict(options.weights))[name] for name in CLASSES])
    pairs, inverse, pair_sizes = np.unique(index.pair[free], return_inverse=True, return_counts=True)
    pair_weights = np.zeros(len(pairs))
    np.maximum.at(pair_weights, inverse, weights[index.row_class[free]])
    # Weighted sampling without replacement (Efraimidis and Spirakis 2006): keep the largest u ** (1 / weight). The
    # hash of a pair, scaled to (0, 1), is its u.
    ranking = np.argsort(np.log((pairs + 0.5) / 2**64) / np.maximum(pair_weights, 1e-9))[::-1]
    # Of each pair the rows of Dr before it: the pair that reaches the ratio is kept whole.
    dr_rows = (bound & ~index.is_ds).sum() + np.cumsum(pair_sizes[ranking]) - pair_sizes[ranking]
    over = np.zeros(len(index), bool)
    over[free] = np.isin(index.pair[free], pairs[ranking[dr_rows >= wanted]])
    return over
