"""The canonical format, as Llama 3.1 writes calls:

    <|python_tag|>{"name": "search_web", "parameters": {"query": "tides"}}<|eom_id|>

Two readers answer two questions. The parser says whether the *form* is exactly this, which training data must have; a
lenient one would hide errors of the model. `executed_llama3_json` says what the completion *does*: which calls a
server runs, and vLLM's `llama3_json` runs many that the parser calls malformed.
"""

import re
from dataclasses import replace

from .json_text import (
    LENIENT_JSON,
    JsonFault,
    bare_call_form,
    call_of,
    dump_json,
    first_of,
    name_span,
    read_json_value,
)
from .pythonic import ASKS_FOR_PYTHON
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call


_TAG, _EOM, _EOT = "<|python_tag|>", "<|eom_id|>", "<|eot_id|>"
_ENDS = (_EOM, _EOT)
# Possessive, so that a long run of blanks is read once and not divided among the three places in every way.
_NEXT_CALL = re.compile(r"\s*+[;,]?+\s*+(?:<\|python_tag\|>)?+\s*+(?=\{)")
_TAGS = re.compile(re.escape(_TAG))
_NOT_BLANK = re.compile(r"\S")
_FUNCTION_SYNTAX = re.compile(r"\s*[A-Za-z_][\w.]*\(.*", re.DOTALL)


def render_llama3_json(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, with optional text before it."""
    return f"{text_before}{_TAG}{dump_json({'name': call.name, 'parameters': call.arguments})}{_EOM}"


def render_llama3_text(text: str) -> str:
    """The completion that says `text`."""
    return text + _EOT


def parse_llama3_json(completion: str, tools: str | None = None) -> Parsed:
    """Parse a Llama 3.1 completion; never raises."""
    tag = completion.find(_TAG)
    end_at, end = first_of(_ENDS, completion, max(tag, 0))
    body, after = (completion, "") if end is None else (completion[:end_at], completion[end_at + len(end) :])
    call_text = body[tag + len(_TAG) :] if tag >= 0 else body
    diagnosis, calls = _read_calls(call_text)
    if tag < 0 and not calls and not _is_bare_call(body):
        form = Diagnosis.TRAILING_TEXT if after.strip() else Diagnosis.TEXT
        return Parsed(form if body.strip() else Diagnosis.EMPTY, text=body.strip(), end=end)
    if diagnosis == Diagnosis.OK:
        if after.strip():
            diagnosis = Diagnosis.TRAILING_TEXT
        elif tag < 0:
            diagnosis = Diagnosis.NO_TAG
        elif end is None:
            diagnosis = Diagnosis.JSON_INCOMPLETE
    if _TAG in call_text:
        diagnosis = Diagnosis.MULTI_TAG
    starts = tuple(match.start() for match in _TAGS.finditer(completion))
    parsed = Parsed(diagnosis, tuple(calls), body[:tag].strip() if tag >= 0 else "", end, call_starts=starts)
    if not parsed.is_call or end is None:
        return parsed
    name = name_span(completion, completion.index("{", tag))
    return replace(parsed, call_span=(tag, end_at + len(end)), name_span=name)


def executed_llama3_json(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `llama3_json` parser finds them; never raises.

    Every JSON object up to the end of the turn is a call, wherever it stands. If one of them is not JSON, or not a
    call, the whole completion is shown as text.
    """
    end_at, _ = first_of(_ENDS, completion)
    return tuple(call for call in _served_calls(completion[:end_at]) or () if call is not None)


def _served_calls(body: str) -> list[ToolCall | None] | None:
    """The calls that a server makes of a turn, `None` in place of those that no client can make; `None` if it shows
    the turn as text."""
    calls, at = [], body.find("{")
    while at >= 0:
        try:
            value, end = LENIENT_JSON.raw_decode(body, at)
            calls.append(executed_call(value["name"], value["arguments" if "arguments" in value else "parameters"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        at = body.find("{", end + 1)  # a brace right behind an object opens none for the server
    return calls


def _is_bare_call(body: str) -> bool:
    """Whether a turn without a tag is a call, or was to be one. Other text that begins with a brace is words."""
    if not body.lstrip().startswith("{"):
        return False
    return _served_calls(body) is not None or bare_call_form(body) is not None


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
            value, at = read_json_value(text, at)
        except JsonFault as fault:
            return fault.diagnosis, calls
        call = call_of(value, "parameters")
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


LLAMA3_JSON = ToolCallFormat(
    name="llama3_json",
    call_tag=_TAG,
    call_end=_EOM,
    turn_end=_EOT,
    user_turn=f"{_EOT}<|start_header_id|>user<|end_header_id|>\n\n",
    tokens=(_TAG, _EOM, _EOT),
    begins_like_call=re.compile(r"\{"),
    render=render_llama3_json,
    render_text=render_llama3_text,
    parse=parse_llama3_json,
    executed_calls=executed_llama3_json,
    told_by=(_EOT,),
    not_told_by=(ASKS_FOR_PYTHON,),
    tool_parser="llama3_json",
)
