"""The rows that merge left out, one line each: `reports/left_out.parquet`.

{"id": "retain/refusals/3f0c...", "reason": "duplicate", "of": "retain/refusals/a91b..."}
{"id": "harmful/b4_flips/77d0...", "reason": "over_quota", "of": null}
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Features, Value

from ..files import parquet_writer, stream_file, stream_tables
from .merge_choice import DROPS


LEFT_OUT_FILE = "left_out.parquet"
FEATURES = Features({name: Value("string") for name in ("id", "reason", "of")})


def write_left_out(folders: list[Path], reasons: np.ndarray, repeats: np.ndarray, path: Path) -> None:
    """Write what [`~sets.merge_choice.decide`] decided; the ids are read twice, and those that are repeated held.

    Args:
        folders (`list[Path]`): The set folders.
        reasons, repeats (`np.ndarray`): Of each row in them, in this order.
        path (`Path`): The Parquet file.
    """
    names, repeated = list(DROPS), np.zeros(len(reasons), bool)
    repeated[repeats[repeats >= 0]] = True
    ids_of: dict[int, str] = {}
    for numbers, ids in _numbered_ids(folders):
        ids_of.update((number, id) for number, id in zip(numbers, ids, strict=True) if repeated[number])
    with parquet_writer(path, FEATURES) as write:
        for numbers, ids in _numbered_ids(folders):
            rows = [
                {"id": id, "reason": names[reasons[number] - 1], "of": ids_of.get(int(repeats[number]))}
                for number, id in zip(numbers, ids, strict=True)
                if reasons[number]
            ]
            write(pyarrow.Table.from_pylist(rows, schema=FEATURES.arrow_schema))


def _numbered_ids(folders: list[Path]) -> Iterator[tuple[range, list[str]]]:
    start = 0
    for folder in folders:
        for table in stream_tables(folder, columns=["id"]):
            yield range(start, start := start + len(table)), table["id"].to_pylist()


def why_left_out(id: str, path: Path) -> list[str]:
    """Why merge left a row out, in words; an id that stands in several sets may have several reasons."""
    found = [table.filter(pyarrow.compute.equal(table["id"], id)).to_pylist() for table in stream_file(path)]
    return [f"{row['reason']}: {DROPS[row['reason']].format(of=row['of'])}" for rows in found for row in rows]
