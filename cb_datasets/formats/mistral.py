"""The formats of Mistral's models, by the version of their tokenizer:

    v3     [TOOL_CALLS][{"name": "search_web", "arguments": {"query": "tides"}}]</s>
    v11    I'll look.[TOOL_CALLS]search_web[ARGS]{"query": "tides"}</s>
    v13    [THINK]The user wants tides.[/THINK][TOOL_CALLS]search_web[ARGS]{"query": "tides"}</s>

Several calls of a turn are one list in v3, and one after another since. v3 knows no text beside calls. In the history
of v3 and v11 calls have ids, which models do not write.

vLLM's `mistral` parser serves all of them. It takes a single object for a list (v3), and a brace for `[ARGS]` (v11).
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from .json_text import LENIENT_JSON, JsonFault, bare_call_form, call_of, dump_json, name_span, read_json_value
from .thinking import parse_after_thinking, split_thinking
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call
from .typed_text import coerce_arguments


_TAG, _ARGS, _CALL_ID, _END = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "</s>"
_THINK, _THINK_END = "[THINK]", "[/THINK]"
_TAGS = re.compile(re.escape(_TAG))
_BLANKS = re.compile(r"\s*+")

# A call of v11 up to its arguments.
_HEADER = re.compile(r"(?P<name>[^\s\[{(](?:[^\[{(]*[^\s\[{(])?)(?:\[CALL_ID\][A-Za-z0-9]{9})?\[ARGS\]\s*+")
_FUNCTION_SYNTAX = re.compile(r"\s*+[\w.-]++\s*+[({]")
# A list or an object, or a name and what follows it; each may be cut off.
_BEGINS_LIKE_CALL = re.compile(r"\[?\s*+\{|\[\s*+\Z|[\w.:/-]++(?:\s++[A-Za-z0-9]{9})?\s*+(?:\{|\Z)")

# What vLLM's parser engine tells apart. It leaves out special tokens that have no part in calls.
_DROPPED = ("<s>", "<unk>", "<pad>")
_SERVED = re.compile("|".join(map(re.escape, (_TAG, _ARGS, "{", _THINK, _THINK_END, *_DROPPED))))


class _Calls(NamedTuple):
    """What was read after the first tag of a turn."""

    diagnosis: Diagnosis
    calls: tuple[ToolCall, ...] = ()
    name_span: tuple[int, int] | None = None


def render_v3(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, without the text before it."""
    return f"{_TAG}[{dump_json({'name': call.name, 'arguments': call.arguments})}]{_END}"


