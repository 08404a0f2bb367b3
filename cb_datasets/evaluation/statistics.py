"""Proportions with intervals, and paired comparisons. Nothing here divides by zero rows."""

import math
from collections.abc import Sequence


Z_95 = 1.959963984540054


def proportion(hits: int, n: int) -> dict:
    """`{value, n, low, high}` of a rate, with its 95 % Wilson score interval (Wilson 1927).

    Raises:
        ValueError: If `n` is 0: a rate over nothing is an error, never 0.0.
    """
    if n == 0:
        raise ValueError("A rate over zero rows is not a number.")
    p = hits / n
    centre = p + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
    scale = 1 + Z_95**2 / n
    # At 0 and 1 the interval ends at the value itself, which rounding would miss by a hair.
    low, high = min(p, max(0.0, (centre - spread) / scale)), max(p, min(1.0, (centre + spread) / scale))
    return {"value": p, "n": n, "low": low, "high": high}


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """`{gained, lost, p}`: how many prompts changed sides, and the exact two-sided McNemar p-value (McNemar 1947)."""
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return {"gained": gained, "lost": lost, "p": min(1.0, 2 * tail)}
