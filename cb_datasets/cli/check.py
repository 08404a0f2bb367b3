"""The commands that check and explain samples."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks.thresholds import Thresholds
from ..counts import listed
from ..terminal import print_line, shown, shown_line
from .numbers import finite
from .options import MaxLengthOption, NumProcOption, ToolSchemaOption, read_tool_schema, takes
from .output import gate_table, stop_unless, table, tokenizer, verdict, write_checked
from .paths import data_folder, input_file, input_folder, input_path, model_path, output_file, output_path


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..checks.row_counts import RowCounts

app = typer.Typer()

_SHOWN = 6  # values of a distribution on the terminal; the report has all

SetsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        callback=input_path, help="Sets, e.g. harmful/b4_flips retain/refusals.jsonl, or folders of many of them."
    ),
]
HarmfulOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--harmful-dir", "--ds", callback=input_path, help="Ds: a set (folder or .jsonl), or a folder of sets."
    ),
]
RetainOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--retain-dir", "--dr", callback=input_path, help="Dr: a set (folder or .jsonl), or a folder of sets."
    ),
]
QuarantineOption = Annotated[
    Path | None, typer.Option(callback=input_folder, help="Folder of rows that failed validation.")
]
ModelOption = Annotated[
    str | None, typer.Option(callback=model_path, help="Folder of the target model, or its Hub id.")
]
ReportOption = Annotated[
    Path | None, typer.Option("--output", "--report", callback=output_file, help="The report to write.")
]


class ValidateSplit(StrEnum):
    TRAIN = "train"
    EVAL = "eval"
    HARMFUL = "harmful"
    RETAIN = "retain"


@app.command()
def validate(
    folders: SetsArgument = None,
    data_dir: Annotated[
        Path | None, typer.Option(callback=data_folder, help="Folder with harmful/ and retain/: all sets in it.")
    ] = None,
    split: Annotated[
        ValidateSplit | None, typer.Option(help="Check only train or eval rows, or only Ds (harmful) or Dr (retain).")
    ] = None,
    strict: Annotated[bool, typer.Option(help="A completion without its end token fails (R2).")] = False,
    quarantine: Annotated[
        Path | None, typer.Option(callback=output_path, help="Folder for the rows that fail.")
    ] = None,
    output: ReportOption = None,
    min_valid: Annotated[
        float, typer.Option(min=0.0, max=1.0, callback=finite, help="Minimum fraction of a set's rows that pass.")
    ] = 0.95,
    num_proc: NumProcOption = None,
) -> None:
    """Check every row against the rules; rows that fail go to quarantine with their reasons."""
    from ..checks.validate import validate as validate_sets

    if data_dir is not None:
        quarantine = quarantine or data_dir / "quarantine" / "validate"
        output = output or data_dir / "reports" / "validation_report.json"
    if quarantine is None or output is None:
        raise ValueError("No output: pass --quarantine and --report, or --data-dir.")
    if not folders and data_dir is None:
        raise ValueError("No sets were named: pass folders, or --data-dir.")
    sets = named_sets([*(folders or []), *([data_dir] if data_dir else [])])
    report = validate_sets(sets, quarantine, min_valid, strict, split, num_proc)
    written = write_checked(output, report)
    rules_table(report)
    stop_unless(report["passed"], f"validate: a set has too many invalid rows; see {written} and {quarantine}")


def rules_table(report: dict) -> None:
    rows = [
        (
            name,
            part["rows"],
            part["quarantined"],
            listed(part["rules"]) or "-",
            listed(part["warnings"]) or "-",
            verdict(part["passed"]),
        )
        for name, part in report["sets"].items()
    ]
    table(["set", "rows", "quarantined", "rules broken", "warnings", f"valid >= {report['min_valid']:.0%}"], rows)


@app.command()
@takes(Thresholds)
def quality_gates(
    limits: Thresholds,
    folders: SetsArgument = None,
    ds: HarmfulOption = None,
    dr: RetainOption = None,
    quarantine: QuarantineOption = None,
    sources: Annotated[
        Path | None, typer.Option(callback=input_file, help="The data sheet, reports/sources.json.")
    ] = None,
    model: ModelOption = None,
    output: ReportOption = None,
) -> None:
    """Fail unless every set, Ds and Dr pass their gates; quarantined rows are left out."""
    from ..checks.gates import distribution, format_gates, gate_report, harmful_gates, retain_gates, source_gates
    from ..datasheet import read_sheets

    sheets = read_sheets(sources) if sources else {}
    counts = _row_counts([*(folders or []), *(ds or []), *(dr or [])], quarantine, model)
    gates = format_gates(counts, limits) + harmful_gates(counts, limits) + retain_gates(counts, limits)
    gates += source_gates(counts, sheets, limits)
    report = gate_report(gates, limits) | {"distribution": distribution(counts)}
    written = write_checked(output, report) if output else "the table"
    gate_table(report)
    for name, values in report["distribution"].items():
        print_line(f"  {name}: {_most_common(values)}")
    stop_unless(report["passed"], f"quality-gates: a gate failed; see {written}")


def _most_common(counts: dict[str, int]) -> str:
    """The largest counts on one line, and how many values there are besides."""
    largest = dict(list(counts.items())[:_SHOWN])
    others = len(counts) - len(largest)
    return (listed(largest) or "none") + (f", and {others} more" if others else "")


def _row_counts(paths: list[Path], quarantine: Path | None, model: str | None) -> "RowCounts":
    from tqdm import tqdm

    from ..checks.row_counts import RowCounts, count_profiles
    from ..files import count_rows, dataset_name, stream_rows
    from ..sample import SAMPLE_FEATURES

    sets = named_sets(paths)
    _refuse_shared_names(paths)
    bad, renders, counts = quarantined(quarantine), _renderer(model) if model else None, RowCounts()
    with tqdm(desc="Counting", total=count_rows(sets), unit="row") as bar:
        for folder in sets:
            rows = stream_rows([folder], SAMPLE_FEATURES)
            counts += count_profiles(rows, dataset_name(folder), bad, renders=renders)
            bar.update(count_rows([folder]))
    return counts


def _refuse_shared_names(paths: list[Path]) -> None:
    """Refuse two sets of one name, whose gates would be one, and a set that is named twice and would count twice."""
    from ..files import dataset_name

    named: dict[str, Path] = {}
    for path in (path for given in paths for path in _sets_in(given)):
        name = dataset_name(path)
        if name in named:
            raise ValueError(
                f"Two sets have one name, {name}: {named[name]} and {path}. Name each set once, or rename one."
            )
        named[name] = path


def _renderer(model: str) -> Callable[[dict], bool]:
    """A predicate: whether the chat template of this model renders a row."""
    from ..chat import render_prompt
    from ..formats.chat_template import RENDER_ERRORS

    target = tokenizer(model)

    def renders(row: dict) -> bool:
        try:
            return bool(render_prompt(target, row))
        except RENDER_ERRORS:
            return False

    return renders


@app.command()
def preflight(
    train_data: Annotated[
        Path,
        typer.Option(
            "--train-data",
            "--stage2",
            callback=input_path,
            help="The merged dataset, or any samples: a folder or .jsonl.",
        ),
    ],
    model: ModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--report", callback=output_file, help="The report, by default ../reports/preflight.json."
        ),
    ] = None,
    tool_schema: ToolSchemaOption = None,
    max_length: MaxLengthOption = 8192,
    check_tokenization: Annotated[
        bool, typer.Option("--check-tokenization/--no-check-tokenization", help="Off: check the tools only.")
    ] = True,
    show: Annotated[int, typer.Option(min=0, help="Print this many samples, with the trained tokens in colour.")] = 0,
    num_proc: NumProcOption = None,
) -> None:
    """Render, encode and mask every merged row with the target's own tokenizer, as training does."""
    from tqdm import tqdm

    from ..checks.preflight import preflight as check_rows
    from ..files import count_rows, hashes_of, stream_rows
    from ..merge.merge import check_outputs
    from ..processes import batches_of, processes_for
    from ..sample import SAMPLE_FEATURES
    from ..sets.jsonl_sets import reports_beside

    if check_tokenization and model is None:
        raise ValueError("No tokenizer: pass --model, or --no-check-tokenization.")
    asset = read_tool_schema(tool_schema) if tool_schema else None
    sets, inputs = named_sets([train_data]), hashes_of(_sets_in(train_data))
    target = tokenizer(model) if model and check_tokenization else None
    output = output or reports_beside(train_data) / "preflight.json"
    check_outputs(inputs, output.with_name("stats.json"))
    num_rows = count_rows(sets)
    rows = tqdm(stream_rows(sets, SAMPLE_FEATURES), "Preflight", num_rows, unit="row")
    processes = processes_for(batches_of(num_rows), num_proc)
    report = check_rows(rows, target, max_length, asset, processes) | {"inputs": inputs}
    written = write_checked(output, report)
    if target is not None:
        _show(sets, show, target)
        _bars(report["histogram"])
    spelled = "not counted" if target is None else listed(report["spell_control_tokens"]) or "none"
    print_line(
        f"preflight: {report['rows']} rows, tokens {listed(report.get('tokens') or {}) or 'not counted'}; "
        f"faults: {listed(report['faults']) or 'none'}; text that spells control tokens: {spelled}"
    )
    stop_unless(report["passed"], f"preflight: some rows cannot be trained on; see {written}")


