"""Strict and lenient JSON, as tool-call formats need it.

A strict reader takes what a model was taught to write, and no more: no duplicate keys, no NaN, nothing that no text
can hold. A server is lenient: it takes the last of two equal keys, and NaN.
"""

import json
import math
import re
from typing import Any

from .tool_call import Diagnosis, ToolCall, is_too_deep


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # NaN and Infinity, which are not JSON, and 1e999, which no float holds
        raise ValueError(f"{text} is not a finite number")
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite)
LENIENT_JSON = json.JSONDecoder()
# Up to the JSON object that a text begins with, or a fence in it. Possessive, so that blanks are read once.
OPENS_OBJECT = re.compile(r"\s*+(?=\{)|.*?```(?:json)?+\s*+(?=\{)", re.DOTALL)
_BARE_NAME = re.compile(r'\{\s*+"name"\s*+:')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*+:')


class JsonFault(ValueError):
    """JSON that the strict reader does not take.

    Args:
        diagnosis ([`Diagnosis`]): `JSON_INCOMPLETE` if it is cut off, else `BAD_JSON`.
    """

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(str(diagnosis))
        self.diagnosis = diagnosis


def read_json_value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a position of a text, and the position after it.

    Raises:
        JsonFault: If there is none.
    """
    try:
        value, end = _STRICT.raw_decode(text, at)
        json.dumps(value, ensure_ascii=False).encode()  # fails at half of a surrogate pair, which no text can hold
        if is_too_deep(value):
            raise ValueError("nested too deeply")
    except json.JSONDecodeError as error:
        cut_off = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        raise JsonFault(Diagnosis.JSON_INCOMPLETE if cut_off else Diagnosis.BAD_JSON) from None
    except (ValueError, RecursionError):
        raise JsonFault(Diagnosis.BAD_JSON) from None
    return value, end


def call_of(value: Any, arguments_key: str) -> ToolCall | None:
    """A JSON value as a call; `None` if it has no name, or no object of arguments."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get(arguments_key)
    if isinstance(name, str) and name and isinstance(arguments, dict):
        return ToolCall(name, arguments)
    return None


def bare_call_form(text: str) -> Diagnosis | None:
    """The form of a call without the tags of a format, alone or in a Markdown fence; `None` if there is none.

    JSON that is no call is an answer in words.
    """
    start = OPENS_OBJECT.match(text)
    if start is None:
        return None
    try:
        value, _ = read_json_value(text, start.end())
    except JsonFault as fault:
        if _BARE_NAME.match(text, start.end()) is None:
            return None
        # Other objects have names too, and may have comments or dots for what is left out.
        may_be_call = fault.diagnosis == Diagnosis.JSON_INCOMPLETE or _ARGUMENTS.search(text, start.end())
        return fault.diagnosis if may_be_call else None
    is_call = any(call_of(value, key) is not None for key in ("arguments", "parameters"))
    return Diagnosis.NO_TAG if is_call else None


def dump_json(value: Any) -> str:
    """JSON as models write it: on one line, letters as they are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def name_span(text: str, start: int) -> tuple[int, int]:
    """Characters of the tool's name in the call whose JSON object begins at `start`, which has been read already.

    The object is walked key by key, because its arguments may have a key "name" too, and may come first.
    """
    at = start + 1
    while True:
        key, at = _STRICT.raw_decode(text, _after_separators(text, at))
        value_at = _after_separators(text, at)
        _, at = _STRICT.raw_decode(text, value_at)
        if key == "name":
            return value_at + 1, at - 1


def _after_separators(text: str, at: int) -> int:
    """Position of the next key or value."""
    while text[at] in " \t\r\n,:":
        at += 1
    return at


def first_of(tokens: tuple[str, ...], text: str, start: int = 0) -> tuple[int, str | None]:
    """Position of the first of these tokens in a text, and the token; the length and `None` if there is none."""
    found = [(at, token) for token in tokens if (at := text.find(token, start)) >= 0]
    return min(found) if found else (len(text), None)
