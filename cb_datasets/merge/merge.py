"""Ds and Dr -> one dataset with a train and an eval split, checked, and everything counted that was left out.

    1. read every row once and keep what decides about it: hashes, its pair, a MinHash signature (`merge_index.py`)
    2. decide: each row is kept or has a reason why not (`merge_choice.py`)
    3. read every row again, write the kept ones, shuffled, and pass the gates over what was written
    4. put the files in place

A few thousand rows are in memory at a time, in steps 1 and 3; in step 2, some hundred bytes of each row.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from tqdm import tqdm

from ..checks.gates import gate_report
from ..checks.thresholds import MergedThresholds
from ..files import (
    REPORT_FILE,
    ROWS_FILE,
    count_rows,
    hashes_of,
    in_one_move,
    read_json,
    stream_file,
    stream_rows,
    stream_tables,
    write_json,
)
from ..sample import SAMPLE_FEATURES
from ..splits import is_held_out
from .decide import DROPS, MergeOptions, decide
from .dropped_rows import write_dropped_rows
from .gates import HeldOut, merged_gates
from .index import MergeIndex, read_index
from .write import write_splits


def merge(
    folders: list[Path],
    quarantined: set[str],
    prompts: list[Path],
    outputs: dict[str, Path],
    options: MergeOptions,
    limits: MergedThresholds,
    length: Callable[[dict], int] | None = None,
    marked_bad: Collection[str] = (),
    left_out: Path | None = None,
) -> dict:
    """Merge set folders.

    Args:
        folders (`list[Path]`): Set folders, Ds and Dr.
        quarantined (`set[str]`): Ids that failed validation.
        prompts (`list[Path]`): Folders of evaluation prompts; training must not have seen what they ask.
        outputs (`dict[str, Path]`): Folder of the `train` and of the `eval` split. Nothing is put there unless every
            gate is passed.
        options ([`MergeOptions`]): What is taken.
        limits ([`MergedThresholds`]): What the gates demand.
        length (`Callable[[dict], int]`, *optional*): Tokens of a row; with it the report tells lengths.
        marked_bad (`Collection[str]`, *optional*): Ids of the rows that a person marked as bad.
        left_out (`Path`, *optional*): Parquet file for the rows that are left out, with
            their reasons; written whether or not the gates are passed.

    Returns:
        `dict`: The report, with `passed`.
    """
    index = _index(folders, quarantined, prompts, options, limits)
    reasons, repeats = decide(index, _are_among(folders, marked_bad), options)
    if left_out is not None:
        write_dropped_rows(folders, reasons, repeats, left_out)
    try:
        with ExitStack() as files:
            temporary = {split: files.enter_context(_beside(folder / ROWS_FILE)) for split, folder in outputs.items()}
            counts = write_splits(folders, index, reasons, temporary, length)
            written = {split: _read(path, f"Checking {split}") for split, path in temporary.items()}
            gates = merged_gates(written["train"], written["eval"], stream_rows(prompts), limits)
            report = _report(counts, reasons, [*folders, *prompts]) | gate_report(gates, limits)
            if not report["passed"]:
                raise _GateFailed
    except _GateFailed:
        return report
    for split, folder in outputs.items():
        write_json(folder / REPORT_FILE, counts[split])
    return report | {"outputs": hashes_of(outputs.values())}


def _index(
    folders: list[Path], quarantined: set[str], prompts: list[Path], options: MergeOptions, limits: MergedThresholds
) -> MergeIndex:
    held_out = _held_out(folders, prompts, options).index(limits.max_similarity)
    rows = _placed(_shown(folders, "Reading"), quarantined, options)
    return read_index(rows, options.seed, lambda request: held_out.find(request) is not None)


def check_outputs(hashes: dict[str, str], stats: Path) -> None:
    """Refuse folders that merge wrote and somebody changed since.

    Args:
        hashes (`dict[str, str]`): What the folders hold now, see [`~files.hashes_of`].
        stats (`Path`): The report of the merge; folders that it does not tell of, or all if it is missing, are not its
            business.

    Raises:
        ValueError: Naming the first such folder.
    """
    written = read_json(stats).get("outputs", {}) if stats.is_file() else {}
    for name in hashes:
        if name in written and hashes[name] != written[name]:
            raise ValueError(f"{name} is not what {stats} tells of: it was changed after the merge. Merge again.")


class _GateFailed(Exception):
    """Leaves what was written out of place."""


def _beside(path: Path) -> AbstractContextManager[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return in_one_move(path)


def _read(path: Path, description: str) -> Iterator[dict]:
    """The rows of a written file, with a progress bar."""
    with tqdm(desc=description, total=pyarrow.parquet.read_metadata(path).num_rows, unit="row") as bar:
        for table in stream_file(path):
            yield from table.to_pylist()
            bar.update(len(table))


def _shown(folders: list[Path], description: str) -> Iterator[dict]:
    """The rows of the folders, with a progress bar."""
    return iter(tqdm(stream_rows(folders, SAMPLE_FEATURES), description, count_rows(folders), unit="row"))


def _split_of(group: str, split: str, options: MergeOptions) -> str:
    return "eval" if options.eval_fraction and is_held_out(group, options.eval_fraction) else split


def _placed(rows: Iterable[dict], quarantined: set[str], options: MergeOptions) -> Iterator[tuple[dict, str, bool]]:
    for row in rows:
        yield row, _split_of(row["group"], row["split"], options), row["id"] in quarantined


def _are_among(folders: list[Path], ids: Collection[str]) -> np.ndarray:
    """Whether the id of each row is one of these."""
    tables = (table for folder in folders for table in stream_tables(folder, columns=["id"]))
    parts = [
        pyarrow.compute.is_in(table["id"], pyarrow.array(list(ids), pyarrow.string())).to_numpy() for table in tables
    ]
    return np.concatenate([np.zeros(0, bool), *parts])


def _held_out(folders: list[Path], prompts: list[Path], options: MergeOptions) -> HeldOut:
    """What training must not have seen: the eval side and all that evaluation asks."""
    held_out = HeldOut()
    held_out.add(stream_rows(prompts))
    for folder in folders:
        for table in stream_tables(folder, SAMPLE_FEATURES):
            sides = zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True)
            held_out.add(table.filter([_split_of(*side, options) == "eval" for side in sides]).to_pylist())
    return held_out


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def _report(counts: dict[str, dict], reasons: np.ndarray, inputs: list[Path]) -> dict:
    dropped = {reason: int((reasons == number).sum()) for number, reason in enumerate(DROPS, start=1)}
    return {
        "splits": counts,
        "drops": {reason: count for reason, count in sorted(dropped.items()) if count},
        "inputs": hashes_of(inputs),
    }
