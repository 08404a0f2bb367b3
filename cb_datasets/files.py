"""Datasets and reports on disk: Parquet folders and JSON files, each either complete or absent.

data/demo/traces/xstest/eval/data.parquet          a source's rows of one split; one without rows has no file
data/demo/traces/xstest/report.json                its report, on both
data/demo/stage2/train/data.parquet                the rows
data/demo/stage2/train/report.json                 the step's report; written last, so Make takes it for the result
data/demo/harmful/lookalike_flips/train.parquet    the rows of a set, which has both splits: one file for each, so that
data/demo/harmful/lookalike_flips/eval.parquet     `load_dataset` of the folder takes them for splits, too
data/demo/prompts/tool_flip/eval.parquet           evaluation prompts, which are of that split
"""

import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from datasets import (
    Dataset,
    Features,
    are_progress_bars_disabled,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
)
from datasets.fingerprint import generate_random_fingerprint

from builders.json_records import parse_object

from .disk_faults import naming_broken_parquet, rows_in
from .file_locks import locked
from .null_parts import without_nulls
from .row_groups import STREAM_ROWS, RowGroup, row_groups_of, stream_file


ROWS_FILE = "data.parquet"
SPLIT_FILES = {"train": "train.parquet", "eval": "eval.parquet"}
REPORT_FILE = "report.json"

# The temporary name of a file or folder, see `in_one_move` and `scratch_folder`.
_TEMPORARY = re.compile(r"[.-](?P<pid>\d+)@(?P<host>[^/@]+)\.tmp$")
# Files are written in seconds. The process of another host cannot be looked up; after this long its file is an orphan.
_ABANDONED_AFTER_SECONDS = 3600

