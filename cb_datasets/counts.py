"""Counts by name, quantiles and measured values, as reports, tables and cards show them."""

from collections import Counter
from collections.abc import Iterable, Sequence


def counted(values: Iterable[str]) -> dict[str, int]:
    """Number of occurrences of each value, sorted by name."""
    return dict(sorted(Counter(values).items()))


def listed(counts: dict[str, int]) -> str:
    """Counts on one line: `kept 3, dropped 2`."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def gate_number(value: float | None) -> str:
    """A value or limit of a gate: whole numbers in full, as counts are read, others to four digits."""
    if value is None:
        return "nothing to measure"
    return f"{value:.0f}" if value % 1 == 0 else f"{value:.4g}"


def quantiles(values: Sequence[int]) -> dict[str, int] | None:
    """`{min, p50, p95, max, mean}` of some lengths; `None` if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p95 = (ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] for fraction in (0.5, 0.95))
    return {"min": ordered[0], "p50": p50, "p95": p95, "max": ordered[-1], "mean": round(sum(ordered) / len(ordered))}
