"""Raw files -> traces on disk, split into train and eval before any model runs."""

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from builders.base import TraceBuilder, summarize_traces

from .files import load_rows, save_rows
from .splits import choose, split_by_group


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


def load_traces(folders: Iterable[Path]) -> dict[str, Dataset]:
    """The stored traces of one or more sources, by split.

    Raises:
        FileNotFoundError: If a source has not been ingested.
    """
    folders = list(folders)
    return {
        split: concatenate_datasets([load_rows(folder / split) for folder in folders]) for split in ("train", "eval")
    }
