"""Raw files -> traces on disk, split into train and eval before any model runs."""

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from builders.base import TraceBuilder, summarize_traces

from .files import load_rows, save_rows
from .splits import choose, split_by_group


# The splits of a source that is ingested without saying how: those of `ingest` without flags.
EVAL_FRACTION, HELD_OUT = 0.2, "test"
B4 = "fujitsu_b4"


def ingest(
    builder: TraceBuilder,
    eval_fraction: float,
    held_out: str,
    target_n: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Dataset], dict]:
    """The traces of a prepared builder by split, and the source's report.

    Stored traces have one column more than a builder yields: `source_revision`, which says what they were made of.

    Args:
        builder ([`~builders.base.TraceBuilder`]): As `prepare_source` returns it.
        eval_fraction, held_out: As for [`split_by_group`].
        target_n (`int`, *optional*): Maximum number of traces of each split, chosen by a hash of their ids.
        seed (`int`, *optional*, defaults to `0`): Another seed chooses others.
    """
    traces = builder.as_dataset()
    report = summarize_traces(traces, builder.dropped())
    chosen = DatasetDict({split: choose(rows, target_n, seed, key="id") for split, rows in traces.items()})
    splits = split_by_group(chosen, eval_fraction, held_out)
    revision = builder.config.source_revision
    is_local = revision.startswith("local:")
    report |= {
        "names": sorted({name for rows in traces.values() for name in rows.unique("source")}),
        "licence": builder.licence,
        "redistributable": builder.redistributable,
        "citation": builder.CITATION,
        "note": builder.NOTE,
        "source_revision": revision,
        "pinned_by_revision_only": [] if is_local else [d.path for d in builder.DOWNLOADS if d.sha256 is None],
        "not_chosen": sum(len(rows) for rows in traces.values()) - sum(len(rows) for rows in chosen.values()),
        "eval_fraction": eval_fraction,
        "sides": {split: len(rows) for split, rows in splits.items()},
    }
    with_revision = {
        split: rows.add_column("source_revision", [revision] * len(rows)) for split, rows in splits.items()
    }
    return with_revision, report


def save_traces(splits: dict[str, Dataset], output: Path, report: dict) -> None:
    """Write `<output>/train` and `<output>/eval`, each with the report."""
    for split, rows in splits.items():
        save_rows(rows, output / split, report)


def load_traces(paths: Iterable[Path], splits: tuple[str, ...] = ("train", "eval")) -> dict[str, Dataset]:
    """The traces of one or more sources, by split.

    Args:
        paths (`Iterable[Path]`): Folders of ingested sources. A file is B4's own, and is ingested in memory.
        splits (`tuple[str, ...]`, *optional*): The splits to read.

    Raises:
        FileNotFoundError: If a source has not been ingested.
        ValueError: If a file is not B4's.
    """
    sources = [
        _ingested_file(path) if path.is_file() else {split: load_rows(path / split) for split in splits}
        for path in paths
    ]
    return {split: concatenate_datasets([source[split] for source in sources]) for split in splits}


def source_of(path: Path) -> str:
    """The source whose traces [`load_traces`] reads from a path."""
    return B4 if path.is_file() else path.name


def _ingested_file(file: Path) -> dict[str, Dataset]:
    from builders import prepare_source

    return ingest(prepare_source(B4, data_files=[file]), EVAL_FRACTION, HELD_OUT)[0]
