"""The rows that merge left out, one line each: `reports/left_out.parquet`.

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

from ..files import parquet_writer, stream_file, stream_tables
from .decide import DROPS


DROPPED_ROWS_FILE = "left_out.parquet"
FEATURES = Features({name: Value("string") for name in ("id", "reason", "of")})


def write_dropped_rows(folders: list[Path], reasons: np.ndarray, repeats: np.ndarray, path: Path) -> None:
    """Write what [`~sets.merge_choice.decide`] decided; the ids are read twice, and those that are repeated held.

    Args:
        folders (`list[Path]`): The set folders.
        reasons, repeats (`np.ndarray`): Of each row in them, in this order.
        path (`Path`): The Parquet file.
    """
    names, is_repeated = pyarrow.array(DROPS), np.zeros(len(reasons), bool)
    is_repeated[repeats[repeats >= 0]] = True
    repeated = pyarrow.chunked_array(
        [ids.filter(is_repeated[rows]) for rows, ids in _ids(folders)], type=pyarrow.string()
    )
    place = np.cumsum(is_repeated) - 1  # of a row's id in `repeated`
    with parquet_writer(path, FEATURES) as write:
        for rows, ids in _ids(folders):
            is_out, of = reasons[rows] > 0, repeats[rows]
            columns = {
                "id": ids.filter(is_out),
                "reason": names.take(reasons[rows][is_out] - 1),
                "of": repeated.take(pyarrow.array(place[of][is_out], mask=of[is_out] < 0)),
            }
            write(pyarrow.table(columns))


def _ids(folders: list[Path]) -> Iterator[tuple[slice, pyarrow.Array]]:
    """The ids in the folders, some at a time, and which rows they are of."""
    start = 0
    for folder in folders:
        for table in stream_tables(folder, columns=["id"]):
            yield slice(start, start := start + len(table)), table["id"].combine_chunks()


def drop_reasons(id: str, path: Path) -> list[str]:
    """Why merge left a row out, in words; an id that stands in several sets may have several reasons."""
    found = [table.filter(pyarrow.compute.equal(table["id"], id)).to_pylist() for table in stream_file(path)]
    return [f"{row['reason']}: {DROPS[row['reason']].format(of=row['of'])}" for rows in found for row in rows]
