"""Row groups of Parquet files: what one process reads at a time, a few thousand rows in memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from datasets import Features
from tqdm import tqdm

from .disk_faults import naming_broken_parquet
from .null_parts import without_nulls
from .processes import Result, batches_of, map_in_order, processes_for, slices_of


# Rows that a streaming step holds at a time, and those of a row group that is written.
STREAM_ROWS = 2000


class RowGroup(NamedTuple):
    """A row group of a Parquet file, which one process reads at a time. Its rows are numbered from `first` on."""

    file: Path
    number: int
    first: int
    rows: int


def row_groups_of(file: Path) -> list[RowGroup]:
    """The row groups of one Parquet file. Its rows are numbered from 1 on."""
    metadata = _metadata(file)
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    ends = accumulate(sizes)
    return [
        RowGroup(file, number, end - rows + 1, rows)
        for number, (end, rows) in enumerate(zip(ends, sizes, strict=True))
    ]


def map_groups(
    work: Callable[[RowGroup], Result], groups: Sequence[RowGroup], num_proc: int | None, description: str
) -> Iterator[tuple[RowGroup, Result]]:
    """Each row group with what is made of it, in order and with a progress bar of rows.

    Args:
        work (`Callable`): What to do with a row group; see [`~processes.map_in_order`].
        groups (`Sequence[RowGroup]`): The row groups.
        num_proc (`int`, *optional*): Number of processes, by default one for each core. Few rows get fewer.
        description (`str`): Title of the progress bar.
    """
    num_rows = sum(group.rows for group in groups)
    processes = processes_for(min(len(groups), batches_of(num_rows)), num_proc)
    with tqdm(desc=description, total=num_rows, unit="row") as bar:
        for group, result in map_in_order(work, groups, processes):
            yield group, result
            bar.update(group.rows)


def stream_group(
    group: RowGroup, features: Features | None = None, columns: list[str] | None = None
) -> Iterator[pyarrow.Table]:
    """The rows of a row group in tables of at most [`STREAM_ROWS`]; see [`~files.stream_tables`] for the rest."""
    tables = stream_file(group.file, columns, group.number)
    yield from tables if features is None else without_nulls(tables, group.file, group.first)


def row_batches(
    group: RowGroup, features: Features | None = None, columns: list[str] | None = None
) -> Iterator[list[dict]]:
    """The rows of a row group, some hundred at a time; arguments as for [`stream_group`]."""
    for table in stream_group(group, features, columns):
        for part in slices_of(table):
            yield part.to_pylist()


def stream_file(path: Path, columns: list[str] | None = None, group: int | None = None) -> Iterator[pyarrow.Table]:
    """The rows of one Parquet file, or of one row group, in tables of at most [`STREAM_ROWS`]."""
    groups = None if group is None else [group]
    with naming_broken_parquet(path), pyarrow.parquet.ParquetFile(path, metadata=_metadata(path)) as file:
        for batch in file.iter_batches(STREAM_ROWS, row_groups=groups, columns=columns):
            yield pyarrow.Table.from_batches([batch])


def _metadata(file: Path) -> pyarrow.parquet.FileMetaData:
    """The footer of a Parquet file. It is kept: some kilobytes of each row group, and each is read by itself."""
    with naming_broken_parquet(file):
        status = os.stat(file)
        return _read_metadata(file, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _read_metadata(file: Path, *version: int) -> pyarrow.parquet.FileMetaData:
    return pyarrow.parquet.read_metadata(file)
