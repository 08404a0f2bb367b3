"""Rows whose lists and structs are null: no step can read them, so their file is refused where it is read."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.compute


# A struct that a row may lack.
_NULLABLE = "attack"


def without_nulls(tables: Iterable[pyarrow.Table], file: Path, first: int) -> Iterator[pyarrow.Table]:
    """Tables of a file, whose rows are numbered from `first` on, up to the first row with a null part.

    Raises:
        ValueError: If there is one; the message names the file and the row.
    """
    for table in tables:
        _check_no_nulls(table, file, first)
        first += len(table)
        yield table


def _check_no_nulls(rows: pyarrow.Table, file: Path, first: int) -> None:
    """Check that rows, numbered from `first`, have all their lists and structs, and that no list holds a null.

    Raises:
        ValueError: If one does not; the message names the file and the row.
    """
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        if name == _NULLABLE or not pyarrow.types.is_nested(column.type):
            continue
        wrong = pyarrow.compute.indices_nonzero(column.is_null())
        if pyarrow.types.is_list(column.type):
            items = pyarrow.compute.list_flatten(column)
            holders = pyarrow.compute.list_parent_indices(column).filter(items.is_null())
            wrong = pyarrow.concat_arrays([wrong.cast(holders.type), holders])
        if len(wrong):
            number = pyarrow.compute.min(wrong).as_py()
            raise ValueError(
                f"{file}: row {first + number} ({rows['id'][number]}): `{name}` is null, or holds a null. Mend "
                "the row, or take it out."
            )
