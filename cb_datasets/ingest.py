"""Raw files -> traces on disk, with the train and the eval side told apart before any model runs."""

import hashlib
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from builders.base import TraceBuilder, report_of

from .files import save_rows


def is_held_out(group: str, fraction: float) -> bool:
    """Whether a group is on the eval side: decided by a hash of its name, the same in every run and on every machine.

    Args:
        group (`str`): A trace's group.
        fraction (`float`): Expected share of groups that are held out; also the threshold of the hash.
    """
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) < fraction * 2**64


def split_by_group(traces: DatasetDict, eval_fraction: float, held_out: str) -> dict[str, Dataset]:
    """Traces by side.

    Args:
        traces ([`~datasets.DatasetDict`]): What a builder yields. Its `train` split is divided by group.
        eval_fraction (`float`): Share of groups that go to the eval side.
        held_out (`str`): Split of the source's own (`test`, `dev`) that joins the eval side, where the source has it.

    Raises:
        ValueError: If the source has neither split, or a group of the held-out split is on the train side too.
    """
    if not {"train", held_out} & set(traces):
        raise ValueError(f"The source has the splits {', '.join(traces)}: neither train nor {held_out}.")
    own = next(iter(traces.values()))
    train, own_held_out = (traces.get(split, own.select([])) for split in ("train", held_out))
    on_eval_side = [is_held_out(group, eval_fraction) for group in train["group"]]
    sides = {
        "train": train.select([index for index, held in enumerate(on_eval_side) if not held]),
        "eval": train.select([index for index, held in enumerate(on_eval_side) if held]),
    }
    shared = set(sides["train"]["group"]) & set(own_held_out["group"])
    if shared:
        raise ValueError(f"{len(shared)} groups are in train and in {held_out}, e.g. {min(shared)!r}.")
    sides["eval"] = concatenate_datasets([sides["eval"], own_held_out])
    return sides


def ingest(builder: TraceBuilder, output: Path, eval_fraction: float, held_out: str) -> dict:
    """Write the traces of a prepared builder to `<output>/train` and `<output>/eval`; returns the source's report."""
    traces = builder.as_dataset()
    sides = split_by_group(traces, eval_fraction, held_out)
    report = report_of(traces, builder.dropped())
    report |= {
        "licence": builder.LICENSE,
        "redistributable": builder.REDISTRIBUTABLE,
        "eval_fraction": eval_fraction,
        "sides": {side: len(rows) for side, rows in sides.items()},
    }
    for side, rows in sides.items():
        save_rows(rows, output / side, report)
    return report
