"""Every rule on every row: what passes, what fails and why, and a quarantine for the rows that fail.

Rows are read a few thousand at a time and those that fail are written as they are found, so a set may be larger than
memory.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow
from datasets import Features, List, Value
from tqdm import tqdm

from ..files import REPORT_FILE, ROWS_FILE, count_rows, parquet_writer, stream_tables, write_json
from ..sample import SAMPLE_FEATURES
from .rules import RULES, check


EXAMPLES = 3

# A row in quarantine says which rules it broke.
QUARANTINE_FEATURES = Features({**SAMPLE_FEATURES, "reasons": List(Value("string"))})


class _Counts:
    """What the rules find in one set."""

    def __init__(self) -> None:
        self.rows = self.bad = 0
        self.errors: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, row: dict, strict: bool) -> list[str]:
        """Count a row; the reasons to keep it out."""
        self.rows += 1
        found = check(row, strict)
        if not found:
            return []
        errors = [violation for violation in found if violation.is_error]
        self.bad += bool(errors)
        self.errors.update({violation.rule for violation in errors})
        self.warnings.update({violation.rule for violation in found if not violation.is_error})
        for rule in {violation.rule for violation in found}:
            if len(self.examples.setdefault(rule, [])) < EXAMPLES:
                self.examples[rule].append(row["id"])
        return [str(violation) for violation in errors]

    def report(self, min_valid: float) -> dict:
        valid = (self.rows - self.bad) / self.rows if self.rows else None
        return {
            "rows": self.rows,
            "quarantined": self.bad,
            "valid": valid,
            "passed": valid is not None and valid >= min_valid,
            "rules": {rule: self.errors[rule] for rule in RULES if self.errors[rule]},
            "warnings": {rule: self.warnings[rule] for rule in RULES if self.warnings[rule]},
            "examples": {rule: self.examples[rule] for rule in RULES if rule in self.examples},
        }


def validate(
    folders: list[Path], quarantine: Path, min_valid: float, strict: bool = True, split: str | None = None
) -> dict:
    """Check all samples of the given set folders.

    Args:
        folders (`list[Path]`): Folders of sets, e.g. `harmful/b4_flips`.
        quarantine (`Path`): Folder for the rows that fail, each with its `reasons`.
        min_valid (`float`): Share of rows that must pass in each set before quarantine; below it the set as a whole is
            not to be trusted.
        strict (`bool`, *optional*, defaults to `True`): Whether a completion without its end token fails (R2).
        split (`str`, *optional*): Check rows of this split only.

    Returns:
        `dict`: The report, with `passed`.
    """
    counts = {f"{folder.parent.name}/{folder.name}": _Counts() for folder in folders}
    if len(counts) < len(folders):
        raise ValueError(f"Two sets have one name among {', '.join(map(str, folders))}: check them apart.")
    bar = tqdm(desc="Checking", total=count_rows(folders), unit="row")
    with bar, parquet_writer(quarantine / ROWS_FILE, QUARANTINE_FEATURES) as write:
        for folder, of_set in zip(folders, counts.values(), strict=True):
            for table in stream_tables(folder, SAMPLE_FEATURES):
                _check_table(table, of_set, strict, split, write)
                bar.update(len(table))
    sets = {name: of_set.report(min_valid) for name, of_set in counts.items()}
    write_json(quarantine / REPORT_FILE, {"rows": sum(part["quarantined"] for part in sets.values())})
    passed = bool(sets) and all(part["passed"] for part in sets.values())
    return {"min_valid": min_valid, "strict": strict, "split": split, "passed": passed, "sets": sets}


def _check_table(
    table: pyarrow.Table, counts: _Counts, strict: bool, split: str | None, write: Callable[[pyarrow.Table], None]
) -> None:
    reasons = {}
    for index, row in enumerate(table.to_pylist()):
        if split in (None, row["split"]) and (found := counts.add(row, strict)):
            reasons[index] = found
    if reasons:
        bad = table.take(list(reasons))
        write(bad.append_column("reasons", [list(reasons.values())]))