def _show(sets: list[Path], count: int, target: "PreTrainedTokenizerBase") -> None:
    from itertools import islice

    from rich.console import Console
    from rich.text import Text

    from ..checks.show_tokens import show_tokens
    from ..files import stream_rows

    for row in islice(stream_rows(sets), count):
        Console(highlight=False).rule(Text(shown_line(row["id"])))
        Console(highlight=False, soft_wrap=True).print(show_tokens(row, target))


def _bars(histogram: dict[str, int]) -> None:
    """Print the histogram of lengths as bars."""
    most = max(histogram.values(), default=1)
    for tokens, count in histogram.items():
        print_line(f"  {tokens:>13} tokens {count:>8} {'█' * -(-40 * count // most)}")


@app.command()
def explain(
    id: Annotated[str, typer.Argument(help="Id of a sample.")],
    data_dir: Annotated[
        Path,
        typer.Option(callback=data_folder, help="The data folder, with harmful/, retain/, traces/, stage2/, ..."),
    ],
    model: ModelOption = None,
) -> None:
    """All that is known of a sample: its origin, rules, outcome, raw record and rendering."""
    from rich.console import Console

    from ..audit.explain import explain_row
    from ..checks.show_tokens import show_tokens

    row, sections = explain_row(id, data_dir)
    for title, lines in sections.items():
        print_line(title)
        for line in lines:
            # Further lines of a text are set in, so that none looks like a part of this report.
            print("  " + shown(line).replace("\n", "\n    "))
    if model is not None:
        Console(highlight=False, soft_wrap=True).print(show_tokens(row, tokenizer(model)))


