"""Ds and Dr -> one dataset with a train and an eval split, checked, with a named reason for every dropped row.

    1. read every row once and keep a few numbers of each: hashes, its pair, a MinHash signature (`index.py`)
    2. decide which rows are kept, and why the others are dropped (`decide.py`)
    3. read every row again, write the kept ones shuffled (`write.py`), and check the gates on what was written
    4. move the files into place

Steps 1 and 3 hold a few thousand rows in memory at a time; step 2 holds some hundred bytes per row.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from ..checks.gates import at_least, gate_report
from ..checks.thresholds import MergedThresholds
from ..files import (
    REPORT_FILE,
    ROWS_FILE,
    count_rows,
    dataset_name,
    hashes_of,
    in_one_move,
    read_json,
    row_groups,
    sha256,
    stream_rows,
    stream_tables,
    write_json,
)
from ..processes import batches_of, processes_for
from ..row_groups import RowGroup, map_groups, row_batches
from ..sample import PROMPT_FEATURES, SAMPLE_FEATURES, SEVERAL_GROUPS
from ..splits import is_held_out
from ..text_faults import checked, is_inside, prompt_faults
from .decide import DROPS, MergeOptions, decide
from .dropped_rows import write_dropped_rows
from .gates import HeldOut, merged_gates
from .index import SPLITS, Batch, MergeIndex, read_batch, read_index
from .write import write_splits


# The columns by which rows are told apart, split and compared with what is held out; and those of the index.
_HELD_OUT_BY = [
    *("id", "group", "pair", "split", "set", "priority_class", "messages", "injection"),
    *("provenance.source_dataset", "provenance.record_id"),
]
_INDEXED = [*_HELD_OUT_BY, "tools", "assistant_raw", "tool_calls_structured"]


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
    num_proc: int | None = None,
) -> dict:
    """Merge set folders.

    Args:
        folders (`list[Path]`): Set folders of Ds and Dr.
        quarantined (`set[str]`): Ids of the rows that failed validation.
        prompts (`list[Path]`): Folders of evaluation prompts; training rows must not share requests with them.
        outputs (`dict[str, Path]`): Folders of the `train` and the `eval` split. They are written only if every gate
            passes.
        options ([`MergeOptions`]): Splits, deduplication and quotas.
        limits ([`MergedThresholds`]): Thresholds of the gates.
        length (`Callable[[dict], int]`, *optional*): Number of tokens of a row; with it the report has lengths.
        marked_bad (`Collection[str]`, *optional*): Ids of the rows that a person marked as bad.
        left_out (`Path`, *optional*): Parquet file for the dropped rows with their reasons; written whether or not the
            gates pass.
        num_proc (`int`, *optional*): Number of processes, by default one for each core.

    Returns:
        `dict`: The report, with `passed`.
    """
    processes = processes_for(batches_of(count_rows(folders)), num_proc)
    index = _read_index(folders, quarantined, prompts, options, limits, processes)
    reasons, duplicate_of = decide(index, _ids_are_in(folders, marked_bad), options)
    if left_out is not None:
        write_dropped_rows(folders, reasons, duplicate_of, left_out)
    try:
        with ExitStack() as files:
            temporary = {
                split: files.enter_context(_temporary(folder / ROWS_FILE)) for split, folder in outputs.items()
            }
            counts = write_splits(folders, index, reasons, temporary, length, processes)
            # The gates read the written files, not the decision, so that a fault in writing fails them too.
            gates = merged_gates(temporary["train"], temporary["eval"], stream_rows(prompts), limits, processes)
            if prompts:
                num_prompts = count_rows(prompts)
                gates.append(at_least("merged: evaluation prompts to compare with", num_prompts, 1, num_prompts))
            report = _report(counts, reasons, [*folders, *prompts]) | gate_report(gates, limits)
            # Raising is what makes the context managers delete the temporary files instead of moving them into place.
            if not report["passed"]:
                raise _GateFailed
            # Of the files that the report is about, before they are moved: where file systems have no locks, another
            # merge may move its own at the same time.
            report["outputs"] = {dataset_name(folder): sha256(temporary[split]) for split, folder in outputs.items()}
    except _GateFailed:
        return report
    for split, folder in outputs.items():
        write_json(folder / REPORT_FILE, counts[split])
    return report


def _read_index(
    folders: list[Path],
    quarantined: set[str],
    prompts: list[Path],
    options: MergeOptions,
    limits: MergedThresholds,
    processes: int,
) -> MergeIndex:
    requests = _held_out(folders, prompts, options).prompt_index(limits.max_similarity)
    groups = [group for folder in folders for group in row_groups(folder, SAMPLE_FEATURES)]
    # Of each group, in all sets.
    first_rows = dict(zip(groups, accumulate((group.rows for group in groups), initial=1), strict=False))

    def read(group: RowGroup) -> Batch:
        rows = chain.from_iterable(row_batches(group, SAMPLE_FEATURES, _INDEXED))
        return read_batch(_with_split(rows, first_rows[group], quarantined, options), options.seed, requests.are_known)

    return read_index(batch for _, batch in map_groups(read, groups, processes, "Reading"))


def check_outputs(hashes: dict[str, str], stats: Path) -> None:
    """Refuse folders that were changed after the merge wrote them.

    Args:
        hashes (`dict[str, str]`): Current hashes of the folders, see [`~files.hashes_of`].
        stats (`Path`): The report of the merge. Folders that are not in it are not checked; without a report none are.

    Raises:
        ValueError: Naming the first folder that differs.
    """
    written = read_json(stats).get("outputs", {}) if stats.is_file() else {}
    for name in hashes:
        if name in written and hashes[name] != written[name]:
            raise ValueError(f"{name} differs from the hash in {stats}: it was changed after the merge. Merge again.")


class _GateFailed(Exception):
    """Raised to discard the written files."""


def _temporary(path: Path) -> AbstractContextManager[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return in_one_move(path)


def _split_of(group: str, split: str, options: MergeOptions) -> str:
    return "eval" if options.eval_fraction and is_held_out(group, options.eval_fraction) else split


def _with_split(
    rows: Iterable[dict], first: int, quarantined: set[str], options: MergeOptions
) -> Iterator[tuple[dict, str, bool]]:
    """Each row with its split in the merged dataset, and whether it is in quarantine. They are numbered from `first`.

    Raises:
        ValueError: If a row lacks what it is told apart, split or counted by, or cannot be held out by its group.
    """
    for number, row in enumerate(rows, first):
        for _, fault in _index_faults(row):
            raise ValueError(
                f"Row {number} of the sets, {row['id']} of {row['provenance']['source_dataset']}: {fault}. "
                "`cb-datasets validate` lists all such rows: correct them, or take them out."
            )
        split = _split_of(row["group"], row["split"], options)
        if split != row["split"] and row["provenance"]["source_dataset"] in SEVERAL_GROUPS:
            raise ValueError(
                f"--eval-fraction {options.eval_fraction:g} would hold out {row['id']}, whose attack may stay in "
                f"train with another request: traces of {row['provenance']['source_dataset']} are of two groups, and "
                "samples keep one. Ingest that source with this --eval-fraction instead, and make its sets again."
            )
        yield row, split, row["id"] in quarantined


def _index_faults(row: dict) -> Iterator[tuple[str, str]]:
    """Faults for which a row cannot be told apart, split, counted or compared; rules find the others."""
    for column in ("id", "group", "split", "set", "priority_class"):
        if not row[column]:
            yield column, f"{column} is empty"
    if row["split"] not in SPLITS:
        yield "split", f"split is {row['split']!r}, neither train nor eval"
    if not all(is_inside(span, row["messages"]) for span in row["injection"]):
        yield "injection", "an injection is not inside its message"


def _ids_are_in(folders: list[Path], ids: Collection[str]) -> np.ndarray:
    """Whether the id of each row is in a collection."""
    tables = (table for folder in folders for table in stream_tables(folder, columns=["id"]))
    masks = [
        pyarrow.compute.is_in(table["id"], pyarrow.array(list(ids), pyarrow.string())).to_numpy() for table in tables
    ]
    return np.concatenate([np.zeros(0, bool), *masks])


def _held_out(folders: list[Path], prompts: list[Path], options: MergeOptions) -> HeldOut:
    """The eval split and all evaluation prompts, which training must not contain."""
    held_out = HeldOut()
    for place in prompts:
        held_out.add_rows(checked(stream_rows([place], PROMPT_FEATURES), place, prompt_faults))
    for folder in folders:
        for table in stream_tables(folder, SAMPLE_FEATURES, _HELD_OUT_BY):
            # What has no group is refused when rows are indexed.
            groups = (group or "" for group in table["group"].to_pylist())
            splits = zip(groups, table["split"].to_pylist(), strict=True)
            is_eval = [_split_of(group, split, options) == "eval" for group, split in splits]
            held_out.add_rows(checked(table.filter(is_eval).to_pylist(), f"{folder}, eval", _index_faults))
    return held_out


def _report(counts: dict[str, dict], reasons: np.ndarray, inputs: list[Path]) -> dict:
    dropped = {reason: int((reasons == number).sum()) for number, reason in enumerate(DROPS, start=1)}
    return {
        "splits": counts,
        "drops": {reason: count for reason, count in sorted(dropped.items()) if count},
        "inputs": hashes_of(inputs),
    }