def render_v11(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, with optional text before it."""
    return f"{text_before}{_TAG}{call.name}{_ARGS}{dump_json(call.arguments)}{_END}"


def render_mistral_text(text: str) -> str:
    """The completion that says `text`."""
    return text + _END


def parse_v3(completion: str, tools: str | None = None) -> Parsed:
    """Parse a completion of version 3; never raises."""
    parsed = _parse(completion, _read_list)
    if parsed.is_call and parsed.text:
        return replace(parsed, diagnosis=Diagnosis.LEADING_TEXT, call_span=None, name_span=None)
    return parsed


def parse_v11(completion: str, tools: str | None = None) -> Parsed:
    """Parse a completion of version 11; never raises."""
    return _parse(completion, _read_calls)


def parse_v13(completion: str, tools: str | None = None) -> Parsed:
    """Parse a completion of version 13, whose model may think before it answers; never raises."""
    return parse_after_thinking(completion, split_thinking(completion, _THINK, _THINK_END), (_END,), parse_v11)


def executed_v3(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `mistral` parser finds them in version 3; never raises.

    It reads the first JSON after the first tag that something follows, however it goes on.
    """
    body = completion.partition(_END)[0]
    text = next((part.strip() for part in body.split(_TAG)[1:] if part.strip()), "")
    try:
        value = _lenient_list(text)
        values = value if isinstance(value, list) else [value]
        calls = [
            executed_call(each["name"] if isinstance(each.get("name"), str) else "", _served_arguments(each))
            for each in values
            if isinstance(each, dict) and ("name" in each or "arguments" in each)
        ]
    except (ValueError, RecursionError):
        return ()
    return tuple(call for call in calls if call is not None)


def executed_v11(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `mistral` parser finds them in version 11; never raises.

    A call goes on to the next tag. Of what follows its name, the first JSON is its arguments.
    """
    return _executed(completion.partition(_END)[0], tools)


def executed_v13(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `mistral` parsers find them in version 13; never raises.

    The first of them removes thinking, wherever it is, up to its end or to the next call.
    """
    return _executed(_without_thinking(completion.partition(_END)[0]), tools)


def _parse(completion: str, read: Callable[[str, int], _Calls]) -> Parsed:
    """Parse a completion of which `read` reads the calls, from their first tag on."""
    body, closed, after = completion.partition(_END)
    end = closed or None
    tag = body.find(_TAG)
    starts = tuple(match.start() for match in _TAGS.finditer(completion))
    if tag < 0:
        return Parsed(_form_without_tag(body, after), text=body.strip(), end=end, call_starts=starts)
    diagnosis, calls, name = read(body, tag)
    if diagnosis == Diagnosis.OK and (end is None or after.strip()):
        diagnosis = Diagnosis.JSON_INCOMPLETE if end is None else Diagnosis.TRAILING_TEXT
    parsed = Parsed(diagnosis, calls, body[:tag].strip(), end, call_starts=starts)
    return replace(parsed, call_span=(tag, len(body) + len(_END)), name_span=name) if parsed.is_call else parsed


def _form_without_tag(body: str, after: str) -> Diagnosis:
    if after.strip():
        return Diagnosis.TRAILING_TEXT
    if not body.strip():
        return Diagnosis.EMPTY
    if _ARGS in body:
        return Diagnosis.NO_TAG
    # A list of calls is one too.
    return bare_call_form(body.lstrip().removeprefix("[")) or Diagnosis.TEXT


def _read_list(text: str, tag: int) -> _Calls:
    start = _after_blanks(text, tag + len(_TAG))
    if not text.startswith("[", start):
        return _Calls(_fault_of(text[start:]))
    if text.startswith(_TAG, start):
        return _Calls(Diagnosis.MULTI_TAG)
    try:
        values, at = read_json_value(text, start)
    except JsonFault as fault:
        return _Calls(fault.diagnosis)
    found = [call_of(value, "arguments") for value in values]
    calls = tuple(call for call in found if call is not None)
    if _TAG in text[start:]:
        return _Calls(Diagnosis.MULTI_TAG, calls)
    if text[at:].strip():
        return _Calls(Diagnosis.TRAILING_TEXT, calls)
    if len(found) != 1:
        return _Calls(Diagnosis.MULTI_CALL if len(calls) > 1 else Diagnosis.BAD_ARGUMENTS, calls)
    if not calls:
        return _Calls(Diagnosis.BAD_ARGUMENTS)
    return _Calls(Diagnosis.OK, calls, name_span(text, text.index("{", start)))


def _read_calls(text: str, tag: int) -> _Calls:
    calls: list[ToolCall] = []
    name = None
    starts = [match.end() for match in _TAGS.finditer(text, tag)]
    for start, stop in zip(starts, [*(start - len(_TAG) for start in starts[1:]), len(text)], strict=True):
        segment = text[start:stop]
        header = _HEADER.match(segment)
        if header is None:
            return _Calls(_fault_of(segment), tuple(calls))
        try:
            arguments, at = read_json_value(segment, header.end())
        except JsonFault as fault:
            return _Calls(fault.diagnosis, tuple(calls))
        if not isinstance(arguments, dict):
            return _Calls(Diagnosis.BAD_ARGUMENTS, tuple(calls))
        calls.append(ToolCall(header["name"], arguments))
        if segment[at:].strip():
            return _Calls(Diagnosis.TRAILING_TEXT, tuple(calls))
        name = (start + header.start("name"), start + header.end("name"))
    return _Calls(Diagnosis.MULTI_CALL if len(calls) > 1 else Diagnosis.OK, tuple(calls), name)


def _fault_of(text: str) -> Diagnosis:
    """What is wrong with a text in place of a call."""
    if _FUNCTION_SYNTAX.match(text):
        return Diagnosis.FUNCTION_SYNTAX
    if text.lstrip().startswith(("[", "{")) and not text.lstrip().startswith((_ARGS, _CALL_ID)):
        return Diagnosis.BAD_JSON  # JSON of another version
    # Either no name, or one with blanks or signs in it that no name has.
    return Diagnosis.BAD_ARGUMENTS if _ARGS in text else Diagnosis.JSON_INCOMPLETE


def _after_blanks(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    assert blanks is not None  # it matches anything
    return blanks.end()


def _lenient_list(text: str) -> Any:
    """The JSON that a text begins with, else all from its first `[{` to its last `}]`; `None` if neither is JSON."""
    try:
        return LENIENT_JSON.raw_decode(text)[0]
    except json.JSONDecodeError:
        start, end = text.find("[{"), text.rfind("}]")
        try:
            return LENIENT_JSON.decode(text[start : end + 2]) if 0 <= start < end - 1 else None
        except json.JSONDecodeError:
            return None


def _served_arguments(value: dict) -> Any:
    """What a client decodes."""
    arguments = value.get("arguments")
    if arguments is None:
        return {}
    return LENIENT_JSON.decode(arguments) if isinstance(arguments, str) else arguments


def _executed(content: str, tools: str | None) -> tuple[ToolCall, ...]:
    try:
        calls = [_executed_call(name.strip(), text.strip(), tools) for name, text in _served_calls(content)]
    except (ValueError, RecursionError):
        return ()
    return tuple(call for call in calls if call is not None)


def _executed_call(name: str, text: str, tools: str | None) -> ToolCall | None:
    value = LENIENT_JSON.raw_decode(text)[0] if text else {}
    if name and isinstance(value, dict):
        value = coerce_arguments(value, tools, name)
    return executed_call(name, value)


def _served_calls(content: str) -> Iterator[tuple[str, str]]:
    """The name of each call, and the text of its arguments."""
    in_calls, in_name = False, False
    name: list[str] = []
    arguments: list[str] = []
    for text, token in _served_pieces(content):
        (name if in_name else arguments).append(text)
        if token == _TAG and not in_name:
            if in_calls and (any(name) or any(arguments)):
                yield "".join(name), "".join(arguments)
            in_calls, in_name = True, True
            name, arguments = [], []
        elif token in (_ARGS, "{") and in_name:
            in_name = False
            arguments.append(token.removeprefix(_ARGS))
        elif token not in _DROPPED:
            (name if in_name else arguments).append(token)
    if in_calls and (any(name) or any(arguments)):
        yield "".join(name), "".join(arguments)


def _without_thinking(text: str) -> str:
    kept: list[str] = []
    thinks = False
    for words, token in _served_pieces(text):
        kept += [] if thinks else [words]
        thinks = token == _THINK or (thinks and token not in (_THINK_END, _TAG))
        kept += [token] if not thinks and token not in (_THINK_END, *_DROPPED) else []
    return "".join(kept)


def _served_pieces(text: str) -> Iterator[tuple[str, str]]:
    """A text cut at the tokens that vLLM tells apart: words, and the token after them, which is empty at the end."""
    at = 0
    for match in _SERVED.finditer(text):
        yield text[at : match.start()], match[0]
        at = match.end()
    yield text[at:], ""


def _call_id(number: int) -> str:
    return f"call{number:05d}"


MISTRAL_V3 = ToolCallFormat(
    name="mistral_v3",
    call_tag=_TAG,
    call_end=_END,
    turn_end=_END,
    user_turn=f"[/INST]{_END}[INST]",
    tokens=(_TAG, _END),
    begins_like_call=_BEGINS_LIKE_CALL,
    render=render_v3,
    render_text=render_mistral_text,
    parse=parse_v3,
    executed_calls=executed_v3,
    text_before_call=False,
    parallel_calls=True,
    call_id=_call_id,
    told_by=(_TAG,),
    not_told_by=(_ARGS,),
    tool_parser="mistral",
)

MISTRAL_V11 = replace(
    MISTRAL_V3,
    name="mistral_v11",
    tokens=(_TAG, _CALL_ID, _ARGS, _END),
    render=render_v11,
    parse=parse_v11,
    executed_calls=executed_v11,
    text_before_call=True,
    told_by=(_TAG, _CALL_ID, _ARGS),
    not_told_by=("<think>",),  # of Magistral Small 1.0, which thinks in words of version 11
)

MISTRAL_V13 = replace(
    MISTRAL_V11,
    name="mistral_v13",
    tokens=(_TAG, _ARGS, _THINK, _THINK_END, _END),
    parse=parse_v13,
    executed_calls=executed_v13,
    call_id=None,
    told_by=(_TAG, _ARGS),
    not_told_by=(_CALL_ID,),
    reasoning_parser="mistral",
)