# Folders that this process has cleaned of what others left in them.
_cleaned: set[str] = set()
_cleaning = threading.Lock()


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` at the end, and is removed if anything fails before.

    A reader sees the old file or the new one, also after a power cut. The temporary name contains the process id, so
    that two processes may write the same file: the last to finish wins. Before a process writes its first file to a
    folder, it removes what killed ones left there. If `path` is a link, it stays, and the file it names is replaced.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    _clean(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder in another one, which is removed at the end, or by the next process if this one is killed."""
    _clean(folder)
    scratch = folder / f".{name}-{os.getpid()}@{socket.gethostname()}.tmp"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty folder whose content moves to `folder` at the end, weights last, unless anything fails before.

    Weights of the same name are removed first: a kill in between leaves none, not old ones beside a new config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, "unfinished") as scratch:
        yield scratch
        sync(scratch)
        weights = [path for path in scratch.iterdir() if path.suffix == ".safetensors"]
        for path in weights:
            (folder / path.name).unlink(missing_ok=True)
        for path in sorted(scratch.iterdir(), key=lambda path: (path in weights, path.name)):
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            path.replace(folder / path.name)


def sync(folder: Path) -> list[Path]:
    """Have the disk store all files in a folder, which are returned: a power cut leaves none of them cut off."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return files


def _clean(folder: Path) -> None:
    """Remove what killed processes left in a folder, once in each process: it has no unfinished files there yet."""
    with _cleaning:
        if os.path.abspath(folder) not in _cleaned:
            _cleaned.add(os.path.abspath(folder))
            remove_orphans(folder)


def remove_orphans(folder: Path, name: str = "*") -> None:
    """Remove unfinished files and folders of dead processes in a folder; `name` is a glob pattern."""
    for path in folder.glob(f".{name}[.-]*.tmp"):
        writer = _TEMPORARY.search(path.name)
        if writer is not None and not _is_being_written(path, int(writer["pid"]), writer["host"]):
            shutil.rmtree(path, ignore_errors=True)
            # What cannot be removed, because somebody else wrote it, does no harm.
            with suppress(OSError):
                path.unlink()


def _is_being_written(path: Path, pid: int, host: str) -> bool:
    if host == socket.gethostname():
        return pid != os.getpid() and _is_alive(pid)
    try:
        return time.time() - path.stat().st_mtime < _ABANDONED_AFTER_SECONDS
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_move(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a report atomically. `NaN` is refused: a report has numbers or `null`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a report.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a JSON object.
    """
    try:
        return parse_object(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); delete it and run its step again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON object ({error}); delete it and run its step again.") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_dataset(rows: list[dict], features: Features) -> Dataset:
    """Rows as a dataset. `Dataset.from_list` forgets the columns when there are no rows."""
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def save_rows(rows: Dataset, folder: Path, report: dict, file: str = ROWS_FILE) -> None:
    """Write a dataset folder of one file: the rows first, the report last."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / REPORT_FILE):
        _check_own_rows(folder, file)
        save_parquet(rows, folder / file)
        _remove_other_rows(folder, {file})
        write_json(folder / REPORT_FILE, report)


def _check_own_rows(folder: Path, written: str) -> None:
    """Refuse a folder with rows that no step of ours reported on, and that [`_remove_other_rows`] would remove.

    Rows under the names that are written may be those of a killed run, which has no report.
    """
    others = (ROWS_FILE,) if written in SPLIT_FILES.values() else tuple(SPLIT_FILES.values())
    if not (folder / REPORT_FILE).is_file() and (found := [name for name in others if (folder / name).exists()]):
        raise FileExistsError(
            f"{folder} holds {found[0]} and no {REPORT_FILE}, so it was not written here: name another folder."
        )


def _remove_other_rows(folder: Path, written: Collection[str]) -> None:
    """Remove the files of rows that an earlier run or an older version left in a folder under other names."""
    for name in {ROWS_FILE, *SPLIT_FILES.values()} - set(written):
        (folder / name).unlink(missing_ok=True)


def save_parquet(rows: Dataset, path: Path) -> None:
    """Write one Parquet file atomically, in row groups that processes can share."""
    with in_one_move(path) as temporary, without_library_bars():
        rows.to_parquet(temporary, batch_size=STREAM_ROWS)


@contextmanager
def without_library_bars() -> Iterator[None]:
    """Disable the progress bars of `datasets`: one per shard would bury the bar of the whole."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def load_parquet(path: Path) -> Dataset:
    """The rows of one Parquet file. (`Dataset.from_parquet` refuses files without rows.)"""
    with naming_broken_parquet(path):
        # A fingerprint of the content takes longer than reading it; nothing of rows in memory is cached by it.
        return Dataset(pyarrow.parquet.read_table(path), fingerprint=generate_random_fingerprint())


def load_rows(folder: Path, features: Features | None = None) -> Dataset:
    """The rows of a dataset folder.

    Args:
        folder (`Path`): Folder with a `data.parquet`, or with a file for each split.
        features ([`~datasets.Features`], *optional*): The row type it must have.

    Raises:
        FileNotFoundError: If there is no such dataset.
        ValueError: If it holds other columns.
    """
    files = _rows_files(folder)
    _check_features(files, features)
    parts = [load_parquet(file) for file in files]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def stream_tables(
    folder: Path, features: Features | None = None, columns: list[str] | None = None
) -> Iterator[pyarrow.Table]:
    """The rows of a dataset folder in tables of [`STREAM_ROWS`], for data that do not fit into memory.

    Args:
        folder (`Path`): Folder with a `data.parquet`, or with a file for each split.
        features ([`~datasets.Features`], *optional*): The row type it must have.
        columns (`list[str]`, *optional*): The columns to read; all if left out.

    Raises:
        FileNotFoundError, ValueError: As for [`load_rows`]; with `features`, also if a list or struct is null.
    """
    files = _rows_files(folder)
    _check_features(files, features)
    for file in files:
        tables = stream_file(file, columns)
        yield from tables if features is None else without_nulls(tables, file, 1)


def row_groups(folder: Path, features: Features | None = None) -> list[RowGroup]:
    """The row groups of a dataset folder; arguments and errors as for [`stream_tables`]."""
    files = _rows_files(folder)
    _check_features(files, features)
    return [group for file in files for group in row_groups_of(file)]


def stream_rows(folders: Iterable[Path], features: Features | None = None) -> Iterator[dict]:
    """The rows of dataset folders in order, a few in memory at a time."""
    for folder in folders:
        for table in stream_tables(folder, features):
            yield from table.to_pylist()


def count_rows(folders: Iterable[Path]) -> int:
    """Number of rows in dataset folders, from the files' metadata."""
    return sum(rows_in(file) for folder in folders for file in _rows_files(folder))


def dataset_name(path: Path) -> str:
    """Name of a dataset folder, or of a `.jsonl` file, in reports: the last two parts of its path, `stage2/train`."""
    path = Path(os.path.abspath(path))  # named alike from its parent; not resolved, since a link has its own name
    return path.relative_to(path.parent.parent).as_posix().removesuffix(".jsonl")


def hashes_of(paths: Iterable[Path]) -> dict[str, str]:
    """Hashes of the rows of dataset folders, or of files, by their names: `{"stage2/train": "9f86..."}`.

    Reports store hashes, so that a report about other rows is detected.
    """
    return {dataset_name(path): _hash_of([path] if path.is_file() else _rows_files(path)) for path in paths}


def _hash_of(files: list[Path]) -> str:
    hashes = [sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


@contextmanager
def parquet_writer(path: Path, features: Features) -> Iterator[Callable[[pyarrow.Table], None]]:
    """A function that appends tables to a Parquet file, which replaces `path` when all have been written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    with in_one_move(path) as temporary:
        # As `datasets` writes them: chunked by content, so that a new release uploads only what changed.
        writer = pyarrow.parquet.ParquetWriter(
            temporary, schema, use_content_defined_chunking=True, write_page_index=True
        )
        with writer:
            yield lambda table: writer.write_table(table.cast(schema))


@contextmanager
def set_writer(folder: Path, features: Features) -> Iterator[Callable[[pyarrow.Table], None]]:
    """A function that appends samples to a set. Each split that has rows gets a file, when all have been written."""
    writers: dict[str, Callable[[pyarrow.Table], None]] = {}
    _check_own_rows(folder, SPLIT_FILES["train"])
    with ExitStack() as stack:

        def write(table: pyarrow.Table) -> None:
            for split, name in SPLIT_FILES.items():
                rows = table.filter(pyarrow.compute.equal(table["split"], split))
                if len(rows) and split not in writers:
                    writers[split] = stack.enter_context(parquet_writer(folder / name, features))
                if len(rows):
                    writers[split](rows)

        yield write
    _remove_other_rows(folder, {SPLIT_FILES[split] for split in writers})


def save_set(rows: Dataset, folder: Path, report: dict) -> None:
    """Write the folder of a set: a file for each split, the report last.

    Of two processes that do so, one waits for the other, so that the rows and the report are always of the same.
    """
    with locked(folder / REPORT_FILE):
        with set_writer(folder, rows.features) as write:
            for batch in rows.with_format("arrow").iter(STREAM_ROWS):
                write(batch)
        write_json(folder / REPORT_FILE, report)


def holds_rows(folder: Path) -> bool:
    """Whether a folder is a dataset folder."""
    return any((folder / name).is_file() for name in (ROWS_FILE, *SPLIT_FILES.values()))


def dataset_folders(parent: Path, pattern: str = "*") -> list[Path]:
    """The dataset folders in a folder whose paths match a pattern."""
    return [folder for folder in sorted(parent.glob(pattern)) if holds_rows(folder)]


def _rows_files(folder: Path) -> list[Path]:
    for names in ((ROWS_FILE,), SPLIT_FILES.values()):
        if files := [folder / name for name in names if (folder / name).exists()]:
            if any(file.is_dir() for file in files):
                raise FileNotFoundError(f"{folder}: {files[0].name} is a folder. Run the step that makes it.")
            return files
    raise FileNotFoundError(
        f"No dataset in {folder}: {ROWS_FILE} is missing, and so are {' and '.join(SPLIT_FILES.values())}. Run the "
        "step that makes it."
    )


def _check_features(files: list[Path], features: Features | None) -> None:
    for file in files if features is not None else ():
        with naming_broken_parquet(file):
            stored = Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
        if stored != features:
            wrong = sorted(set(features or ()) ^ set(stored)) or "column types"
            raise ValueError(f"{file}: not the expected rows (differs in {wrong}). Make it again with this version.")
