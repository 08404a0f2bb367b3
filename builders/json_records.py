"""Strict reading of JSON records. A line of a JSON Lines file, such as

    {"record_id": "r-3", "benign_query": "Which pages describe the tide tables?", ...}

must be an object with all required fields; otherwise the error names the file and the line: "records.jsonl:3: ...".
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# Python fails to read or write JSON at roughly a thousand levels of nesting; a text with fewer opening brackets than
# this is safe.
_MANY_BRACKETS = 500


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Yield `("file.jsonl:12", record)` for every line that is not blank.

    Raises:
        ValueError: If a line is not one JSON object in UTF-8.
    """
    for where, line in numbered_lines(path):
        yield where, parse_line(line, where)


def numbered_lines(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield `("file.jsonl:12", line)` for every line that is not blank.

    Lines are split as bytes, because decoding them one by one lets the error name the line that is not UTF-8.
    """
    path = Path(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path.name}:{number}", line


def parse_line(line: bytes, where: str, keep_surrogates: bool = False) -> dict:
    """Parse a line of [`numbered_lines`].

    Raises:
        ValueError: If it is not one JSON object in UTF-8; the message begins with `where`.
    """
    try:
        return parse_object(line.decode("utf-8-sig"), keep_surrogates)
    except ValueError as error:
        raise ValueError(f"{where}: not a JSON object ({error}). Repair or delete the line.") from None


def read_json(
    path: str | Path, where: str | None = None, keep_surrogates: bool = False, nan_is_null: bool = False
) -> Any:
    """Read a file that is one JSON document.

    Args:
        path (`str` or `Path`): The file.
        where (`str`, *optional*): Name of the file in the error message; by default its file name.
        keep_surrogates, nan_is_null (`bool`, *optional*, default to `False`): As for [`parse_json`].

    Raises:
        ValueError: If the file is not one JSON document in UTF-8.
    """
    path = Path(path)
    try:
        return parse_json(path.read_bytes().decode("utf-8-sig"), keep_surrogates, nan_is_null)
    except ValueError as error:
        raise ValueError(f"{where or path.name}: not a JSON document ({error}). Fetch the file again.") from None


def parse_object(text: str, keep_surrogates: bool = False) -> dict:
    """Parse the text of a JSON object, see [`parse_json`].

    Raises:
        ValueError: If the value is not an object, or as for [`parse_json`].
    """
    value = parse_json(text, keep_surrogates)
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}")
    return value


def parse_json(text: str, keep_surrogates: bool = False, nan_is_null: bool = False) -> Any:
    """Parse a JSON text.

    Args:
        text (`str`): The text.
        keep_surrogates (`bool`, *optional*, defaults to `False`): Let unpaired surrogates pass, for a caller that
            replaces them.
        nan_is_null (`bool`, *optional*, defaults to `False`): Read `NaN` and infinities, which are not JSON, as null.

    Raises:
        ValueError: If the text is not valid JSON, an object repeats a key, or a value cannot be stored in a column:
            `NaN`, a number that overflows to infinity, an unpaired surrogate, or nesting that is too deep.
    """
    read_constant = _null if nan_is_null else _refuse_constant
    try:
        value = json.loads(text, parse_constant=read_constant, parse_float=_finite, object_pairs_hook=_unique_keys)
        if not keep_surrogates and "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        if text.count("[") + text.count("{") > _MANY_BRACKETS:
            json.dumps(_nested(value))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _nested(value: Any) -> Any:
    # A value that can be read must also be writable later, nested in other values and from a deeper call stack.
    for _ in range(50):
        value = [value]
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:40]!r} occurs twice in one object")
    return value


def _null(text: str) -> None:
    return None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value


def optional(record: dict, field: str, types: type | tuple[type, ...], where: str) -> Any:
    """Return the value of a field, or `None` if it is missing or null; otherwise as [`required`]."""
    return None if record.get(field) is None else required(record, field, types, where)


def required(record: dict, field: str, types: type | tuple[type, ...], where: str) -> Any:
    """Return the value of a field that must be present.

    Args:
        record (`dict`): The record, or a part of it.
        field (`str`): Name of the field.
        types (`type` or `tuple[type, ...]`): Allowed types of the value.
        where (`str`): File and line, for the error.

    Raises:
        ValueError: If the field is missing or of another type.
    """
    if field not in record:
        raise ValueError(f"{where}: field {field!r} is missing. Add it, or delete the record.")
    value = record[field]
    allowed = types if isinstance(types, tuple) else (types,)
    # In Python a bool is an int; in the formats read here it never stands for a number.
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        expected = " or ".join(each.__name__ for each in allowed)
        raise ValueError(f"{where}: field {field!r} must be {expected}, got {type(value).__name__}. Correct it.")
    return value
