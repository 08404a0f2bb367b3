"""A per-row table that is computed once in the background and cached on disk.

$HF_DATASETS_CACHE/audit/3f0c9a...-words.arrow      3f0c9a... is a hash of the paths of the Parquet files
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
    """The table is still being computed; try again later."""


class CachedTable:
    """A table computed from rows, in record batches that are memory-mapped from the cache file.

    A subclass defines its schema (`SCHEMA`), how to compute it (`_compute_batches`), and the description of the
    progress bar and of error messages (`DESCRIPTION`). A cache file of other rows is recomputed and replaced.

    Args:
        files (`list[Path]`): Parquet files; rows are numbered across all of them.
        cache_key (`str`, *optional*): Anything else that the table depends on, such as the tokenizer.
    """

    NAME: str
    DESCRIPTION: str
    VERSION = 1
    SCHEMA: pyarrow.Schema

    def __init__(self, files: list[Path], cache_key: str = "") -> None:
        self._files = files
        self._cache_key = cache_key
        paths = "\n".join(str(file.resolve()) for file in files)
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "audit"
        self._file = folder / f"{hashlib.sha256(paths.encode()).hexdigest()[:16]}-{self.NAME}.arrow"
        self._batches: list[pyarrow.RecordBatch] = []
        self._error: Exception | None = None
        self._loaded = threading.Event()
        rows = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
        self._bar = tqdm(desc=self.DESCRIPTION, total=rows, unit="row", delay=1)
        threading.Thread(target=self._load, daemon=True).start()

    def batches(self, seconds: float = 0.2) -> list[pyarrow.RecordBatch]:
        """Return the table, waiting for it up to a number of seconds.

        Raises:
            NotReady: If it is not computed by then.
            ValueError: If computing it failed.
        """
        if not self._loaded.wait(seconds):
            raise NotReady(f"{self.DESCRIPTION}: {self._bar.n:,} of {self._bar.total:,} rows so far.")
        if self._error is not None:
            raise ValueError(f"{self.DESCRIPTION} failed: {self._error}") from self._error
        return self._batches

    def _compute_batches(self) -> Iterator[pyarrow.RecordBatch]:
        """Read the rows and yield the table; `_bar` must be updated with the progress."""
        raise NotImplementedError

    def _load(self) -> None:
        """Map the cache file, computing it first if it is missing or of other rows."""
        try:
            # The content hashes in the key make a cache file of changed rows invalid.
            key = f"{self.VERSION} {self._cache_key} {' '.join(map(sha256, self._files))}".encode()
            if not self._file.is_file() or _reader(self._file).schema.metadata != {b"key": key}:
                self._write(self.SCHEMA.with_metadata({b"key": key}))
            reader = _reader(self._file)
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except Exception as error:  # raised again in the thread that calls `batches`
            self._error = error
        self._bar.close()
        self._loaded.set()

    def _write(self, schema: pyarrow.Schema) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(self._file.parent, self._file.name)
        with in_one_move(self._file) as temporary, pyarrow.ipc.new_file(temporary, schema) as write:
            for batch in self._compute_batches():
                write.write_batch(batch.replace_schema_metadata(schema.metadata))


def _reader(file: Path) -> pyarrow.ipc.RecordBatchFileReader:
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(file)))
