"""A person's verdicts on rows: `audit/marks.parquet`, one record per marked row.

{"id": "harmful/b4_flips/3f0c...", "verdict": "bad", "note": "not an attack", "timestamp": "2026-01-01T..."}
"""

from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Features, Value

from ..files import parquet_writer
from ..sample import timestamp


MARK_VERDICTS = ("good", "bad", "unsure")
MARK_FEATURES = Features({name: Value("string") for name in ("id", "verdict", "note", "timestamp")})


class Marks:
    """Marks by row id, stored on disk.

    Args:
        path (`Path`): The Parquet file; it is created with the first mark.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = pyarrow.parquet.read_table(path).to_pylist() if path.is_file() else []
        self._by_id: dict[str, dict] = {row["id"]: row for row in rows}

    def get(self, id: str) -> dict | None:
        return self._by_id.get(id)

    def put(self, id: str, verdict: str | None, note: str) -> None:
        """Mark a row, or remove its mark with `None`, and rewrite the file.

        Raises:
            ValueError: If the verdict is unknown.
        """
        if verdict is None:
            self._by_id.pop(id, None)
        elif verdict in MARK_VERDICTS:
            self._by_id[id] = {"id": id, "verdict": verdict, "note": note, "timestamp": timestamp()}
        else:
            raise ValueError(f"Unknown verdict {verdict!r}; known: {', '.join(MARK_VERDICTS)}.")
        with parquet_writer(self.path, MARK_FEATURES) as write:
            write(pyarrow.Table.from_pylist(list(self._by_id.values()), schema=MARK_FEATURES.arrow_schema))


def marked_bad(path: Path) -> set[str]:
    """Ids of the rows that a person marked as bad.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: mark rows with `cb-datasets view` first.")
    return {row["id"] for row in pyarrow.parquet.read_table(path).to_pylist() if row["verdict"] == "bad"}
