"""Which rows are merged: the options, the reasons to leave a row out, and the decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ..sample import PRIORITY_WEIGHTS
from .index import CLASSES, MergeIndex
from .near_duplicates import near_repeats


# Why a row is left out, in the order in which the reasons are looked for; `{of}` is the row it repeats.
DROPS = {
    "quarantined": "it broke a rule",
    "marked_bad": "a person marked it as bad",
    "duplicate": "it is, but for ids of calls, word for word what {of} is",
    "near_duplicate": "{of} has its class, injection, history and call, and nearly its request or answer",
    "near_duplicate_of_eval": "it, or a sibling of it, asks nearly what the eval split or an evaluation prompt asks",
    "over_quota": "its class has a quota of pairs, and its pair was not drawn",
    "sibling_over_quota": "a sibling in its pair was over the quota of its class",
    "over_dr_ratio": "there was too much of Dr for each row of Ds, and its pair was not drawn",
}


@dataclass(frozen=True)
class MergeOptions:
    """What is taken into the merged dataset.

    Args:
        seed (`int`, *optional*, defaults to `0`): Decides the order of rows, and which of them a quota keeps.
        eval_fraction (`float`, *optional*): Hold out this share of groups, by the same hash as at ingest; rows that
            were held out there stay so. Without it, the splits are those of ingest.
        repeat_similarity (`float`, *optional*, defaults to `0.95`): Similarity from which on a row is a
            `near_duplicate`; above 1 nothing is.
        quotas (`Mapping[str, int]`, *optional*): Most pairs of a class in the train split. A pair that is over a quota
            leaves with all its rows, so that siblings stay together.
        max_dr_ratio (`float`, *optional*): Most rows of Dr for each row of Ds. Pairs that have no row in Ds go, as few
            as it takes.
        weights (`Mapping[str, float]`, *optional*, defaults to [`PRIORITY_WEIGHTS`]): How much a pair of each class
            is worth keeping under `max_dr_ratio`; a pair counts as its most valuable row.
    """

    seed: int = 0
    eval_fraction: float | None = None
    repeat_similarity: float = 0.95
    quotas: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    max_dr_ratio: float | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def decide(index: MergeIndex, marked_bad: np.ndarray, options: MergeOptions) -> tuple[np.ndarray, np.ndarray]:
    """What is left out and why.

    Args:
        index ([`MergeIndex`]): What is known of the rows.
        marked_bad (`np.ndarray`, `bool`): Whether a person marked a row as bad.
        options ([`MergeOptions`]): What is taken.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: For each row 0, or 1 + the position in `DROPS` of the reason why it is left
        out; and, of a `duplicate` or `near_duplicate`, which row it repeats, else -1.
    """
    reasons = np.zeros(len(index), np.int8)

    def drop(reason: str, rows: np.ndarray) -> None:
        reasons[rows & (reasons == 0)] = 1 + list(DROPS).index(reason)

    def kept(of_train: bool = False) -> np.ndarray:
        return (reasons == 0) & ((index.split == 0) | (not of_train))

    drop("quarantined", index.is_out)
    drop("marked_bad", marked_bad)
    repeats = _repeats(index, kept())
    drop("duplicate", repeats >= 0)
    nearly = _near_repeats(index, kept(), options.repeat_similarity)
    drop("near_duplicate", nearly >= 0)
    drop("near_duplicate_of_eval", np.isin(index.pair, index.pair[index.leaks & kept()]) & kept(of_train=True))
    for name, quota in options.quotas.items():
        over = _over_quota(index, kept(of_train=True), CLASSES.index(name), quota)
        drop("over_quota", over & (index.kind == CLASSES.index(name)))
        drop("sibling_over_quota", over)
    if options.max_dr_ratio is not None:
        drop("over_dr_ratio", _over_ratio(index, kept(of_train=True), options))
    return reasons, np.where(nearly >= 0, nearly, repeats)


def _repeats(index: MergeIndex, kept: np.ndarray) -> np.ndarray:
    """Which row has the same content and comes first; -1 for that row itself, and where there is none.

    Those of eval come first, then it goes by `order`, not by folder.
    """
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((index.order[rows], -index.split[rows], index.content[rows]))]
    is_first = np.diff(index.content[rows], prepend=index.content[rows[:1]] - np.uint64(1)) != 0
    first = rows[is_first][np.cumsum(is_first) - 1]
    repeated = np.full(len(index), -1)
    repeated[rows[~is_first]] = first[~is_first]
    return repeated


def _near_repeats(index: MergeIndex, kept: np.ndarray, similarity: float) -> np.ndarray:
    """Which row, of those that come first by `order`, has nearly the same wording; -1 where there is none."""
    # Most rows are alone in their bucket and need no comparing.
    _, inverse, counts = np.unique(index.bucket, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(kept & (counts[inverse] > 1))
    rows = rows[np.argsort(index.order[rows])]
    found = near_repeats(index.signatures[index.signature[rows]], index.bucket[rows], similarity)
    repeated = np.full(len(index), -1)
    repeated[rows[found >= 0]] = rows[found[found >= 0]]
    return repeated


def _over_quota(index: MergeIndex, kept: np.ndarray, kind: int, quota: int) -> np.ndarray:
    """Rows of the pairs that have a row of this class and are not among the first `quota` of them."""
    pairs = np.unique(index.pair[kept & (index.kind == kind)])  # sorted, and so in random order
    return kept & np.isin(index.pair, pairs[quota:])


def _over_ratio(index: MergeIndex, kept: np.ndarray, options: MergeOptions) -> np.ndarray:
    """Rows of the pairs to go so that there is not too much of Dr for what there is of Ds."""
    allowed = int(options.max_dr_ratio * (kept & index.is_ds).sum())
    bound = kept & np.isin(index.pair, index.pair[kept & index.is_ds])
    free = np.flatnonzero(kept & ~bound)
    weights = np.array([(PRIORITY_WEIGHTS | dict(options.weights))[name] for name in CLASSES])
    pairs, inverse, rows_of = np.unique(index.pair[free], return_inverse=True, return_counts=True)
    weight = np.zeros(len(pairs))
    np.maximum.at(weight, inverse, weights[index.kind[free]])
    # Weighted draw without replacement (Efraimidis and Spirakis 2006): the largest u ** (1 / weight) are drawn first.
    drawn = np.argsort(np.log((pairs + 0.5) / 2**64) / np.maximum(weight, 1e-9))[::-1]
    taken = (bound & ~index.is_ds).sum() + np.cumsum(rows_of[drawn])
    over = np.zeros(len(index), bool)
    over[free] = np.isin(index.pair[free], pairs[drawn[taken > allowed]])
    return over
