"""Datasets and reports on disk: Parquet folders and JSON files that are either whole or not there.

data/demo/harmful/b4_flips/data.parquet     the rows
data/demo/harmful/b4_flips/report.json      what the step did; written last, so Make may take it for the step's result
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset, Features, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


ROWS_FILE = "data.parquet"
REPORT_FILE = "report.json"


def replace_atomically(temporary: Path, path: Path) -> None:
    """Put a finished file in its place; a reader sees the old one or the new one, also after a power cut."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    replace_atomically(temporary, path)


def write_json(path: Path, value: object) -> None:
    """Write a report. `NaN` is refused: a report holds numbers or says `null`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a report.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); delete it and run its step again."
        ) from error


def to_dataset(rows: list[dict], features: Features) -> Dataset:
    """Rows as a dataset. `Dataset.from_list` forgets the columns when there are no rows."""
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def save_rows(rows: Dataset, folder: Path, report: dict) -> None:
    """Write a dataset folder: the rows first, the report last."""
    folder.mkdir(parents=True, exist_ok=True)
    save_parquet(rows, folder / ROWS_FILE)
    write_json(folder / REPORT_FILE, report)


def save_parquet(rows: Dataset, path: Path) -> None:
    """Write one Parquet file in one move."""
    temporary = path.with_name(f".{path.name}.tmp")
    with without_library_bars():
        rows.to_parquet(temporary)
    replace_atomically(temporary, path)


@contextmanager
def without_library_bars() -> Iterator[None]:
    """No bar of `datasets` for short work: one for every shard would bury the bar of the whole."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def load_parquet(path: Path) -> Dataset:
    """The rows of one Parquet file, read as they are: `Dataset.from_parquet` refuses files without rows."""
    return Dataset(pyarrow.parquet.read_table(path))


def load_rows(folder: Path, features: Features | None = None) -> Dataset:
    """The rows of a dataset folder.

    Args:
        folder (`Path`): Folder with a `data.parquet`.
        features ([`~datasets.Features`], *optional*): The row type it must have.

    Raises:
        FileNotFoundError: If there is no such dataset.
        ValueError: If it holds other columns.
    """
    path = folder / ROWS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"No dataset in {folder}: {ROWS_FILE} is missing. Run the step that makes it.")
    rows = load_parquet(path)
    if features is not None and rows.features != features:
        wrong = sorted(set(features) ^ set(rows.column_names)) or "column types"
        raise ValueError(f"{path}: not the expected rows (differs in {wrong}). Make it again with this version.")
    return rows
