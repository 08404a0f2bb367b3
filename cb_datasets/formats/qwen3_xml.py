"""Calls as Qwen3-Coder, Qwen3.5 and Qwen3.6 write them, with the arguments as text between tags:

    <tool_call>
    <function=search_web>
    <parameter=query>
    tides
    </parameter>
    </function>
    </tool_call><|im_end|>

Text has no type: the tool's schema says whether `5` is a number. Nothing is escaped either, so a call with a tag of
the format in its arguments cannot be written; what is rendered of it does not parse.

vLLM's `qwen3_coder` parser takes every `<function=` for a call, in a block or not, closed or not.
"""

import re
from dataclasses import replace
from typing import Any

from .hermes import (
    AFTER_CALL,
    CLOSE,
    FUNCTION,
    IM_END,
    TAG,
    TAGS,
    USER_TURN,
    answer_for_server,
    render_chatml_text,
    text_form,
)
from .json_text import LENIENT_JSON, JsonFault, bare_call_form, dump_json, first_of
from .thinking import parse_after_thinking, split_thinking, with_open_thinking
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call
from .typed_text import argument_types, coerce_typed, read_typed


_FUNCTION_END, _PARAMETER, _PARAMETER_END = "</function>", "<parameter=", "</parameter>"
_BLANKS = re.compile(r"\s*+")
_LABEL = re.compile(r"([^<>\n]*+)(>?)")
_VALUE_END = re.compile(f"{_PARAMETER}|{_PARAMETER_END}|{_FUNCTION_END}")

# What a server reads. A closing bracket ends a name, unless it is that of a tag.
_EXECUTED = re.compile(
    rf"{FUNCTION}((?:</?tool_call>|</parameter>|</?think>|[^>])*?)"
    rf"(?:{_FUNCTION_END}|>(.*?)(?:{_FUNCTION_END}|\Z)|\Z)",
    re.DOTALL,
)
_SERVER_PARAMETER = re.compile(r"<\s*+parameter\s*+=\s*+")
_SERVER_VALUE_END = re.compile(r"(?=<\s*+parameter\s*+=)|<\s*+/\s*+parameter\s*+>")
_NAME_IN_JSON = re.compile(r'"name"\s*+:\s*+"([^"]*+)"')


