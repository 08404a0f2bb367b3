"""Output of the commands: lines, tables, a set with its summary, the report of a check."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..counts import gate_number, listed
from ..terminal import print_line, shown


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..sets.sample_set import SampleSet


def dropped(drops: dict[str, int]) -> str:
    """Number of dropped rows, by reason."""
    return f"dropped {sum(drops.values())}" + (f" ({listed(drops)})" if drops else "")


def tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, see [`~generation.tokenizer.load_tokenizer`]."""
    from ..generation.tokenizer import load_tokenizer

    return load_tokenizer(model)


def table(header: list[str], rows: list[tuple]) -> None:
    """Print a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As `Text`: in a string, "[red]" or "[link=...]" would be markup.
    printed = Table(box=box.SIMPLE_HEAD)
    for title in header:
        printed.add_column(Text(shown(title)))
    for row in rows:
        printed.add_row(*(Text(shown(str(cell))) for cell in row))
    # A pipe has no width of its own; without one, columns would be cut at 80 characters in logs.
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(printed)


def category_table(by_category: dict[str, dict[str, dict[str, int]]]) -> None:
    """Print the completions of each attack category by outcome kept and by reason dropped."""
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


def save_set(samples: "SampleSet", output: Path | None, shards: str | None = None) -> None:
    """Write a set and print its summary.

    Args:
        samples ([`SampleSet`]): The set.
        output (`Path`, *optional*): Its folder, or a `.jsonl` file; without one, the summary is printed only.
        shards (`str`, *optional*): The shards that this rank of several has done, of which no set can be made yet.
    """
    from .. import files
    from ..sets.jsonl_sets import is_jsonl, save_jsonl

    summary = samples.summary()
    category_table(summary["by_category"])
    if shards is not None:
        print_line(f"{samples.name}: shards {shards} are done; no set is written")
        return
    if not samples.samples:
        raise ValueError(
            f"{samples.name}: no sample was kept; {dropped(summary['drops'])}. Ask more prompts, sample more of each, "
            "or leave the set out of the recipe."
        )
    if output is not None:
        save = save_jsonl if is_jsonl(output) else files.save_set
        save(samples.dataset(), output, summary)
    counts = f"{listed(summary['splits'])}; {listed(summary['completions'])}"
    print_line(f"{samples.name}: {summary['kept']} samples of {summary['candidates']} ({counts}); ", end="")
    print_line(f"{dropped(summary['drops'])} -> {output or 'not written'}")
    if summary["read_by_schema"]:
        print_line(
            f"  {summary['read_by_schema']} with numbers or booleans that were recorded as text, read by the schema"
        )


def verdict(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def gate_table(report: dict) -> None:
    """Print the gates of a report, and the thresholds changed by the recipe."""
    rows = [
        (
            gate["name"],
            "-" if gate["value"] is None else gate_number(gate["value"]),
            gate_number(gate["limit"]),
            gate["rows"],
            verdict(gate["passed"]),
        )
        for gate in report["gates"]
    ]
    table(["gate", "value", "limit", "rows", ""], rows)
    for name, change in report["thresholds_changed_by_recipe"].items():
        print_line(f"  threshold changed by the recipe: {name} {change['default']} -> {change['used']}")


def write_checked(output: Path, report: dict) -> Path:
    """Write the report of a check, under another name if it failed: Make deletes the result of a failed step."""
    from ..files import write_json

    failed = output.with_name(f"{output.stem}.failed{output.suffix}")
    if report["passed"]:
        failed.unlink(missing_ok=True)
    written = output if report["passed"] else failed
    write_json(written, report)
    return written


def stop_unless(passed: bool, message: str) -> None:
    """Exit with code 1 and one line on stderr unless a check passed."""
    if not passed:
        print_line(message, file=sys.stderr)
        raise typer.Exit(1)
