"""Random access to the rows of many Parquet files: the filterable columns are in memory, the rows stay on disk.

data/demo/stage2/train/data.parquet              config stage2,     split train
data/demo/prompts/tool_flip/eval.parquet         config prompts,    split tool_flip
data/demo/quarantine/validate/data.parquet       config quarantine, split validate
harmful/lookalike_flips/train.parquet            config lookalike_flips, split train
release/harmful/train-00000-of-00001.parquet     config harmful,    split train
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet

from ..disk_faults import naming_broken_parquet
from ..files import ROWS_FILE, SPLIT_FILES
from ..publish.released_rows import stored_row
from .search import Search


# Facets, the columns that rows are filtered by, and where they are read from: a column of the file, or its path
# (`None`). A column that a file lacks is null.
FACETS = {
    "config": None,
    "split": None,
    "source": "provenance.source_dataset",
    "class": "priority_class",
    "task": "task",
    "category": "category",
    "outcome": "outcome",
    "completion": "provenance.completion_source",
    "reason": "reasons",
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
# Files that are read from a data folder, from a release, and from any other folder.
_DATA = ("stage2/*/data.parquet", "prompts/*/*.parquet", "quarantine/*/data.parquet")
_RELEASE = ("harmful/*.parquet", "retain/*.parquet", "eval/*.parquet")
_SETS = (
    *(f"{folders}{name}" for name in (ROWS_FILE, *SPLIT_FILES.values()) for folders in ("", "*/", "*/*/")),
    "*.parquet",
)


class RowStore:
    """All rows of a folder, numbered across its files.

    Args:
        path (`Path`): A data folder, a release folder, a folder of sets, one set, or a Parquet file.

    Raises:
        FileNotFoundError: If there is no Parquet file.
        ValueError: If the path is that of a set in JSON lines.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix == ".jsonl":
            raise ValueError(f"{path}: view reads folders: `cb-datasets import {path} --output FOLDER` first.")
        self.files = _files(path)
        if not self.files:
            raise FileNotFoundError(f"No Parquet files in {path}: name a data folder, a release, a set, or a Hub id.")
        tables = [_facet_table(file, *_config_and_split(file, path)) for file in self.files]
        self._starts = [0]
        for table in tables:
            self._starts.append(self._starts[-1] + len(table))
        self.facets = pyarrow.concat_tables(tables).unify_dictionaries().combine_chunks()
        # The facets as plain arrays, for fast filters and counts: the values of each facet ("" for null), and the
        # position of each row's value.
        self._values = {name: ["", *self.facets[name].chunk(0).dictionary.to_pylist()] for name in FACETS}
        self._codes = {name: _codes(self.facets[name].chunk(0)) for name in FACETS}
        self.search = Search(self.files)

    def __len__(self) -> int:
        return len(self.facets)

    def row(self, number: int) -> dict[str, Any]:
        """Read one whole row; one of a release in its stored form.

        Raises:
            IndexError: If the number is out of range.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"There is no row {number}; there are {len(self)}.")
        file = max(at for at, start in enumerate(self._starts[:-1]) if start <= number)
        within = number - self._starts[file]
        # Only the row group that contains the row is read; `_row_group` caches it for the neighbouring rows.
        metadata = _parquet_file(self.files[file]).metadata
        for group in range(metadata.num_row_groups):
            if within < metadata.row_group(group).num_rows:
                return stored_row(_row_group(self.files[file], group).slice(within, 1).to_pylist()[0])
            within -= metadata.row_group(group).num_rows
        raise IndexError(f"{self.files[file]} changed: open it again.")

    def row_number(self, id: str) -> int | None:
        """The number of the first row with this id."""
        number = pc.index(self.facets["id"], id).as_py()
        return None if number < 0 else number

    def select(self, filters: dict[str, str], text: str = "") -> np.ndarray:
        """Numbers of the rows with these facet values that contain `text`, ignoring case.

        Raises:
            NotReady: If there is a text and the search index is still being built.
        """
        keep = self._with_text(text) if text else np.ones(len(self), bool)
        for name, value in filters.items():
            keep = keep & self._with_facet(name, value)
        return np.flatnonzero(keep)

    def facet_counts(self, numbers: np.ndarray) -> dict[str, dict[str, int]]:
        """Number of these rows per value of each facet, most frequent first; facets that are all null are omitted."""
        facets = {}
        for name, values in self._values.items():
            counts = np.bincount(self._codes[name][numbers], minlength=len(values)).tolist()
            pairs = sorted(zip(counts, values, strict=True), key=lambda pair: (-pair[0], pair[1]))
            facets[name] = {value: count for count, value in pairs if count}
        return {name: counts for name, counts in facets.items() if set(counts) - {""}}

    def _with_facet(self, name: str, value: str) -> np.ndarray:
        """Whether each row has this value, `""` if it has none."""
        values = self._values[name]
        return self._codes[name] == values.index(value) if value in values else np.zeros(len(self), bool)

    @lru_cache(maxsize=32)  # noqa: B019  (a store lives as long as the process)
    def _with_text(self, text: str) -> np.ndarray:
        return self.search.rows_with(text)


def _codes(column: pyarrow.DictionaryArray) -> np.ndarray:
    """Positions of the values in `["", *dictionary]`."""
    return pc.add(pc.fill_null(column.indices, -1), 1).to_numpy()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for patterns in (_DATA, _RELEASE, _SETS):
        files = list(dict.fromkeys(file for pattern in patterns for file in sorted(path.glob(pattern))))
        # Neither the marks nor files that are being written hold rows.
        files = [file for file in files if file.parent.name != "audit" and not file.name.startswith(".")]
        if files:
            return files
    return []


def _config_and_split(file: Path, path: Path) -> tuple[str, str]:
    """Configuration and split of a file, from its path; see the module's examples."""
    shard = _SHARD.fullmatch(file.stem)
    if shard:
        return file.parent.name, shard[1]
    folders = file.parent.relative_to(path).parts if file.is_relative_to(path) and file != path else ()
    if file.name in SPLIT_FILES.values() and folders[:1] != ("prompts",):
        return file.parent.name, file.stem
    return (folders[0] if folders else file.parent.name), (folders[-1] if len(folders) > 1 else "all")


