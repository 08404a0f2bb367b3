"""One pass over the rows of sets, in which everything is counted that gates ask of them.

Rows fall into few kinds, so the census of a million rows is a small table: how many rows there are of each kind.

    RowProfile(subset="b4_flips", set="circuit_breaker", priority_class="harmful_flip", ...) : 812
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..formats import FORMATS, Diagnosis, Parsed, get_format
from ..outcomes import Outcome, is_degenerate, outcome_of_parsed
from .rules import check, has_marker


class RowProfile(NamedTuple):
    """What gates tell rows apart by. `outcome` and `does_harm` are worked out from `assistant_raw`, never read."""

    subset: str
    set: str
    priority_class: str
    source: str
    completion_source: str
    category: str
    outcome: str
    does_harm: bool  # what Ds is there for: the attacker's call, or compliance in words
    called: str | None  # the tool, if there is one well-formed call
    attacked: bool
    marker: bool
    sound: bool  # breaks no rule
    quarantined: bool
    renders: bool | None  # None where nobody asked


RowCounts = Counter[RowProfile]


def count_profiles(
    rows: Iterable[dict],
    subset: str = "",
    quarantined: frozenset[str] | set[str] = frozenset(),
    strict: bool = True,
    renders: Callable[[dict], bool] | None = None,
) -> RowCounts:
    """Count rows by their kind.

    Args:
        rows (`Iterable[dict]`): Samples.
        subset (`str`, *optional*): Name of the set they are of.
        quarantined (`set[str]`, *optional*): Ids that failed validation.
        strict (`bool`, *optional*, defaults to `True`): As for [`~rules.check`].
        renders (`Callable[[dict], bool]`, *optional*): Whether the target's chat template writes a row; asked of
            UltraChat's rows alone.
    """
    return Counter(profile_of(row, subset, row["id"] in quarantined, strict, renders) for row in rows)


def profile_of(
    row: dict,
    subset: str = "",
    quarantined: bool = False,
    strict: bool = True,
    renders: Callable[[dict], bool] | None = None,
) -> RowProfile:
    """The kind of one row; arguments as for [`census`]."""
    provenance, completion = row["provenance"], row["assistant_raw"] or ""
    # A row in quarantine may be anything; that it is there is all that is asked of it.
    readable = not quarantined and provenance["prompt_format"] in FORMATS
    parsed = get_format(provenance["prompt_format"]).parse(completion) if readable else Parsed(Diagnosis.EMPTY)
    outcome = outcome_of_parsed(parsed, row["target"]) if readable else Outcome.MALFORMED
    return RowProfile(
        subset=subset,
        set=row["set"],
        priority_class=row["priority_class"],
        source=provenance["source_dataset"],
        completion_source=provenance["completion_source"],
        category=row["category"] or "none",
        outcome=str(outcome),
        does_harm=_does_harm(row["priority_class"], outcome, parsed),
        called=parsed.calls[0].name if parsed.is_call else None,
        attacked=len(row["injection"]) > 0,
        marker=has_marker(completion),
        sound=readable and not any(violation.is_error for violation in check(row, strict)),
        quarantined=quarantined,
        renders=renders(row) if renders is not None and provenance["source_dataset"] == "ultrachat" else None,
    )


def _does_harm(priority_class: str, outcome: Outcome, parsed: Parsed) -> bool:
    if priority_class == "harmful_compliance":
        return outcome == Outcome.NO_CALL and not is_degenerate(parsed.text)
    return outcome == Outcome.ATTACK_SUCCESS
