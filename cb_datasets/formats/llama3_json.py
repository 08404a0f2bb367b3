"""The canonical format, as Llama 3.1 writes calls:

    <|python_tag|>{"name": "search_web", "parameters": {"query": "tides"}}<|eom_id|>

Two readers answer two questions. The parser says whether the *form* is exactly this, which training data must have; a
lenient one would hide errors of the model. `executed_llama3_json` says what the completion *does*: which calls a
server runs, and vLLM's `llama3_json` runs many that the parser calls malformed.
"""

import json
import math
import re
from dataclasses import replace
from typing import Any

from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call


_TAG, _EOM, _EOT = "<|python_tag|>", "<|eom_id|>", "<|eot_id|>"
# Possessive, so that a long run of blanks is read once and not divided among the three places in every way.
_NEXT_CALL = re.compile(r"\s*+[;,]?+\s*+(?:<\|python_tag\|>)?+\s*+(?=\{)")
_NOT_BLANK = re.compile(r"\S")
_FUNCTION_SYNTAX = re.compile(r"\s*[A-Za-z_][\w.]*\(.*", re.DOTALL)


def render_llama3_json(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, with optional text before it."""
    body = json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False, allow_nan=False)
    return f"{text_before}{_TAG}{body}{_EOM}"


def parse_llama3_json(completion: str) -> Parsed:
    """Parse a Llama 3.1 completion; never raises."""
    tag = completion.find(_TAG)
    end_at, end = _first_end(completion, max(tag, 0))
    body, after = (completion, "") if end is None else (completion[:end_at], completion[end_at + len(end) :])
    text = body if tag < 0 else body[:tag]
    call_text = body[tag + len(_TAG) :] if tag >= 0 else body.strip()
    if tag < 0 and not call_text.startswith("{"):
        if not call_text:
            return Parsed(Diagnosis.EMPTY, end=end)
        return Parsed(Diagnosis.TRAILING_TEXT if after.strip() else Diagnosis.TEXT, text=body.strip(), end=end)
    diagnosis, calls = _read_calls(call_text)
    if diagnosis == Diagnosis.OK:
        if after.strip():
            diagnosis = Diagnosis.TRAILING_TEXT
        elif tag < 0:
            diagnosis = Diagnosis.NO_TAG_JSON
        elif end is None:
            diagnosis = Diagnosis.JSON_INCOMPLETE
    if _TAG in call_text:
        diagnosis = Diagnosis.MULTI_TAG
    parsed = Parsed(diagnosis, tuple(calls), text.strip() if tag >= 0 else "", end)
    if not parsed.is_call or end is None:
        return parsed
    name_span = _name_span(completion, completion.index("{", tag))
    return replace(parsed, call_span=(tag, end_at + len(end)), name_span=name_span)


def executed_llama3_json(completion: str) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `llama3_json` parser finds them; never raises.

    Every JSON object up to the end of the turn is a call, wherever it stands. If one of them is not JSON, or not a
    call, the whole completion is shown as text.
    """
    end_at, _ = _first_end(completion, 0)
    body, calls, at = completion[:end_at], [], completion.find("{", 0, end_at)
    while at >= 0:
        try:
            value, at = _LENIENT_JSON.raw_decode(body, at)
            calls.append(executed_call(value["name"], value["arguments" if "arguments" in value else "parameters"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            return ()
        at = body.find("{", at)
    return tuple(call for call in calls if call is not None)


def _name_span(text: str, start: int) -> tuple[int, int]:
    """Characters of the tool's name in the call whose JSON object begins at `start`.

    The object is walked key by key, because its parameters may have a key "name" too, and may come first.
    """
    at = start + 1
    while True:
        key, at = _STRICT_JSON.raw_decode(text, _after_separators(text, at))
        value_at = _after_separators(text, at)
        _, at = _STRICT_JSON.raw_decode(text, value_at)
        if key == "name":
            return value_at + 1, at - 1


def _after_separators(text: str, at: int) -> int:
    """Position of the next key or value."""
    while text[at] in " \t\r\n,:":
        at += 1
    return at


def _first_end(completion: str, start: int) -> tuple[int, str | None]:
    found = [(at, token) for token in (_EOM, _EOT) if (at := completion.find(token, start)) >= 0]
    return min(found) if found else (len(completion), None)


def _read_calls(text: str) -> tuple[Diagnosis, list[ToolCall]]:
    # By position: a copy of the rest for every call would take quadratic time.
    calls: list[ToolCall] = []
    diagnosis = Diagnosis.OK
    text = text.strip()
    at = 0
    while True:
        if not text.startswith("{", at):
            if _FUNCTION_SYNTAX.fullmatch(text, at):
                return Diagnosis.FUNCTION_SYNTAX, calls
            return Diagnosis.JSON_INCOMPLETE if at == len(text) else Diagnosis.BAD_JSON, calls
        try:
            value, at = _STRICT_JSON.raw_decode(text, at)
            json.dumps(value, ensure_ascii=False).encode()  # fails at half of a surrogate pair, which no text can hold
        except json.JSONDecodeError as error:
            return (Diagnosis.JSON_INCOMPLETE if _is_cut_off(text, error) else Diagnosis.BAD_JSON), calls
        except (ValueError, RecursionError):
            return Diagnosis.BAD_JSON, calls
        call = _call_of(value)
        if call is None:
            diagnosis = Diagnosis.BAD_ARGUMENTS
        else:
            calls.append(call)
        if _NOT_BLANK.search(text, at) is None:
            return (Diagnosis.MULTI_CALL if len(calls) > 1 else diagnosis), calls
        separator = _NEXT_CALL.match(text, at)
        if separator is None:
            return Diagnosis.TRAILING_TEXT, calls
        at = separator.end()


def _call_of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("parameters")
    if isinstance(name, str) and name and isinstance(arguments, dict):
        return ToolCall(name, arguments)
    return None


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    return error.pos >= len(text) or error.msg.startswith("Unterminated string")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # NaN and Infinity, which are not JSON, and 1e999, which no float holds
        raise ValueError(f"{text} is not a finite number")
    return value


_STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite)

# A server takes the last of two equal keys, and NaN.
_LENIENT_JSON = json.JSONDecoder()

LLAMA3_JSON = ToolCallFormat(
    "llama3_json", _TAG, _EOM, _EOT, render_llama3_json, parse_llama3_json, executed_llama3_json
)
