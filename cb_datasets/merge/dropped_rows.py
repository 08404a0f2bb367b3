"""The rows that merge dropped, one record each: `reports/left_out.parquet`.

{"id": "retain/refusals/3f0c...", "reason": "duplicate", "of": "retain/refusals/a91b..."}
{"id": "retain/chat/5c11...", "reason": "near_duplicate", "of": "retain/chat/e03f..."}
{"id": "harmful/b4_flips/77d0...", "reason": "over_quota", "of": null}
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Features, Value

from ..files import parquet_writer, stream_tables
from ..row_groups import stream_file
from .decide import DROPS


DROPPED_ROWS_FILE = "left_out.parquet"
FEATURES = Features({name: Value("string") for name in ("id", "reason", "of")})


def write_dropped_rows(folders: list[Path], reasons: np.ndarray, duplicate_of: np.ndarray, path: Path) -> None:
    """Write the decision of [`~merge.decide.decide`] with the ids of the rows.

    Args:
        folders (`list[Path]`): The set folders.
        reasons, duplicate_of (`np.ndarray`): The decision for each row of the folders, in this order.
        path (`Path`): The Parquet file.
    """
    names, is_original = pyarrow.array(DROPS), np.zeros(len(reasons), bool)
    is_original[duplicate_of[duplicate_of >= 0]] = True
    # Ids are read twice: first those of the originals, the only ones that are held in memory.
    originals = pyarrow.chunked_array(
        [ids.filter(is_original[rows]) for rows, ids in _ids(folders)], type=pyarrow.string()
    )
    position = np.cumsum(is_original) - 1  # of a row's id in `originals`
    with parquet_writer(path, FEATURES) as write:
        for rows, ids in _ids(folders):
            is_dropped, of = reasons[rows] > 0, duplicate_of[rows]
            columns = {
                "id": ids.filter(is_dropped),
                "reason": names.take(reasons[rows][is_dropped] - 1),
                "of": originals.take(pyarrow.array(position[of][is_dropped], mask=of[is_dropped] < 0)),
            }
            write(pyarrow.table(columns))


def _ids(folders: list[Path]) -> Iterator[tuple[slice, pyarrow.Array]]:
    """The ids in the folders, a batch at a time, each with the row numbers it covers."""
    start = 0
    for folder in folders:
        for table in stream_tables(folder, columns=["id"]):
            yield slice(start, start := start + len(table)), table["id"].combine_chunks()


def drop_reasons(id: str, path: Path) -> list[str]:
    """The reasons, in words, why merge dropped a row; an id that occurs in several sets may have several."""
    tables = [table.filter(pyarrow.compute.equal(table["id"], id)).to_pylist() for table in stream_file(path)]
    return [f"{row['reason']}: {DROPS[row['reason']].format(of=row['of'])}" for rows in tables for row in rows]
