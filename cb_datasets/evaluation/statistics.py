"""Proportions with intervals, and paired comparisons. Nothing here divides by zero rows."""

import math
from collections.abc import Sequence

import numpy as np


Z_95 = 1.959963984540054

RESAMPLES = 2000

# Numbers of one block of resamples: what fits into a cache, whatever the number of groups.
_BLOCK = 1_000_000


def proportion(hits: int, n: int) -> dict:
    """`{value, n, low, high}` of a rate, see [`rate`].

    Raises:
        ValueError: If `n` is 0: a rate over nothing is an error, never 0.0.
    """
    if n == 0:
        raise ValueError("A rate over zero rows is not a number.")
    return rate(hits / n, n)


def rate(value: float, n: int) -> dict:
    """`{value, n, low, high}` of a rate over `n` rows, with its 95 % Wilson score interval (Wilson 1927)."""
    centre = value + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(value * (1 - value) / n + Z_95**2 / (4 * n * n))
    scale = 1 + Z_95**2 / n
    # At 0 and 1 the interval ends at the value itself, which rounding would miss by a hair.
    low, high = min(value, max(0.0, (centre - spread) / scale)), max(value, min(1.0, (centre + spread) / scale))
    return {"value": value, "n": n, "low": low, "high": high}


def bootstrap(hits: np.ndarray, rows: np.ndarray, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % percentile interval of a rate when whole groups are drawn again (cluster bootstrap; Efron 1979).

    Prompts of a group stand and fall together, which Wilson's interval does not know. It is too narrow where the rate
    is 0 or 1, which Wilson's is not: read both.

    Args:
        hits, rows (`np.ndarray`): Of each group, shape `(groups,)`.
        seed (`int`, *optional*, defaults to `0`): Of the resampling.

    Returns:
        `tuple`: The ends of the interval; `None` twice where there are fewer than two groups to draw from.
    """
    groups = len(rows)
    if groups < 2:
        return None, None
    generator, values = np.random.default_rng(seed), []
    block = max(1, _BLOCK // groups)
    for start in range(0, RESAMPLES, block):
        drawn = generator.integers(0, groups, (min(block, RESAMPLES - start), groups))
        values.append(hits[drawn].sum(axis=1) / rows[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """`{gained, lost, p}`: how many prompts changed sides, and the exact two-sided McNemar p-value (McNemar 1947)."""
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return {"gained": gained, "lost": lost, "p": min(1.0, 2 * tail)}


def shown(figure: dict | None) -> str:
    """A figure with its interval; a dash where it was not measured."""
    if figure is None:
        return "-"
    return f"{figure['value']:6.1%}  [{figure['low']:.1%}, {figure['high']:.1%}]  n={figure['n']}"
