"""Writes the kept rows, shuffled, one partition at a time, so that neither split has to fit into memory.

1. scatter    each kept row is appended to the file of its partition, a range of the hashes that define the order
2. gather     each partition is read back, sorted by those hashes, and appended to its split's Parquet file
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow
from tqdm import tqdm

from ..counts import quantiles
from ..files import parquet_writer, scratch_folder, stream_tables
from ..processes import map_rows, slices_of
from ..row_groups import STREAM_ROWS
from ..sample import SAMPLE_FEATURES
from .index import SPLITS, MergeIndex


# Rows that are sorted in memory at a time.
PARTITION_ROWS = 20_000


def write_splits(
    folders: list[Path],
    index: MergeIndex,
    reasons: np.ndarray,
    paths: dict[str, Path],
    length: Callable[[dict], int] | None,
    processes: int = 1,
) -> dict[str, dict]:
    """Write the kept rows of each split in the order of a hash of their ids.

    Args:
        folders (`list[Path]`): The set folders.
        index ([`MergeIndex`]): The columns of all rows.
        reasons (`np.ndarray`): 0 for a kept row, see [`~merge.decide.decide`].
        paths (`dict[str, Path]`): The Parquet file of each split.
        length (`Callable[[dict], int]`, *optional*): Number of tokens of a row.
        processes (`int`, *optional*, defaults to `1`): Number of processes that measure lengths.

    Returns:
        `dict[str, dict]`: Counts of the written rows, by split.
    """
    kept = reasons == 0
    counts = {split: _SplitCounts() for split in paths}
    num_ranges = max(1, -(-int(kept.sum()) // PARTITION_ROWS))
    # A partition is a range of `order` and a split. The range is the first 32 bits of `order`, scaled: hashes are
    # uniform, so partitions are about equally large.
    partition = ((index.order >> 32) * num_ranges >> 32).astype(np.int64) * len(SPLITS) + index.split
    with scratch_folder(next(iter(paths.values())).parent, "merge") as scratch:
        files = [scratch / f"{number}.arrow" for number in range(num_ranges * len(SPLITS))]
        _scatter(folders, np.where(kept, partition, -1), index.order, files)
        for number, split in enumerate(SPLITS):
            with (
                parquet_writer(paths[split], SAMPLE_FEATURES) as write,
                tqdm(desc=f"Writing {split}", total=int((kept & (index.split == number)).sum()), unit="row") as bar,
            ):
                # Ranges in ascending order, each sorted, make the whole split sorted.
                tables = (table for file in files[number :: len(SPLITS)] for table in _sorted_tables(file))
                _write_split(tables, split, write, bar, counts[split], length, processes)
    return {
        split: counts[split].split_report(index, kept & (index.split == number)) for number, split in enumerate(SPLITS)
    }


def _scatter(folders: list[Path], partition: np.ndarray, order: np.ndarray, files: list[Path]) -> None:
    """Append each row to the file of its partition; -1 is none."""
    schema = SAMPLE_FEATURES.arrow_schema.append(pyarrow.field("order", pyarrow.uint64()))
    options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
    start = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(pyarrow.ipc.new_stream(file, schema, options=options)) for file in files]
        for folder in folders:
            for table in stream_tables(folder, SAMPLE_FEATURES):
                rows = slice(start, start := start + len(table))
                table = table.append_column("order", [order[rows]])
                for number in np.unique(partition[rows]):
                    if number >= 0:
                        writers[number].write_table(table.filter(partition[rows] == number).cast(schema))


def _sorted_tables(file: Path) -> Iterator[pyarrow.Table]:
    """The rows of a partition in order, [`STREAM_ROWS`] at a time."""
    table = pyarrow.ipc.open_stream(file).read_all()
    table = table.take(np.argsort(table["order"].to_numpy(), kind="stable")).drop_columns("order")
    for start in range(0, len(table), STREAM_ROWS):
        yield table.slice(start, STREAM_ROWS)


def _write_split(
    tables: Iterable[pyarrow.Table],
    split: str,
    write: Callable[[pyarrow.Table], None],
    bar: tqdm,
    counts: "_SplitCounts",
    length: Callable[[dict], int] | None,
    processes: int,
) -> None:
    """Write and count the rows of a split; their lengths are measured meanwhile, if there is a function for that."""

    def written() -> Iterator[dict]:
        for table in tables:
            table = table.set_column(table.column_names.index("split"), "split", [[split] * len(table)])
            write(table)
            counts.add_table(table)
            bar.update(len(table))
            if length is not None:
                for part in slices_of(table):
                    yield from part.to_pylist()

    def length_of(row: dict) -> int:
        return length(row) if length is not None else 0

    for row, tokens in map_rows(length_of, written(), processes):
        counts.lengths.setdefault(row["set"], []).append(tokens)


class _SplitCounts:
    """Counts of the rows that are written to a split."""

    def __init__(self) -> None:
        self.rows = 0
        self.counters: dict[str, Counter[str]] = {
            name: Counter() for name in ("set", "priority_class", "source", "completion", "category")
        }
        self.lengths: dict[str, list[int]] = {}

    def add_table(self, table: pyarrow.Table) -> None:
        provenance = table["provenance"].combine_chunks()
        self.rows += len(table)
        for name, column in (
            ("set", table["set"]),
            ("priority_class", table["priority_class"]),
            ("source", provenance.field("source_dataset")),
            ("completion", provenance.field("completion_source")),
            ("category", table["category"].fill_null("none")),
        ):
            self.counters[name].update(column.to_pylist())

    def split_report(self, index: MergeIndex, rows: np.ndarray) -> dict:
        """The report of the split; `rows` is the mask of its rows in the index."""
        n_ds, n_dr = self.counters["set"]["circuit_breaker"], self.counters["set"]["retain"]
        return {
            "rows": self.rows,
            "circuit_breaker": n_ds,
            "retain": n_dr,
            "dr_ratio": round(n_dr / n_ds, 3) if n_ds else None,
            "classes": dict(sorted(self.counters["priority_class"].items())),
            "sources": dict(sorted(self.counters["source"].items())),
            "completions": dict(sorted(self.counters["completion"].items())),
            "categories": dict(sorted(self.counters["category"].items())),
            "groups": len(np.unique(index.group[rows])),
            "pairs": len(np.unique(index.pair[rows])),
            "tokens": {name: quantiles(lengths) for name, lengths in sorted(self.lengths.items())} or None,
        }
