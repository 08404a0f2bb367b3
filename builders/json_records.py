"""Records read strictly. A line of a JSON file, such as

    {"record_id": "r-3", "benign_query": "Which pages describe the tide tables?", ...}

is an object with the fields that it must have, or an error that names the file and the line: "records.jsonl:3: ...".
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# Python refuses to nest some thousand deep. A text with fewer opening brackets than this is far from it.
_MANY_BRACKETS = 500


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


def read_json(path: str | Path, where: str | None = None) -> Any:
    """The JSON document that a file is.

    Args:
        path (`str` or `Path`): The file.
        where (`str`, *optional*): How the error names the file, if its own name does not tell it from others.

    Raises:
        ValueError: If the file is not one JSON document in UTF-8.
    """
    path = Path(path)
    try:
        return parse_json(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{where or path.name}: no JSON document ({error}). Fetch the file again.") from None


def parse_object(text: str) -> dict:
    """The JSON object that `text` is.

    Raises:
        ValueError: If it is none, or as for [`parse_json`].
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    """The value that a JSON text is.

    Raises:
        ValueError: If it is none, says two things under one key, or holds what no column can: `NaN`, an endless
            number, half a surrogate pair, endless nesting.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats
        )
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        if text.count("[") + text.count("{") > _MANY_BRACKETS:
            json.dumps(_inside_others(value))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _inside_others(value: Any) -> Any:
    # What is read here is written again later, as part of other values and from further down the stack.
    for _ in range(50):
        value = [value]
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:40]!r} stands twice in one object")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:20]} is larger than any number can be")
    return value


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
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # To Python, true is a number; to no format here.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(each.__name__ for each in kinds)
        raise ValueError(f"{where}: field {field!r} must be {wanted}, got {type(value).__name__}. Correct it.")
    return value
