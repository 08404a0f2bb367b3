"""What takes a while to work out of rows: made once, in the background, and kept in a file for the next time.

$HF_DATASETS_CACHE/audit/3f0c9a...-words.arrow      of the files whose names hash to 3f0c9a...
"""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from ..files import in_one_move, remove_orphans, sha256


class NotReady(ValueError):
    """It is being made; to be had in a while."""


class CachedTable:
    """A table of what rows are, in record batches that are mapped into memory from a file.

    A subclass says what is in it (`SCHEMA`), how to make it (`_make`), and what the user reads meanwhile (`WHAT`). A
    file that was made of other rows is made anew, in the old one's place.

    Args:
        files (`list[Path]`): Parquet files; their rows are numbered through.
        of (`str`, *optional*): What else the table depends on.
    """

    NAME: str
    WHAT: str
    VERSION = 1
    SCHEMA: pyarrow.Schema

    def __init__(self, files: list[Path], of: str = "") -> None:
        self._files = files
        self._of = of
        named = "\n".join(str(file.resolve()) for file in files)
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "audit"
        self._file = folder / f"{hashlib.sha256(named.encode()).hexdigest()[:16]}-{self.NAME}.arrow"
        self._batches: list[pyarrow.RecordBatch] = []
        self._error: Exception | None = None
        self._opened = threading.Event()
        rows = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
        self._bar = tqdm(desc=self.WHAT, total=rows, unit="row", delay=1)
        threading.Thread(target=self._open, daemon=True).start()

    def batches(self, seconds: float = 0.2) -> list[pyarrow.RecordBatch]:
        """The table.

        Raises:
            NotReady: If it is not there in so many seconds.
            ValueError: If making it failed.
        """
        if not self._opened.wait(seconds):
            raise NotReady(f"{self.WHAT}: {self._bar.n:,} of {self._bar.total:,} rows so far.")
        if self._error is not None:
            raise ValueError(f"{self.WHAT} failed: {self._error}") from self._error
        return self._batches

    def _make(self) -> Iterator[pyarrow.RecordBatch]:
        """Read the rows and yield the table; `_bar` tells how far it is."""
        raise NotImplementedError

    def _open(self) -> None:
        try:
            key = f"{self.VERSION} {self._of} {' '.join(map(sha256, self._files))}".encode()
            if not self._file.is_file() or _reader(self._file).schema.metadata != {b"key": key}:
                self._write(self.SCHEMA.with_metadata({b"key": key}))
            reader = _reader(self._file)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except Exception as error:  # told to whoever asks
            self._error = error
        self._bar.close()
        self._opened.set()

    def _write(self, schema: pyarrow.Schema) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(self._file.parent, self._file.name)
        with in_one_move(self._file) as temporary, pyarrow.ipc.new_file(temporary, schema) as write:
            for batch in self._make():
                write.write_batch(batch.replace_schema_metadata(schema.metadata))


def _reader(file: Path) -> pyarrow.ipc.RecordBatchFileReader:
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
