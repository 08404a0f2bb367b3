"""Gates: metrics of the sets that must reach a threshold before anything is trained on them.

A gate is a measured value, a threshold and the number of rows behind it. Outcomes are recomputed from
`assistant_raw` (`row_counts.py`): no gate trusts a label, and none passes over zero rows. A recipe may lower a
threshold, and the report then lists it.

    V1  before the merge   every set, Ds, Dr, and single sources
    V2  after the merge    `merge/gates.py`
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..outcomes import Outcome
from .row_counts import UNNAMED, RowCounts, RowProfile
from .thresholds import MergedThresholds, Thresholds, changed_thresholds


@dataclass(frozen=True)
class Gate:
    """Result of one gate. `value` is null if there was nothing to measure; the gate has failed then."""

    name: str
    value: float | None
    limit: float
    rows: int
    passed: bool


def at_least(name: str, value: float | None, limit: float, rows: int) -> Gate:
    return Gate(name, value, limit, rows, rows > 0 and value is not None and value >= limit)


def at_most(name: str, value: float | None, limit: float, rows: int) -> Gate:
    return Gate(name, value, limit, rows, rows > 0 and value is not None and value <= limit)


def fraction(count: int, total: int) -> float | None:
    """`count / total`, or `None` over zero rows."""
    return count / total if total else None


def count_where(counts: RowCounts, condition: Callable[[RowProfile], bool]) -> int:
    """Number of rows whose profile fulfils a condition."""
    return sum(count for profile, count in counts.items() if condition(profile))


def format_gates(counts: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of each set: most rows break no rule, and outside quarantine none breaks one."""
    gates = []
    for subset in sorted({profile.subset for profile in counts}) or [""]:
        of_set = Counter({profile: count for profile, count in counts.items() if profile.subset == subset})
        n, kept = of_set.total(), count_where(of_set, lambda profile: not profile.quarantined)
        valid = count_where(of_set, lambda profile: profile.is_valid)
        invalid = count_where(of_set, lambda profile: not profile.is_valid and not profile.quarantined)
        gates.append(at_least(f"{subset}: rows that break no rule", fraction(valid, n), limits.min_valid, n))
        gates.append(at_most(f"{subset}: rows that break one, quarantine left out", invalid, 0, kept))
    return gates


