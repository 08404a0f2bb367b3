"""A person's verdicts on rows: `audit/marks.parquet`, one record per marked row.

{"id": "harmful/b4_flips/3f0c...", "verdict": "bad", "note": "not an attack", "timestamp": "2026-01-01T..."}
"""

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Features, Value

from ..file_locks import locked
from ..files import parquet_writer, remove_orphans
from ..sample import timestamp


MARK_VERDICTS = ("good", "bad", "unsure")
MARK_FEATURES = Features({name: Value("string") for name in ("id", "verdict", "note", "timestamp")})


class Marks:
    """Marks by row id, stored on disk, which several processes may make at once.

    Args:
        path (`Path`): The Parquet file; it is created with the first mark.

    Raises:
        ValueError: If there is such a file that does not hold marks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_id: dict[str, dict] = {}
        self._version: tuple | None = None
        self._read()

    def get(self, id: str) -> dict | None:
        """The mark of a row, whichever process made it."""
        self._read()
        return self._by_id.get(id)

    def put(self, id: str, verdict: str | None, note: str) -> None:
        """Mark a row, or remove its mark with `None`, and rewrite the file.

        Unpaired surrogates in a note, which no file can hold, become U+FFFD.

        Raises:
            ValueError: If the verdict is unknown.
            OSError: If the file cannot be written; the marks are then what they were.
        """
        if verdict not in (None, *MARK_VERDICTS):
            raise ValueError(f"Unknown verdict {verdict!r}; known: {', '.join(MARK_VERDICTS)}.")
        note = note.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with locked(self.path):
            remove_orphans(Path(os.path.realpath(self.path)).parent, self.path.name)
            self._read()
            marks = {other: mark for other, mark in self._by_id.items() if other != id}
            if verdict is not None:
                marks[id] = {"id": id, "verdict": verdict, "note": note, "timestamp": timestamp()}
            with parquet_writer(self.path, MARK_FEATURES) as write:
                write(pyarrow.Table.from_pylist(list(marks.values()), schema=MARK_FEATURES.arrow_schema))
            # Not before the file is in place: what a full disk refuses is no mark.
            self._read()

    def _read(self) -> None:
        """Read the file, if it is another one than before."""
        version = _version(self.path)
        if version != self._version:
            self._by_id = {mark["id"]: mark for mark in _marks_in(self.path)} if version else {}
            self._version = version


def marked_bad(path: Path) -> set[str]:
    """Ids of the rows that a person marked as bad.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it does not hold marks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: mark rows with `cb-datasets view` first.")
    return {mark["id"] for mark in _marks_in(path) if mark["verdict"] == "bad"}


def _version(path: Path) -> tuple | None:
    """What changes whenever a file is replaced; `None` if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _marks_in(path: Path) -> list[dict]:
    try:
        with open(path, "rb") as file:  # a path of a folder is not read as all files in it
            table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path} cannot be read ({error}): move it away, or name another file of marks.") from error
    if any(feature != Features.from_arrow_schema(table.schema).get(name) for name, feature in MARK_FEATURES.items()):
        raise ValueError(f"{path} holds no marks (columns {', '.join(table.column_names)}): name another file.")
    return table.to_pylist()
