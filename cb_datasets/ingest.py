"""Raw files -> traces on disk, with the train and the eval side told apart before any model runs."""

from pathlib import Path

from datasets import Dataset, DatasetDict

from builders.base import TraceBuilder, report_of

from .files import save_rows
from .splits import choose, split_by_group


def ingest(
    builder: TraceBuilder,
    eval_fraction: float,
    held_out: str,
    target_n: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Dataset], dict]:
    """The traces of a prepared builder by side, and the source's report.

    Stored traces have one column more than a builder yields: `source_revision`, which says of what they were made.

    Args:
        builder ([`~builders.base.TraceBuilder`]): As `prepare_source` returns it.
        eval_fraction, held_out: As for [`split_by_group`].
        target_n (`int`, *optional*): Most traces to keep of each split, chosen by a hash of their ids.
        seed (`int`, *optional*, defaults to `0`): Another seed chooses others.
    """
    traces = builder.as_dataset()
    report = report_of(traces, builder.dropped())
    chosen = DatasetDict({split: choose(rows, target_n, seed, key="id") for split, rows in traces.items()})
    sides = split_by_group(chosen, eval_fraction, held_out)
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
        "sides": {side: len(rows) for side, rows in sides.items()},
    }
    return {side: rows.add_column("source_revision", [revision] * len(rows)) for side, rows in sides.items()}, report


def save_sides(sides: dict[str, Dataset], output: Path, report: dict) -> None:
    """Write `<output>/train` and `<output>/eval`, each with the report."""
    for side, rows in sides.items():
        save_rows(rows, output / side, report)
