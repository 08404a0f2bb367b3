"""Every rule on every row: what passes, what fails and why, and a quarantine for the rows that fail."""

from collections import Counter
from pathlib import Path

from ..files import load_rows, save_rows, to_dataset
from ..sample import SAMPLE_FEATURES
from .rules import RULES, check


EXAMPLES = 3


def validate(folders: list[Path], quarantine: Path, min_valid: float) -> dict:
    """Check all samples of the given set folders.

    Args:
        folders (`list[Path]`): Folders of sets, e.g. `harmful/b4_flips`.
        quarantine (`Path`): Folder for the rows that fail; their reasons stand in its report.
        min_valid (`float`): Share of rows that must pass in each set before quarantine; below it the set as a whole is
            not to be trusted.

    Returns:
        `dict`: The report, with `passed`.
    """
    failed: list[dict] = []
    reasons: dict[str, list[str]] = {}
    sets = {}
    for folder in folders:
        rows = load_rows(folder, SAMPLE_FEATURES)
        counts: Counter[str] = Counter()
        examples: dict[str, list[str]] = {}
        bad = 0
        for row in rows:
            violations = check(row)
            if not violations:
                continue
            bad += 1
            failed.append(row)
            reasons[row["id"]] = [f"{violation.rule}: {violation.message}" for violation in violations]
            for rule in sorted({violation.rule for violation in violations}):
                counts[rule] += 1
                if len(examples.setdefault(rule, [])) < EXAMPLES:
                    examples[rule].append(row["id"])
        name = f"{folder.parent.name}/{folder.name}"
        sets[name] = _set_report(len(rows), bad, counts, examples, min_valid)
    save_rows(
        to_dataset(failed, SAMPLE_FEATURES),
        quarantine,
        {"rows": len(failed), "reasons": reasons},
    )
    return {"min_valid": min_valid, "passed": all(part["passed"] for part in sets.values()), "sets": sets}


def _set_report(rows: int, bad: int, counts: Counter, examples: dict, min_valid: float) -> dict:
    valid = (rows - bad) / rows if rows else None
    return {
        "rows": rows,
        "quarantined": bad,
        "valid": valid,
        "passed": valid is not None and valid >= min_valid,
        "rules": {rule: counts[rule] for rule in RULES if counts[rule]},
        "examples": examples,
    }
