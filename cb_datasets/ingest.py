"""Raw files -> traces on disk, split into train and eval before any model runs."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from builders.base import TraceBuilder, summarize_traces
from builders.trace import TRACE_FEATURES

from .disk_faults import as_written
from .files import (
    REPORT_FILE,
    ROWS_FILE,
    holds_rows,
    load_rows,
    read_json,
    save_parquet,
    to_dataset,
    write_json,
)
from .row_groups import STREAM_ROWS
from .splits import ON_BOTH_SIDES, choose, drop_on_both_sides, split_by_group
from .text_faults import checked, trace_faults


# The splits of a source that is ingested without saying how: those of `ingest` without flags.
EVAL_FRACTION, HELD_OUT = 0.2, "test"
B4 = "fujitsu_b4"

# The settings of live runs, beside `runs/`.
SETTINGS_FILE = "settings.json"

# A stored trace, which says what it was made of.
STORED_FEATURES = Features({**TRACE_FEATURES, "source_revision": Value("string")})


def ingest(
    builder: TraceBuilder,
    eval_fraction: float,
    held_out: str,
    target_n: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Dataset], dict]:
    """The traces of a prepared builder by split, and the source's report.

    Stored traces have one column more than a builder yields: `source_revision`, which says what they were made of.
    The report counts every trace: in one of the `sides`, in `other_splits`, which are those of the source that join
    neither side, or as `not_chosen`.

    Args:
        builder ([`~builders.base.TraceBuilder`]): As `prepare_source` returns it.
        eval_fraction, held_out: As for [`split_by_group`].
        target_n (`int`, *optional*): Maximum number of traces of each split, chosen by a hash of their ids.
        seed (`int`, *optional*, defaults to `0`): Another seed chooses others.
    """
    traces = builder.as_dataset()
    report = summarize_traces(traces, builder.dropped())
    traces, on_both_sides = drop_on_both_sides(traces, eval_fraction)
    _count_as_dropped(report, on_both_sides)
    chosen = DatasetDict({split: choose(rows, target_n, seed, key="id") for split, rows in traces.items()})
    splits = split_by_group(chosen, eval_fraction, held_out)
    revision = builder.config.source_revision
    is_local = revision.startswith("local:")
    report |= {
        "names": sorted({name for rows in traces.values() for name in rows.unique("source")}),
        "licence": builder.licence,
        "redistributable": builder.redistributable,
        "citation": builder.CITATION,
        "origins": builder.origins(traces),
        "note": builder.NOTE,
        "source_revision": revision,
        "pinned_by_revision_only": [] if is_local else [d.path for d in builder.DOWNLOADS if d.sha256 is None],
        "not_chosen": sum(len(rows) for rows in traces.values()) - sum(len(rows) for rows in chosen.values()),
        "eval_fraction": eval_fraction,
        "sides": {split: len(rows) for split, rows in splits.items()},
        "other_splits": {split: len(rows) for split, rows in chosen.items() if split not in ("train", held_out)},
    }
    if (template := _template_of_runs(builder.config.data_dir)) is not None:
        report["runs_template_hash"] = template
    with_revision = {
        # Without rows the type of the column must be given.
        split: rows.add_column("source_revision", [revision] * len(rows), feature=STORED_FEATURES["source_revision"])
        for split, rows in splits.items()
    }
    return with_revision, report


def _template_of_runs(folder: str | None) -> str | None:
    """Hash of the chat template of a model's own runs, which `cb-datasets agentdojo` states beside them."""
    if folder is None or not Path(folder, "runs").is_dir() or not Path(folder, SETTINGS_FILE).is_file():
        return None
    return read_json(Path(folder, SETTINGS_FILE)).get("template_hash")


def _count_as_dropped(report: dict, verdicts: Counter[str]) -> None:
    """Count traces of these verdicts that are in neither split as drops: every record is in one or the other."""
    if verdicts:
        left = Counter(report["verdicts"]) - verdicts
        report["verdicts"] = dict(sorted(left.items()))
        report["drops"] = dict(sorted({**report["drops"], ON_BOTH_SIDES: verdicts.total()}.items()))


def save_traces(splits: dict[str, Dataset], output: Path, report: dict) -> None:
    """Write `<output>/train`, `<output>/eval` and the report.

    A split without rows gets no file, on which `load_dataset` would fail.
    """
    for split, rows in splits.items():
        file = output / split / ROWS_FILE
        # Older versions wrote it here, where `load_dataset` would take it for rows.
        file.with_name(REPORT_FILE).unlink(missing_ok=True)
        if len(rows):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_parquet(rows, file)
        else:
            file.unlink(missing_ok=True)
    write_json(output / REPORT_FILE, report)


def load_traces(paths: Iterable[Path], splits: tuple[str, ...] = ("train", "eval")) -> dict[str, Dataset]:
    """The traces of one or more sources, by split.

    Args:
        paths (`Iterable[Path]`): Folders of ingested sources. A file is B4's own, and is ingested in memory.
        splits (`tuple[str, ...]`, *optional*): The splits to read.

    Raises:
        FileNotFoundError: If a source has not been ingested.
        ValueError: If a file is not B4's, or a folder holds rows that are no traces.
    """
    sources = [
        _ingested_file(path) if path.is_file() else {split: load_split(path, split) for split in splits}
        for path in paths
    ]
    return {split: concatenate_datasets([source[split] for source in sources]) for split in splits}


def load_split(folder: Path, split: str) -> Dataset:
    """The traces of one split of an ingested source, which may have none.

    Raises:
        FileNotFoundError: If the source has not been ingested.
        ValueError: If a row is no trace; its number is named.
    """
    report = folder / REPORT_FILE
    if not holds_rows(folder / split) and report.is_file():
        with as_written(report, "Ingest the source again."):
            if read_json(report)["sides"][split] == 0:
                return to_dataset([], STORED_FEATURES)
    traces = load_rows(folder / split)
    check_traces(traces, folder / split)
    return traces


def check_traces(traces: Dataset, place: Path) -> None:
    """Check that rows are traces, which may lack the column `source_revision`.

    Raises:
        ValueError: If they have other columns, or one has a fault; the message begins with `place`.
    """
    if wrong := sorted(name for name, feature in TRACE_FEATURES.items() if traces.features.get(name) != feature):
        raise ValueError(
            f"{place}: no traces of this version (differ in {', '.join(wrong)}). Ingest the source again."
        )
    rows = (row for table in traces.with_format("arrow").iter(STREAM_ROWS) for row in table.to_pylist())
    for _ in checked(rows, place, trace_faults, "Ingest the source again."):
        pass


def source_of(path: Path) -> str:
    """The source whose traces [`load_traces`] reads from a path."""
    return B4 if path.is_file() else path.name


def _ingested_file(file: Path) -> dict[str, Dataset]:
    from builders import prepare_source

    return ingest(prepare_source(B4, data_files=[file]), EVAL_FRACTION, HELD_OUT)[0]