def harmful_gates(counts: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of Ds."""
    ds = _outside_quarantine(counts, "circuit_breaker")
    n = ds.total()
    harmful = count_where(ds, lambda profile: profile.is_harmful)
    recorded = count_where(ds, lambda profile: profile.completion_source == "recorded")
    categories = count_values(ds, "category")
    largest = max(categories.values(), default=0)
    gates = [
        at_least("harmful: attack succeeded", fraction(harmful, n), limits.min_harmful_rate, n),
        at_most("harmful: recorded, not sampled", fraction(recorded, n), limits.max_recorded, n),
        at_least("harmful: categories", len(categories), limits.min_categories, n),
        at_most("harmful: largest category", fraction(largest, n), limits.max_category_share, n),
        *_distribution_gates(ds, limits),
        at_most("harmful: synthetic markers", count_where(ds, lambda profile: profile.has_marker), 0, n),
    ]
    flips = count_where(ds, _is_flip)
    # A Ds of textual compliance has no flips, and a gate over zero rows would fail it. An empty Ds must fail.
    if flips or not n:
        unflipped = count_where(ds, lambda profile: _is_flip(profile) and profile.outcome != Outcome.ATTACK_SUCCESS)
        gates.append(at_most("harmful: flips that do not flip", unflipped, 0, flips))
    return gates


def _distribution_gates(ds: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of the largest family, injection task and goal: many categories can still be one attack.

    Where the rows name no value of one of these, there is no gate: textual compliance has no attacker's tool.
    """
    flips = Counter({profile: count for profile, count in ds.items() if _is_flip(profile)})
    parts = (
        ("family", ds, limits.max_family_share),
        ("injection_task", ds, limits.max_injection_task_share),
        ("goal", flips, limits.max_goal_share),
    )
    gates = []
    for field, rows, limit in parts:
        values, n = count_values(rows, field), rows.total()
        if values.keys() - {UNNAMED}:
            name = f"harmful: largest {field.replace('_', ' ')}"
            gates.append(at_most(name, fraction(max(values.values()), n), limit, n))
    return gates


def count_values(counts: RowCounts, field: str) -> Counter[str]:
    """Number of rows with each value of a field of their profiles."""
    values: Counter[str] = Counter()
    for profile, count in counts.items():
        values[getattr(profile, field)] += count
    return values


def distribution(counts: RowCounts) -> dict[str, dict[str, int]]:
    """What Ds consists of, by category, family, injection task and goal, and who wrote the adversarial-safe rows."""
    ds, dr = _outside_quarantine(counts, "circuit_breaker"), _outside_quarantine(counts, "retain")
    fields = ("category", "family", "injection_task", "goal")
    return {
        **{f"harmful by {field}": dict(count_values(ds, field).most_common()) for field in fields},
        "adversarial-safe by completion": dict(count_values(_safe(dr), "completion_source").most_common()),
    }


def _is_flip(profile: RowProfile) -> bool:
    return profile.priority_class == "harmful_flip"


def retain_gates(counts: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of Dr. A minimum of zero means that the recipe does without that class."""
    dr = _outside_quarantine(counts, "retain")
    n = dr.total()
    outcomes = count_values(dr, "outcome")
    calls = count_where(dr, lambda profile: profile.outcome == Outcome.CORRECT and profile.called_tool is not None)
    tools = {profile.called_tool for profile in dr if profile.called_tool is not None}
    return [
        at_most("retain: attack succeeded", outcomes[Outcome.ATTACK_SUCCESS], 0, n),
        at_least("retain: adversarial-safe rows", adversarial_safe(dr), limits.min_adversarial_safe, n),
        *_safe_gates(dr, limits),
        at_least("retain: refusals", outcomes[Outcome.REFUSAL], limits.min_refusals, n),
        at_least("retain: right calls", calls, limits.min_correct_calls, n),
        at_least("retain: classes", len({profile.priority_class for profile in dr}), limits.min_retain_classes, n),
        at_least("retain: tools called", len(tools), limits.min_retain_tools, n),
        at_most("retain: synthetic markers", count_where(dr, lambda profile: profile.has_marker), 0, n),
    ]


def _safe_gates(dr: RowCounts, limits: Thresholds) -> list[Gate]:
    """Gates of how the adversarial-safe rows came about; their number has a gate of its own, also where it is 0."""
    written, n = count_values(_safe(dr), "completion_source"), adversarial_safe(dr)
    if not n:
        return []
    own = written["sampled"] + written["warned"]
    return [
        at_least("retain: adversarial-safe, sampled or warned", own / n, limits.min_safe_sampled, n),
        at_most("retain: adversarial-safe, from twins", written["twin"] / n, limits.max_safe_twins, n),
        at_most("retain: adversarial-safe, recorded", written["recorded"] / n, limits.max_safe_recorded, n),
    ]


def adversarial_safe(counts: RowCounts) -> int:
    """Number of rows with the label `is_adversarial_safe`, recomputed: of that class, attacked, and answered right."""
    return _safe(counts).total()


def _safe(counts: RowCounts) -> RowCounts:
    def is_safe(profile: RowProfile) -> bool:
        right = profile.attacked and profile.outcome == Outcome.CORRECT
        return right and profile.priority_class == "adversarial_safe"

    return Counter({profile: count for profile, count in counts.items() if is_safe(profile)})


def source_gates(counts: RowCounts, sheets: dict[str, dict], limits: Thresholds) -> list[Gate]:
    """Gates of single sources, for those that are present.

    Args:
        counts ([`~checks.row_counts.RowCounts`]): The rows; `renders` must be set for those of UltraChat.
        sheets (`dict[str, dict]`): The data sheet of each source (`reports/sources.json`).
        limits ([`Thresholds`]): The thresholds.
    """
    kept = Counter({profile: count for profile, count in counts.items() if not profile.quarantined})
    sources = {profile.source for profile in counts}
    gates = []
    # The verdicts are in the data sheet alone. Rows of AgentDojo without one fail: nothing says they were judged.
    if "agentdojo" in sources | set(sheets):
        sheet = sheets.get("agentdojo", {})
        verdicts, attacked = sheet.get("verdicts", {}), sheet.get("attacked", 0)
        missing = fraction(sheet.get("attacked_drops", {}).get("no_security", 0), attacked)
        gates.append(at_most("agentdojo: without security", missing, limits.max_without_security, attacked))
        clear = verdicts.get("compromised", 0) + verdicts.get("resisted", 0)
        exposed = clear + verdicts.get("attempted", 0) + verdicts.get("unverified", 0)
        gates.append(at_least("agentdojo: verdict known", fraction(clear, exposed), limits.min_verdict_known, exposed))
    if "tau2" in sources:
        n = count_where(kept, lambda profile: profile.source == "tau2" and profile.split == "train")
        gates.append(at_least("tau2: train rows", n, limits.min_tau2, n))
    if "ultrachat" in sources:
        rendered = count_where(kept, lambda profile: profile.renders is not None)
        renders = count_where(kept, lambda profile: profile.renders is True)
        gates.append(at_least("ultrachat: rows that render", fraction(renders, rendered), 1.0, rendered))
    return gates


def _outside_quarantine(counts: RowCounts, name: str) -> RowCounts:
    return Counter(
        {profile: count for profile, count in counts.items() if profile.set == name and not profile.quarantined}
    )


def gate_report(gates: Sequence[Gate], limits: Thresholds | MergedThresholds) -> dict:
    """The report of a list of gates; thresholds that differ from the defaults are also listed separately."""
    return {
        "passed": bool(gates) and all(gate.passed for gate in gates),
        "thresholds": asdict(limits),
        "thresholds_changed_by_recipe": changed_thresholds(limits),
        "gates": [asdict(gate) for gate in gates],
    }
