"""Proportions with intervals, and paired comparisons. A rate over zero rows is an error."""

import math
from collections.abc import Sequence

import numpy as np


Z_95 = 1.959963984540054

RESAMPLES = 2000

# Numbers in one block of resamples: few enough for the CPU cache, whatever the number of groups.
_BLOCK = 1_000_000


def proportion(hits: int, n: int) -> dict:
    """`{value, n, low, high}` of `hits / n`, see [`rate_with_interval`].

    Raises:
        ValueError: If `n` is 0: a rate over zero rows is an error, never 0.0.
    """
    if n == 0:
        raise ValueError("A rate over zero rows is undefined.")
    return rate_with_interval(hits / n, n)


def rate_with_interval(value: float, n: int) -> dict:
    """`{value, n, low, high}` of a rate over `n` rows, with its 95 % Wilson score interval (Wilson 1927)."""
    centre = value + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(value * (1 - value) / n + Z_95**2 / (4 * n * n))
    scale = 1 + Z_95**2 / n
    # At 0 and 1 the interval ends at the value itself, which floating-point rounding would miss slightly.
    low, high = min(value, max(0.0, (centre - spread) / scale)), max(value, min(1.0, (centre + spread) / scale))
    return {"value": value, "n": n, "low": low, "high": high}


def bootstrap(hits: np.ndarray, rows: np.ndarray, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % percentile interval of a rate, from resampling whole groups (cluster bootstrap; Efron 1979).

    Prompts of one group are correlated, which the Wilson interval ignores. The bootstrap interval collapses to a
    point where the rate is 0 or 1, which the Wilson interval does not. Report both.

    Args:
        hits, rows (`np.ndarray`): Hits and rows of each group, shape `(groups,)`.
        seed (`int`, *optional*, defaults to `0`): Seed of the resampling.

    Returns:
        `tuple`: Lower and upper end of the interval; `(None, None)` if there are fewer than two groups.
    """
    groups = len(rows)
    if groups < 2:
        return None, None
    generator, values = np.random.default_rng(seed), []
    block = max(1, _BLOCK // groups)
    for start in range(0, RESAMPLES, block):
        resample = generator.integers(0, groups, (min(block, RESAMPLES - start), groups))
        values.append(hits[resample].sum(axis=1) / rows[resample].sum(axis=1))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_quantile(
    values: np.ndarray, groups: np.ndarray, quantile: float, seed: int = 0
) -> tuple[float | None, float | None]:
    """95 % percentile interval of a quantile, from resampling whole groups, see [`bootstrap`].

    The quantile is the smallest value that at least this fraction of the values does not exceed.

    Args:
        values (`np.ndarray`): The values, shape `(n,)`.
        groups (`np.ndarray`): Number of the group of each, from 0, shape `(n,)`.
        quantile (`float`): Between 0 and 1.
        seed (`int`, *optional*, defaults to `0`): Seed of the resampling.

    Returns:
        `tuple`: Lower and upper end of the interval; `(None, None)` if there are fewer than two groups.
    """
    num_groups = int(groups.max()) + 1
    if num_groups < 2:
        return None, None
    order = np.argsort(values, kind="stable")
    values, groups = values[order], groups[order]
    generator, quantiles = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        # A group that is drawn k times counts k times. Rounding must not push the rank over a whole number.
        drawn = np.bincount(generator.integers(0, num_groups, num_groups), minlength=num_groups)
        ranks = drawn[groups].cumsum()
        quantiles.append(values[np.searchsorted(ranks, quantile * ranks[-1] * (1 - 1e-12))])
    low, high = np.quantile(quantiles, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """`{gained, lost, p}`: numbers of prompts that changed, and the exact two-sided McNemar p-value (McNemar 1947).

    Args:
        before, after (`Sequence[bool]`): Whether each prompt is a hit for the one model and for the other.
    """
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return {"gained": gained, "lost": lost, "p": min(1.0, 2 * tail)}


def format_rate(rate: dict | None) -> str:
    """A rate with its interval as text; `-` if it was not measured."""
    if rate is None:
        return "-"
    return f"{rate['value']:6.1%}  [{rate['low']:.1%}, {rate['high']:.1%}]  n={rate['n']}"
