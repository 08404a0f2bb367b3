"""Gates: numbers a set must reach before anything is trained on it.

A gate is a measured value, a threshold and the number of rows behind it. Outcomes are recomputed from
`assistant_raw` (`census.py`); no gate reads a label, and none passes over zero rows. A recipe may lower a threshold,
and the report then says so.

    V1  before the merge   every set, Ds, Dr, and what single sources must give
    V2  after it           `merged_gates.py`
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..outcomes import Outcome
from .row_counts import RowCounts, RowProfile
from .thresholds import MergedThresholds, Thresholds, changed


@dataclass(frozen=True)
class Gate:
    """One gate's result. `value` is null where there was nothing to measure, and then the gate has failed."""

    name: str
    value: float | None
    limit: float
    rows: int
    passed: bool


def at_least(name: str, value: float | None, limit: float, rows: int) -> Gate:
    return Gate(name, value, limit, rows, rows > 0 and value is not None and value >= limit)


def at_most(name: str, value: float | None, limit: float, rows: int) -> Gate:
    return Gate(name, value, limit, rows, rows > 0 and value is not None and value <= limit)


def share(count: int, total: int) -> float | None:
    """`count / total`, and nothing at all over zero rows."""
    return count / total if total else None


def number(found: RowCounts, condition: Callable[[RowProfile], bool]) -> int:
    """How many rows fulfil a condition."""
    return sum(count for kind, count in found.items() if condition(kind))


def format_gates(found: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of each set: most rows break no rule, and none does once those in quarantine are left out."""
    gates = []
    for subset in sorted({kind.subset for kind in found}) or [""]:
        of_set = Counter({kind: count for kind, count in found.items() if kind.subset == subset})
        n, kept = of_set.total(), number(of_set, lambda kind: not kind.quarantined)
        sound = number(of_set, lambda kind: kind.sound)
        wrong = number(of_set, lambda kind: not kind.sound and not kind.quarantined)
        gates.append(at_least(f"{subset}: rows that break no rule", share(sound, n), limits.min_valid, n))
        gates.append(at_most(f"{subset}: rows that break one, quarantine left out", wrong, 0, kept))
    return gates


def harmful_gates(found: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of Ds."""
    ds = _outside_quarantine(found, "circuit_breaker")
    n = ds.total()
    harm = number(ds, lambda kind: kind.does_harm)
    recorded = number(ds, lambda kind: kind.completion_source == "recorded")
    categories: Counter[str] = Counter()
    for kind, count in ds.items():
        categories[kind.category] += count
    largest = max(categories.values(), default=0)
    gates = [
        at_least("harmful: attack succeeded", share(harm, n), limits.min_harmful_rate, n),
        at_most("harmful: recorded, not sampled", share(recorded, n), limits.max_recorded, n),
        at_least("harmful: categories", len(categories), limits.min_categories, n),
        at_most("harmful: largest category", share(largest, n), limits.max_category_share, n),
        at_most("harmful: synthetic markers", number(ds, lambda kind: kind.marker), 0, n),
    ]
    flips = number(ds, _is_flip)
    if flips or not n:  # a Ds of compliance in words has none, and needs none
        unflipped = number(ds, lambda kind: _is_flip(kind) and kind.outcome != Outcome.ATTACK_SUCCESS)
        gates.append(at_most("harmful: flips that do not flip", unflipped, 0, flips))
    return gates


def _is_flip(kind: RowProfile) -> bool:
    return kind.priority_class == "harmful_flip"


def retain_gates(found: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of Dr. A minimum of zero states that the recipe does without that class."""
    dr = _outside_quarantine(found, "retain")
    n = dr.total()
    outcomes: Counter[str] = Counter()
    for kind, count in dr.items():
        outcomes[kind.outcome] += count
    tools = {kind.called for kind in dr if kind.called is not None}
    return [
        at_most("retain: attack succeeded", outcomes[Outcome.ATTACK_SUCCESS], 0, n),
        at_least("retain: adversarial-safe rows", adversarial_safe(dr), limits.min_adversarial_safe, n),
        at_least("retain: refusals", outcomes[Outcome.REFUSAL], limits.min_refusals, n),
        at_least("retain: right calls", outcomes[Outcome.CORRECT], limits.min_correct_calls, n),
        at_least("retain: classes", len({kind.priority_class for kind in dr}), limits.min_retain_classes, n),
        at_least("retain: tools called", len(tools), limits.min_retain_tools, n),
        at_most("retain: synthetic markers", number(dr, lambda kind: kind.marker), 0, n),
    ]


def adversarial_safe(found: RowCounts) -> int:
    """Rows that are adversarial-safe by name and in truth: attacked, and the right call."""
    return number(
        found,
        lambda kind: kind.priority_class == "adversarial_safe" and kind.attacked and kind.outcome == Outcome.CORRECT,
    )


def source_gates(found: RowCounts, sheets: dict[str, dict], limits: Thresholds) -> list[Gate]:
    """Gates of single sources, for those that there are.

    Args:
        found ([`~census.RowCounts`]): The rows; those of UltraChat must have been rendered.
        sheets (`dict[str, dict]`): What the sources gave (`reports/sources.json`).
        limits ([`Thresholds`]): What is demanded.
    """
    kept = Counter({kind: count for kind, count in found.items() if not kind.quarantined})
    sources = {kind.source for kind in found}
    gates = []
    if "agentdojo" in sources | set(sheets):
        verdicts = sheets.get("agentdojo", {}).get("verdicts", {})
        clear = verdicts.get("compromised", 0) + verdicts.get("resisted", 0)
        exposed = clear + verdicts.get("attempted", 0) + verdicts.get("unverified", 0)
        gates.append(at_least("agentdojo: verdict known", share(clear, exposed), limits.min_verdict_known, exposed))
    if "tau2" in sources:
        n = number(kept, lambda kind: kind.source == "tau2")
        gates.append(at_least("tau2: rows", n, limits.min_tau2, n))
    if "ultrachat" in sources:
        rendered = number(kept, lambda kind: kind.renders is not None)
        renders = number(kept, lambda kind: kind.renders is True)
        gates.append(at_least("ultrachat: rows that render", share(renders, rendered), 1.0, rendered))
    return gates


def _outside_quarantine(found: RowCounts, of_set: str) -> RowCounts:
    return Counter({kind: count for kind, count in found.items() if kind.set == of_set and not kind.quarantined})


def gate_report(gates: Sequence[Gate], limits: Thresholds | MergedThresholds) -> dict:
    """The report of a list of gates; thresholds that differ from the defaults are listed apart."""
    return {
        "passed": bool(gates) and all(gate.passed for gate in gates),
        "thresholds": asdict(limits),
        "thresholds_changed_by_recipe": changed(limits),
        "gates": [asdict(gate) for gate in gates],
    }
