"""The command `merge`: Ds and Dr -> the merged dataset."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..checks.thresholds import MergedThresholds, Thresholds
from ..counts import listed
from ..file_locks import locked
from ..terminal import print_line
from .check import HarmfulOption, QuarantineOption, RetainOption, SetsArgument, named_sets, quarantined, rules_table
from .evaluate import prompt_folders_in
from .numbers import finite
from .options import NumProcOption, SeedOption, takes
from .output import dropped, gate_table, stop_unless, tokenizer
from .paths import input_file, input_folder, model_path, output_path


app = typer.Typer()


@app.command()
@takes(MergedThresholds)
def merge(
    limits: MergedThresholds,
    output: Annotated[
        Path,
        typer.Option(
            callback=output_path,
            help="Folder of the merged dataset, for train/ and eval/; or a .jsonl file for the train split.",
        ),
    ],
    folders: SetsArgument = None,
    harmful_dir: HarmfulOption = None,
    retain_dir: RetainOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(callback=input_folder, help="The prompts folder; training rows must share nothing with it."),
    ] = None,
    eval_output: Annotated[
        Path | None,
        typer.Option(
            callback=output_path,
            help="The eval split: folder or .jsonl file, by default <output>/eval or eval.jsonl.",
        ),
    ] = None,
    eval_fraction: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, callback=finite, help="Hold out this fraction of groups; by default as at ingest."
        ),
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=PAIRS", help="Maximum number of pairs of a class in train; repeatable."),
    ] = None,
    dr_ratio: Annotated[
        float | None,
        typer.Option(min=0.0, callback=finite, help="Target for Dr rows per Ds row: Dr is sampled down to it."),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=WEIGHT", help="Weight of a class under --dr-ratio; repeatable."),
    ] = None,
    repeat_similarity: Annotated[
        float,
        typer.Option(min=0.0, callback=finite, help="Similarity at which rows are near-duplicates; above 1, none is."),
    ] = 0.95,
    check: Annotated[bool, typer.Option("--validate", help="Check the rules first, strictly.")] = False,
    quarantine: QuarantineOption = None,
    marks: Annotated[
        Path | None, typer.Option(callback=input_file, help="Audit marks; rows marked bad are left out.")
    ] = None,
    reports: Annotated[
        Path | None,
        typer.Option(callback=output_path, help="Folder for stats.json: by default ../reports, or beside a .jsonl."),
    ] = None,
    schemas: Annotated[
        Path | None, typer.Option(callback=output_path, help="Folder for the JSON Schema, by default ../schemas.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(callback=model_path, help="Model whose tokenizer measures rows for stats.json.")
    ] = None,
    seed: SeedOption = 0,
    num_proc: NumProcOption = None,
) -> None:
    """Ds and Dr -> train and eval, without quarantined, repeated and leaking rows."""
    from ..audit.marks import marked_bad
    from ..export import json_schema
    from ..files import hashes_of, write_json
    from ..merge.dropped_rows import DROPPED_ROWS_FILE
    from ..merge.merge import MergeOptions
    from ..merge.merge import merge as merge_sets
    from ..sets.jsonl_sets import output_of_splits, reports_beside, schemas_beside, written_as_jsonl

    if dr_ratio is not None and dr_ratio < limits.min_dr_ratio:
        raise ValueError(f"--dr-ratio {dr_ratio:g} is below --min-dr-ratio {limits.min_dr_ratio:g}: lower that too.")
    sets = named_sets([*(folders or []), *(harmful_dir or []), *(retain_dir or [])])
    options = MergeOptions(
        seed, eval_fraction, repeat_similarity, _numbers(quota, int), dr_ratio, _numbers(weight, float)
    )
    bad = quarantined(quarantine)
    if check:
        bad |= _checked(sets, output.parent / "quarantine" / "merge", num_proc)
    outputs = output_of_splits(output, eval_output)
    prompt_sets = prompt_folders_in(prompts) if prompts else []
    marked = marked_bad(marks) if marks else set()
    stats = (reports or reports_beside(output)) / "stats.json"
    left_out = stats.with_name(DROPPED_ROWS_FILE)
    with _locked_together([*outputs.values(), stats]):
        with written_as_jsonl(outputs) as written:
            report = merge_sets(
                sets, bad, prompt_sets, written, options, limits, _length(model), marked, left_out, num_proc
            )
        if report["passed"] and written != outputs:  # what is read later are the JSON lines
            report |= {"outputs": hashes_of(outputs.values())}
        write_json(stats, report)
    gate_table(report)
    stop_unless(report["passed"], f"merge: a gate failed; see {stats}")
    write_json((schemas or schemas_beside(output)) / "canonical_sample_schema.json", json_schema())
    for split, part in report["splits"].items():
        print_line(f"merge {split}: Ds {part['circuit_breaker']}, Dr {part['retain']} ({listed(part['classes'])})")
    print_line(f"  {dropped(report['drops'])} -> {output}; why, row by row: {left_out}")


@contextmanager
def _locked_together(paths: list[Path]) -> Iterator[None]:
    """Wait until no other merge writes any of these, so that both splits and their reports are of one merge."""
    with ExitStack() as locks:
        # In the same order in every process: otherwise two could wait for each other.
        for path in sorted({path.resolve() for path in paths}):
            locks.enter_context(locked(path))
        yield


def _checked(sets: list[Path], quarantine: Path, num_proc: int | None) -> set[str]:
    """Ids of the rows that break a rule; the command fails if there are too many."""
    from ..checks.validate import validate as validate_sets

    report = validate_sets(sets, quarantine, Thresholds().min_valid, num_proc=num_proc)
    rules_table(report)
    stop_unless(report["passed"], f"merge: a set has too many invalid rows; see {quarantine}")
    return quarantined(quarantine)


def _numbers(texts: list[str] | None, number: type[int] | type[float]) -> dict:
    """`CLASS=NUMBER` options as a dict."""
    from ..sample import PRIORITY_WEIGHTS

    numbers = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        if name in numbers:
            raise ValueError(f"{text!r}: {name} is given twice. Give each class once.")
        try:
            numbers[name] = number(value)
        except ValueError:
            raise ValueError(f"{text!r} is not CLASS=NUMBER.") from None
        if name not in PRIORITY_WEIGHTS or not 0 <= numbers[name] < math.inf:
            raise ValueError(f"{text!r}: not a number from 0 on of one of the classes {', '.join(PRIORITY_WEIGHTS)}.")
    return numbers


def _length(model: str | None) -> Callable[[dict], int] | None:
    if model is None:
        return None
    from ..sets.fit_context import token_count

    target = tokenizer(model)
    return lambda row: token_count(row, row["assistant_raw"], target)