def render_qwen3_xml(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, with optional text and a blank line before it."""
    values = {key: each if isinstance(each, str) else dump_json(each) for key, each in call.arguments.items()}
    parameters = "".join(f"{_PARAMETER}{key}>\n{value}\n{_PARAMETER_END}\n" for key, value in values.items())
    block = f"{TAG}\n{FUNCTION}{call.name}>\n{parameters}{_FUNCTION_END}\n{CLOSE}{IM_END}"
    return f"{text_before}\n\n{block}" if text_before else block


def parse_qwen3_xml(completion: str, tools: str | None = None) -> Parsed:
    """Parse a completion of Qwen3-Coder, 3.5 or 3.6; never raises. Without `tools`, all arguments are strings."""
    thinking = split_thinking(completion)
    return parse_after_thinking(completion, thinking, (IM_END,), lambda answer: _parse_answer(answer, tools))


def executed_qwen3_xml(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `qwen3_coder` parser finds them; never raises.

    The parser knows nothing of thinking: a call in there is executed too. If one cannot be read, the request fails.
    """
    body = completion[: first_of((IM_END,), completion)[0]]
    try:
        calls = [_executed(match[1], match[2] or "", tools) for match in _EXECUTED.finditer(body)]
    except (ValueError, RecursionError):
        return ()
    return tuple(call for call in calls if call is not None)


def _executed(name: str, body: str, tools: str | None) -> ToolCall | None:
    """The call that a server makes of what stands between the tags of a function."""
    if not name and (found := _NAME_IN_JSON.search(body)):
        name = found[1]
    if name := name.strip():
        values = _server_parameters(body).items()
        return executed_call(name, {key: coerce_typed(text, argument_types(tools, name, key)) for key, text in values})
    try:
        value = LENIENT_JSON.decode(body.strip())
    except ValueError:
        return None
    if not isinstance(value, dict) or not value.get("name"):
        return None
    rest = {key: each for key, each in value.items() if key != "name"}
    return executed_call(value["name"], value.get("arguments", value.get("parameters", rest)))


def _server_parameters(body: str) -> dict[str, str]:
    parameters = {}
    start = _SERVER_PARAMETER.search(body)
    while start is not None:
        at = body.find(">", start.end())
        end = _SERVER_VALUE_END.search(body, at + 1) if at >= 0 else None
        if end is None:  # any later parameter would have ended this one
            break
        parameters[body[start.end() : at]] = _unwrapped(body[at + 1 : end.start()])
        start = _SERVER_PARAMETER.search(body, end.end())
    return parameters


def _unwrapped(value: str) -> str:
    """A value without the line breaks at its tags."""
    return value.removeprefix("\n").removesuffix("\n")


def _parse_answer(answer: str, tools: str | None) -> Parsed:
    end_at, end = first_of((IM_END,), answer)
    body, after = answer[:end_at], answer[end_at + len(end or "") :]
    start, opening = first_of((TAG, FUNCTION), body)
    if opening is None:
        is_json = bare_call_form(body) is not None
        return Parsed(Diagnosis.FUNCTION_SYNTAX if is_json else text_form(body, after), text=body.strip(), end=end)
    diagnosis, calls, name = _read_blocks(body, start, opening == TAG, tools)
    if diagnosis == Diagnosis.OK:
        if after.strip():
            diagnosis = Diagnosis.TRAILING_TEXT
        elif opening == FUNCTION:
            diagnosis = Diagnosis.NO_TAG
        elif end is None:
            diagnosis = Diagnosis.JSON_INCOMPLETE
    starts = tuple(match.start() for match in TAGS.finditer(answer))
    parsed = Parsed(diagnosis, tuple(calls), body[:start].strip(), end, call_starts=starts)
    return replace(parsed, call_span=(start, end_at + len(IM_END)), name_span=name) if parsed.is_call else parsed


def _read_blocks(
    body: str, at: int, has_tag: bool, tools: str | None
) -> tuple[Diagnosis, list[ToolCall], tuple[int, int]]:
    """The calls from a position on, and the characters of the last one's name."""
    calls: list[ToolCall] = []
    name = (at, at)
    at = _after_blanks(body, at + len(TAG) if has_tag else at)
    while body.startswith(FUNCTION, at):
        try:
            call, name, at = _read_call(body, at, tools)
        except JsonFault as fault:
            return fault.diagnosis, calls, name
        calls.append(call)
        edge = AFTER_CALL.match(body, at)
        assert edge is not None  # it matches anything
        (closed, opened), at = edge.groups(), edge.end()
        if at == len(body):
            is_complete = not opened and (closed or not has_tag)
            diagnosis = Diagnosis.OK if is_complete else Diagnosis.JSON_INCOMPLETE
            return (Diagnosis.MULTI_CALL if len(calls) > 1 else diagnosis), calls, name
        if not opened and not body.startswith(FUNCTION, at):
            return Diagnosis.TRAILING_TEXT, calls, name
    if at == len(body):
        return Diagnosis.JSON_INCOMPLETE, calls, name
    return Diagnosis.FUNCTION_SYNTAX if body.startswith("{", at) else Diagnosis.BAD_JSON, calls, name


def _read_call(body: str, at: int, tools: str | None) -> tuple[ToolCall, tuple[int, int], int]:
    """The call whose function begins at a position, the characters of its name, and the position after it.

    Raises:
        JsonFault: If it is malformed, with the diagnosis.
    """
    name_at = at + len(FUNCTION)
    name, at = _read_label(body, name_at)
    arguments: dict[str, Any] = {}
    while body.startswith(_PARAMETER, at := _after_blanks(body, at)):
        key, at = _read_label(body, at + len(_PARAMETER))
        end = _VALUE_END.search(body, at)
        if end is None or end[0] != _PARAMETER_END or key in arguments:
            raise JsonFault(Diagnosis.JSON_INCOMPLETE if end is None else Diagnosis.BAD_JSON)
        arguments[key] = read_typed(_unwrapped(body[at : end.start()]), argument_types(tools, name, key))
        at = end.end()
    if body.startswith(_FUNCTION_END, at):
        try:
            (name + dump_json(arguments)).encode()  # fails at half of a surrogate pair, which no text can hold
        except ValueError:
            raise JsonFault(Diagnosis.BAD_JSON) from None
        return ToolCall(name, arguments), (name_at, name_at + len(name)), at + len(_FUNCTION_END)
    if body.startswith("{", at):
        raise JsonFault(Diagnosis.FUNCTION_SYNTAX)
    is_cut_off = at == len(body) or body.startswith(CLOSE, at)
    raise JsonFault(Diagnosis.JSON_INCOMPLETE if is_cut_off else Diagnosis.BAD_JSON)


def _read_label(body: str, at: int) -> tuple[str, int]:
    """The name of a tool or parameter at a position, and the position after its closing bracket."""
    match = _LABEL.match(body, at)
    assert match is not None  # it matches anything
    label, bracket = match.groups()
    if not bracket:
        raise JsonFault(Diagnosis.JSON_INCOMPLETE if match.end() == len(body) else Diagnosis.BAD_JSON)
    if not label or label != label.strip():
        raise JsonFault(Diagnosis.BAD_ARGUMENTS)
    return label, match.end()


def _after_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    assert match is not None  # it matches anything
    return match.end()


QWEN3_XML = ToolCallFormat(
    name="qwen3_xml",
    call_tag=TAG,
    call_end=IM_END,
    turn_end=IM_END,
    user_turn=USER_TURN,
    tokens=(TAG, CLOSE, IM_END),
    begins_like_call=re.compile(f".*?{FUNCTION}", re.DOTALL),  # words may precede it where the tag is missing
    render=render_qwen3_xml,
    render_text=render_chatml_text,
    parse=parse_qwen3_xml,
    executed_calls=executed_qwen3_xml,
    parallel_calls=True,
    seam="=",
    told_by=(IM_END, TAG, FUNCTION, _PARAMETER),
    tool_parser="qwen3_coder",
)

# Of Qwen3.5 and 3.6 without `enable_thinking=False`.
QWEN3_XML_THINKING = with_open_thinking(
    QWEN3_XML,
    executed_calls=lambda completion, tools=None: executed_qwen3_xml(answer_for_server(completion), tools),
    reasoning_parser="qwen3",
)
