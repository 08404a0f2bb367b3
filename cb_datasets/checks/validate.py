"""Checks every row against every rule, reports the violations, and writes the failing rows to quarantine.

Rows are read a few thousand at a time and failing ones are written immediately, so a set may be larger than memory.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow
from datasets import Features, List, Value

from ..files import REPORT_FILE, ROWS_FILE, dataset_name, parquet_writer, row_groups, write_json
from ..processes import slices_of
from ..row_groups import RowGroup, map_groups, stream_group
from ..sample import CIRCUIT_BREAKER, RETAIN, SAMPLE_FEATURES
from .rules import RULES, Violation, check


EXAMPLES = 3

# The rows of Ds and of Dr under the names of their folders.
HALVES = {CIRCUIT_BREAKER: "harmful", RETAIN: "retain"}

# A row in quarantine has the rules it broke in an additional column.
QUARANTINE_FEATURES = Features({**SAMPLE_FEATURES, "reasons": List(Value("string"))})


class _RuleCounts:
    """Counts of violations in one set."""

    def __init__(self) -> None:
        self.rows = self.failed = 0
        self.errors: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, checked: "_Checked") -> None:
        """Count the violations of rows."""
        self.rows += checked.rows
        self.failed += sum(map(len, checked.failed))
        for id, violations in checked.violations:
            # A row counts once per rule, however often it breaks it.
            self.errors.update({violation.rule for violation in violations if violation.is_error})
            self.warnings.update({violation.rule for violation in violations if not violation.is_error})
            for rule in {violation.rule for violation in violations}:
                if len(self.examples.setdefault(rule, [])) < EXAMPLES:
                    self.examples[rule].append(id)

    def rule_report(self, min_valid: float) -> dict:
        """The report of the set. An empty set has not passed."""
        valid = (self.rows - self.failed) / self.rows if self.rows else None
        return {
            "rows": self.rows,
            "quarantined": self.failed,
            "valid": valid,
            "passed": valid is not None and valid >= min_valid,
            "rules": {rule: self.errors[rule] for rule in RULES if self.errors[rule]},
            "warnings": {rule: self.warnings[rule] for rule in RULES if self.warnings[rule]},
            "examples": {rule: self.examples[rule] for rule in RULES if rule in self.examples},
        }


def validate(
    folders: list[Path],
    quarantine: Path,
    min_valid: float,
    strict: bool = True,
    split: str | None = None,
    num_proc: int | None = None,
) -> dict:
    """Check all samples of the given set folders.

    Args:
        folders (`list[Path]`): Folders of sets, e.g. `harmful/b4_flips`.
        quarantine (`Path`): Folder for the failing rows, each with its `reasons`.
        min_valid (`float`): Minimum fraction of valid rows in each set; below it the whole set fails.
        strict (`bool`, *optional*, defaults to `True`): Whether a completion without its end token fails (R2).
        split (`str`, *optional*): Check rows of this split only, `train` or `eval`; or rows of Ds (`harmful`) or Dr
            (`retain`) only, and no sets without any.
        num_proc (`int`, *optional*): Number of processes, by default one for each core.

    Returns:
        `dict`: The report, with `passed`.

    Raises:
        ValueError: If two sets have one name, or no set has rows of Ds or Dr, as asked.
    """
    counts = {dataset_name(folder): _RuleCounts() for folder in folders}
    if len(counts) < len(folders):
        raise ValueError(f"Two sets have one name among {', '.join(map(str, folders))}: check them separately.")
    set_of = {
        group: name
        for name, folder in zip(counts, folders, strict=True)
        for group in row_groups(folder, SAMPLE_FEATURES)
    }

    def check_group(group: RowGroup) -> _Checked:
        return _check_rows(stream_group(group, SAMPLE_FEATURES), strict, split)

    with parquet_writer(quarantine / ROWS_FILE, QUARANTINE_FEATURES) as write:
        for group, checked in map_groups(check_group, list(set_of), num_proc, "Checking"):
            counts[set_of[group]].add(checked)
            if checked.failed:
                write(pyarrow.concat_tables(checked.failed))
        if split in HALVES.values():
            counts = {name: set_counts for name, set_counts in counts.items() if set_counts.rows}
            if not counts:  # before a quarantine is written
                raise ValueError(f"No rows of {split} in {', '.join(map(str, folders))}.")
    sets = {name: set_counts.rule_report(min_valid) for name, set_counts in counts.items()}
    write_json(quarantine / REPORT_FILE, {"rows": sum(report["quarantined"] for report in sets.values())})
    passed = bool(sets) and all(report["passed"] for report in sets.values())
    return {"min_valid": min_valid, "strict": strict, "split": split, "passed": passed, "sets": sets}


class _Checked(NamedTuple):
    """The number of rows that were checked, the id and the violations of each with any, and those that fail."""

    rows: int
    violations: list[tuple[str, list[Violation]]]
    failed: list[pyarrow.Table]  # rows of the quarantine


def _check_rows(tables: Iterable[pyarrow.Table], strict: bool, split: str | None) -> _Checked:
    """Check the rows of some tables that are asked for."""
    num_rows, found, failed = 0, [], []
    for part in (part for table in tables for part in slices_of(table)):
        reasons: dict[int, list[str]] = {}
        for number, row in enumerate(part.to_pylist()):
            if split not in (None, row["split"], HALVES.get(row["set"])):
                continue
            num_rows += 1
            if violations := check(row, strict):
                found.append((row["id"], violations))
                if errors := [str(violation) for violation in violations if violation.is_error]:
                    reasons[number] = errors
        if reasons:
            failed.append(part.take(list(reasons)).append_column("reasons", [list(reasons.values())]))
    return _Checked(num_rows, found, failed)
