"""Writes the rows that merge keeps, shuffled, a part at a time: neither split has to fit into memory.

1. scatter    every kept row goes to the file of its part, a range of the hashes that give the order
2. gather     each part is read back, sorted by those hashes, and appended to its split's Parquet file
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow
from tqdm import tqdm

from ..counts import quantiles
from ..files import STREAM_ROWS, parquet_writer, stream_tables
from ..sample import SAMPLE_FEATURES
from .index import SPLITS, MergeIndex


# Rows that are shuffled in memory at a time: on disk they are told apart by the first bits of their hash.
PART_ROWS = 20_000


def write_splits(
    folders: list[Path],
    index: MergeIndex,
    reasons: np.ndarray,
    paths: dict[str, Path],
    length: Callable[[dict], int] | None,
) -> dict[str, dict]:
    """Write the kept rows of each split, in the order of a hash of their ids; what was written, counted."""
    kept = reasons == 0
    counts = {split: _SplitCounts() for split in paths}
    parts = max(1, -(-int(kept.sum()) // PART_ROWS))
    # Parts are ranges of `order`: its first 32 bits, scaled.
    part = ((index.order >> 32) * parts >> 32).astype(np.int64) * len(SPLITS) + index.split
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=next(iter(paths.values())).parent) as scratch:
        files = [Path(scratch) / f"{number}.arrow" for number in range(parts * len(SPLITS))]
        _scatter(folders, np.where(kept, part, -1), index.order, files)
        for number, split in enumerate(SPLITS):
            with (
                parquet_writer(paths[split], SAMPLE_FEATURES) as write,
                tqdm(desc=f"Writing {split}", total=int((kept & (index.split == number)).sum()), unit="row") as bar,
            ):
                for file in files[number :: len(SPLITS)]:
                    for table in _shuffled(file):
                        bar.update(len(table))
                        table = table.set_column(table.column_names.index("split"), "split", [[split] * len(table)])
                        write(table)
                        counts[split].add(table, length)
    return {split: counts[split].report(index, kept & (index.split == number)) for number, split in enumerate(SPLITS)}


def _scatter(folders: list[Path], part: np.ndarray, order: np.ndarray, files: list[Path]) -> None:
    """Put each row into the file of its part; -1 is none. A part fits into memory, so it can be sorted there."""
    schema = SAMPLE_FEATURES.arrow_schema.append(pyarrow.field("order", pyarrow.uint64()))
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    start = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(pyarrow.ipc.new_stream(file, schema, options=options)) for file in files]
        for folder in folders:
            for table in stream_tables(folder, SAMPLE_FEATURES):
                of_table = slice(start, start := start + len(table))
                table = table.append_column("order", [order[of_table]])
                for number in np.unique(part[of_table]):
                    if number >= 0:
                        writers[number].write_table(table.filter(part[of_table] == number).cast(schema))


def _shuffled(file: Path) -> Iterator[pyarrow.Table]:
    """The rows of a part in order, some at a time."""
    table = pyarrow.ipc.open_stream(file).read_all()
    table = table.take(np.argsort(table["order"].to_numpy(), kind="stable")).drop_columns("order")
    for start in range(0, len(table), STREAM_ROWS):
        yield table.slice(start, STREAM_ROWS)


class _SplitCounts:
    """Counts of what is written to a split."""

    def __init__(self) -> None:
        self.rows = 0
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("set", "priority_class", "source", "completion", "category")
        }
        self.lengths: dict[str, list[int]] = {}

    def add(self, table: pyarrow.Table, length: Callable[[dict], int] | None) -> None:
        provenance = table["provenance"].combine_chunks()
        self.rows += len(table)
        for name, column in (
            ("set", table["set"]),
            ("priority_class", table["priority_class"]),
            ("source", provenance.field("source_dataset")),
            ("completion", provenance.field("completion_source")),
            ("category", table["category"].fill_null("none")),
        ):
            self.counts[name].update(column.to_pylist())
        if length is not None:
            for row in table.to_pylist():
                self.lengths.setdefault(row["set"], []).append(length(row))

    def report(self, index: MergeIndex, rows: np.ndarray) -> dict:
        n_ds, n_dr = self.counts["set"]["circuit_breaker"], self.counts["set"]["retain"]
        return {
            "rows": self.rows,
            "circuit_breaker": n_ds,
            "retain": n_dr,
            "dr_ratio": round(n_dr / n_ds, 3) if n_ds else None,
            "classes": dict(sorted(self.counts["priority_class"].items())),
            "sources": dict(sorted(self.counts["source"].items())),
            "completions": dict(sorted(self.counts["completion"].items())),
            "categories": dict(sorted(self.counts["category"].items())),
            "groups": len(np.unique(index.group[rows])),
            "pairs": len(np.unique(index.pair[rows])),
            "tokens": {name: quantiles(lengths) for name, lengths in sorted(self.lengths.items())} or None,
        }
