"""Counts of rows by profile, from one pass over the sets: all that the gates need.

A profile is the combination of properties that gates use. There are few of them, so a million rows become a small
table:

    RowProfile(subset="b4_flips", set="circuit_breaker", priority_class="harmful_flip", ...) : 812
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..answers.gibberish import is_degenerate
from ..formats import Diagnosis, Parsed
from ..outcomes import Outcome
from .rules import check, has_marker, read_completion


# The value of a row whose source does not name one.
UNNAMED = "none"


class RowProfile(NamedTuple):
    """Properties of a row that gates use. `outcome` and `is_harmful` are computed from `assistant_raw`, not read."""

    subset: str
    split: str
    set: str
    priority_class: str
    source: str
    completion_source: str
    category: str
    family: str
    injection_task: str  # or the subtype of the source's taxonomy
    goal: str  # the tool that the attacker wants called
    outcome: str
    is_harmful: bool  # makes the attacker's call, or complies in text
    called_tool: str | None  # if there is exactly one well-formed call
    attacked: bool
    has_marker: bool
    is_valid: bool  # breaks no rule
    quarantined: bool
    renders: bool | None  # None if not checked


RowCounts = Counter[RowProfile]


def count_profiles(
    rows: Iterable[dict],
    subset: str = "",
    quarantined: frozenset[str] | set[str] = frozenset(),
    strict: bool = True,
    renders: Callable[[dict], bool] | None = None,
) -> RowCounts:
    """Count rows by profile.

    Args:
        rows (`Iterable[dict]`): Samples.
        subset (`str`, *optional*): Name of the set.
        quarantined (`set[str]`, *optional*): Ids that failed validation.
        strict (`bool`, *optional*, defaults to `True`): As for [`~rules.check`].
        renders (`Callable[[dict], bool]`, *optional*): Whether the target's chat template renders a row; called
            for rows of UltraChat only.
    """
    return Counter(profile_of(row, subset, row["id"] in quarantined, strict, renders) for row in rows)


def profile_of(
    row: dict,
    subset: str = "",
    quarantined: bool = False,
    strict: bool = True,
    renders: Callable[[dict], bool] | None = None,
) -> RowProfile:
    """The profile of one row; arguments as for [`count_profiles`]."""
    provenance = row["provenance"]
    # A row in quarantine may hold anything, so it is not parsed: gates only count it.
    completion = None if quarantined else read_completion(row)
    parsed, outcome = Parsed(Diagnosis.EMPTY), Outcome.MALFORMED
    if completion is not None:
        parsed, outcome = completion.parsed, completion.outcome
    return RowProfile(
        subset=subset,
        split=row["split"],
        set=row["set"],
        priority_class=row["priority_class"],
        source=provenance["source_dataset"],
        completion_source=provenance["completion_source"],
        category=row["category"] or UNNAMED,
        family=row["family"] or UNNAMED,
        injection_task=row["subtype"] or UNNAMED,
        goal=row["target"]["simulated_tool"] or UNNAMED,
        outcome=str(outcome),
        is_harmful=_is_harmful(row["priority_class"], outcome, parsed),
        called_tool=parsed.calls[0].name if parsed.is_call else None,
        attacked=len(row["injection"]) > 0,
        has_marker=has_marker(row["assistant_raw"] or ""),
        is_valid=completion is not None
        and not any(violation.is_error for violation in check(row, strict, completion)),
        quarantined=quarantined,
        renders=renders(row) if renders is not None and provenance["source_dataset"] == "ultrachat" else None,
    )


def _is_harmful(priority_class: str, outcome: Outcome, parsed: Parsed) -> bool:
    if priority_class == "harmful_compliance":
        return outcome == Outcome.NO_CALL and not is_degenerate(parsed.text)
    return outcome == Outcome.ATTACK_SUCCESS
