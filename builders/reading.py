"""Records read strictly. A line of a JSON file, such as

    {"record_id": "r-3", "benign_query": "Which pages describe the tide tables?", ...}

is an object with the fields that it must have, or an error that names the file and the line: "records.jsonl:3: ...".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Yield `("file.jsonl:12", record)` for every line that is not blank.

    Raises:
        ValueError: If a line is not one JSON object in UTF-8.
    """
    path = Path(path)
    # Split as bytes: text mode would also end lines at characters that JSON strings may hold.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path.name}:{number}"
                try:
                    record = parse_object(line.decode("utf-8-sig"))
                except ValueError as error:
                    raise ValueError(f"{where}: no JSON object ({error}). Repair or delete the line.") from None
                yield where, record


def parse_object(text: str) -> dict:
    """The JSON object that `text` is.

    Raises:
        ValueError: If it is none, or holds what no column can: `NaN`, half a surrogate pair, endless nesting.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def optional(record: dict, field: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a field that may be missing or null; otherwise as [`required`]."""
    return None if record.get(field) is None else required(record, field, kind, where)


def required(record: dict, field: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of a field that a record must have.

    Args:
        record (`dict`): The record, or a part of it.
        field (`str`): Name of the field.
        kind (`type` or `tuple[type, ...]`): What its value must be an instance of.
        where (`str`): File and line, for the error.

    Raises:
        ValueError: If the field is missing or of another type.
    """
    if field not in record:
        raise ValueError(f"{where}: field {field!r} is missing. Add it, or delete the record.")
    value = record[field]
    if not isinstance(value, kind):
        wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: field {field!r} must be {wanted}, got {type(value).__name__}. Correct it.")
    return value
