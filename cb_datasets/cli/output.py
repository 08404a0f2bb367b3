"""What commands print and where they put the report of a check."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def listed(counts: dict) -> str:
    """Counts in one line."""
    from ..counts import listed as in_one_line

    return in_one_line(counts)


def dropped(drops: dict[str, int]) -> str:
    """How many rows were dropped, and why."""
    return f"dropped {sum(drops.values())}" + (f" ({listed(drops)})" if drops else "")


def tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, see [`~generation.backend.load_tokenizer`]."""
    from ..generation.backend import load_tokenizer

    return load_tokenizer(model)


def table(header: list[str], rows: list[tuple]) -> None:
    """Print a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    # A pipe has no width of its own; without one, columns would be cut at 80 characters in logs.
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(shown)


def yield_table(by_category: dict[str, dict[str, dict[str, int]]]) -> None:
    """What became of the completions of each attack category: kept as this or that, or dropped for this or that."""
    columns = [
        (part, name)
        for part in ("kept", "dropped")
        for name in sorted({name for parts in by_category.values() for name in parts[part]})
    ]
    rows = [
        (category, *(parts[part].get(name, 0) for part, name in columns)) for category, parts in by_category.items()
    ]
    if len(rows) > 1:
        rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    table(["category", *(f"{part}\n{name}" for part, name in columns)], rows)


def verdict(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def gate_table(report: dict) -> None:
    """Print the gates of a report, and which thresholds the recipe changed."""
    rows = [
        (
            gate["name"],
            "-" if gate["value"] is None else f"{gate['value']:.4g}",
            f"{gate['limit']:.4g}",
            gate["rows"],
            verdict(gate["passed"]),
        )
        for gate in report["gates"]
    ]
    table(["gate", "value", "limit", "rows", ""], rows)
    for name, change in report["thresholds_changed_by_recipe"].items():
        print(f"  threshold changed by the recipe: {name} {change['default']} -> {change['used']}")


def write_checked(output: Path, report: dict) -> Path:
    """Write the report of a check. One that failed gets another name: Make deletes the result of a failed step."""
    from ..files import write_json

    failed = output.with_name(f"{output.stem}.failed{output.suffix}")
    if report["passed"]:
        failed.unlink(missing_ok=True)
    written = output if report["passed"] else failed
    write_json(written, report)
    return written


def stop_unless(passed: bool, message: str) -> None:
    """End with exit code 1 and one line on stderr unless a check passed."""
    if not passed:
        print(message, file=sys.stderr)
        raise typer.Exit(1)