def _facet_table(file: Path, config: str, split: str) -> pyarrow.Table:
    """The id and the facets of each row, the facets dictionary-encoded."""
    with naming_broken_parquet(file):
        parquet = _parquet_file(file)
    if "id" not in parquet.schema_arrow.names or parquet.schema_arrow.field("id").type != pyarrow.string():
        raise ValueError(f"{file}: no rows of ours, which have a column `id` of texts. Name other data.")
    schema, length = parquet.schema_arrow, parquet.metadata.num_rows
    columns = {"id": parquet.read(columns=["id"])["id"].combine_chunks()}
    for name, source in FACETS.items():
        if source is None:
            values = pyarrow.array([config if name == "config" else split] * length, pyarrow.string())
        else:
            values = _column(parquet, schema, source)
        columns[name] = values.dictionary_encode()
    columns["id"] = pyarrow.concat_arrays([columns["id"]]) if length else pyarrow.array([], pyarrow.string())
    return pyarrow.table(columns)


def _column(parquet: pyarrow.parquet.ParquetFile, schema: pyarrow.Schema, source: str) -> pyarrow.Array:
    top, _, inner = source.partition(".")
    if top not in schema.names:
        return pyarrow.nulls(parquet.metadata.num_rows, pyarrow.string())
    column = parquet.read(columns=[source])[top].combine_chunks()
    if inner:
        column = pc.struct_field(column, inner)
    if pyarrow.types.is_list(column.type):
        # The facet of "R4b: arguments of ..." is "R4b", the rule.
        column = pc.replace_substring_regex(pc.list_element(column, 0), pattern=r"(?s):.*", replacement="")
    return column.cast(pyarrow.string()) if isinstance(column, pyarrow.Array) else column.combine_chunks()


@lru_cache(maxsize=64)
def _parquet_file(file: Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(file)


@lru_cache(maxsize=2)
def _row_group(file: Path, group: int) -> pyarrow.Table:
    return _parquet_file(file).read_row_group(group)
