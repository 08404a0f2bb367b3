"""Row groups of Parquet files: what one process reads at a time, a few thousand rows in memory."""

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from datasets import Features

from .disk_faults import naming_broken_parquet
from .null_parts import without_nulls
from .processes import slices_of


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