def named_sets(paths: list[Path]) -> list[Path]:
    """The folders of samples among some paths: each a set, or a folder of sets. JSON lines are read into folders."""
    from ..sets.jsonl_sets import as_folder
    from ..sets.set_names import check_former_name, former_name_notice

    found = [path for given in paths for path in _sets_in(given)]
    if not found:
        raise ValueError("No sets were named: pass folders, or --harmful-dir and --retain-dir.")
    folders = [as_folder(path) for path in found]
    for folder in folders:
        check_former_name(folder)
        if notice := former_name_notice(folder):
            print_line(notice, file=sys.stderr)
    return folders


def _sets_in(path: Path) -> list[Path]:
    """The sets in a folder, in subfolders or in JSON lines; or the path itself, which may be one."""
    from ..files import dataset_folders, holds_rows
    from ..sets.jsonl_sets import SUFFIX, name_of

    parents = [path / name for name in ("harmful", "retain", "ds", "dr") if (path / name).is_dir()] or [path]
    inside = []
    for parent in parents:
        inside += sorted([*dataset_folders(parent), *parent.glob(f"*{SUFFIX}")], key=name_of)
    # A folder without any is left to the reader of rows, whose error says what is missing.
    return inside if inside and not holds_rows(path) else [path]


def quarantined(folder: Path | None) -> set[str]:
    """Ids of the rows in quarantine."""
    from ..files import stream_tables

    ids: set[str] = set()
    for batch in stream_tables(folder, columns=["id"]) if folder is not None else ():
        found: list[Any] = batch["id"].to_pylist() if "id" in batch.column_names else [None]
        if not all(isinstance(id, str) for id in found):
            raise ValueError(f"--quarantine: {folder}: the id of a row is no text. Run `cb-datasets validate` again.")
        ids.update(found)
    return ids
