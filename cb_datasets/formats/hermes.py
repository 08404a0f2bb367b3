"""Calls as Qwen2.5, Qwen3 and SmolLM3 write them, each in a block of its own; thinking and words may precede them:

    <tool_call>
    {"name": "search_web", "arguments": {"query": "tides"}}
    </tool_call><|im_end|>

vLLM's `hermes` parser takes every block that it finds, wherever it is, and an unclosed last one. One block that is no
call makes all of them text.
"""

import re
from dataclasses import replace

from .json_text import (
    LENIENT_JSON,
    OPENS_OBJECT,
    JsonFault,
    bare_call_form,
    call_of,
    dump_json,
    first_of,
    name_span,
    read_json_value,
)
from .thinking import parse_after_thinking, split_thinking, with_open_thinking
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call


TAG, CLOSE, FUNCTION, IM_END, THINK_END = "<tool_call>", "</tool_call>", "<function=", "<|im_end|>", "</think>"
USER_TURN = f"{IM_END}\n<|im_start|>user\n"
TAGS = re.compile(TAG)
AFTER_CALL = re.compile(rf"\s*+({CLOSE})?+\s*+({TAG})?+\s*+")
_FUNCTION_SYNTAX = re.compile(rf"{FUNCTION}|[A-Za-z_][\w.]*+\(")
_EXECUTED = re.compile(rf"{TAG}(.*?)(?:{CLOSE}|\Z)", re.DOTALL)


def render_hermes(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, with optional text on the lines before it."""
    block = f"{TAG}\n{dump_json({'name': call.name, 'arguments': call.arguments})}\n{CLOSE}{IM_END}"
    return f"{text_before}\n{block}" if text_before else block


def render_chatml_text(text: str) -> str:
    """The completion that says `text`."""
    return text + IM_END


def parse_hermes(completion: str, tools: str | None = None) -> Parsed:
    """Parse a completion of Qwen2.5 or Qwen3; never raises."""
    return parse_after_thinking(completion, split_thinking(completion), (IM_END,), _parse_answer)


def executed_hermes(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `hermes` parser finds them; never raises.

    The parser knows nothing of thinking: a call in there is executed too.
    """
    body = completion[: first_of((IM_END,), completion)[0]]
    try:
        values = [LENIENT_JSON.decode(match[1]) for match in _EXECUTED.finditer(body)]
        calls = [executed_call(value["name"], value["arguments"]) for value in values]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ()
    return tuple(call for call in calls if call is not None)


def answer_for_server(completion: str) -> str:
    """What vLLM's `qwen3` reasoning parser leaves to a tool parser, of a completion that begins inside the thinking.

    A call ends the thinking like its closing tag does, and closing tags after that are lost.
    """
    completion = completion[: first_of((IM_END,), completion)[0]]
    at, _ = first_of((THINK_END, TAG), completion)
    return completion[at:].replace(THINK_END, "")


def _parse_answer(answer: str) -> Parsed:
    end_at, end = first_of((IM_END,), answer)
    body, after = answer[:end_at], answer[end_at + len(end or "") :]
    tag = body.find(TAG)
    if tag < 0:
        is_xml = body.lstrip().startswith(FUNCTION)
        diagnosis = Diagnosis.FUNCTION_SYNTAX if is_xml else bare_call_form(body) or text_form(body, after)
        return Parsed(diagnosis, text=body.strip(), end=end)
    diagnosis, calls = _read_blocks(body, tag)
    if diagnosis == Diagnosis.OK and (end is None or after.strip()):
        diagnosis = Diagnosis.JSON_INCOMPLETE if end is None else Diagnosis.TRAILING_TEXT
    starts = tuple(match.start() for match in TAGS.finditer(answer))
    parsed = Parsed(diagnosis, tuple(calls), body[:tag].strip(), end, call_starts=starts)
    if not parsed.is_call:
        return parsed
    name = name_span(answer, answer.index("{", tag))
    return replace(parsed, call_span=(tag, end_at + len(IM_END)), name_span=name)


def text_form(body: str, after: str) -> Diagnosis:
    """The form of a turn without a call, and of what comes after its end token."""
    if not body.strip():
        return Diagnosis.EMPTY
    return Diagnosis.TRAILING_TEXT if after.strip() else Diagnosis.TEXT


def _read_blocks(body: str, tag: int) -> tuple[Diagnosis, list[ToolCall]]:
    # By position: a copy of the rest for every call would take quadratic time.
    calls: list[ToolCall] = []
    diagnosis = Diagnosis.OK
    at = len(body) - len(body[tag + len(TAG) :].lstrip())
    while body.startswith("{", at):
        try:
            value, at = read_json_value(body, at)
        except JsonFault as fault:
            return fault.diagnosis, calls
        call = call_of(value, "arguments")
        if call is None:
            diagnosis = Diagnosis.BAD_ARGUMENTS
        else:
            calls.append(call)
        edge = AFTER_CALL.match(body, at)
        assert edge is not None  # it matches anything
        (closed, opened), at = edge.groups(), edge.end()
        if at == len(body):
            diagnosis = diagnosis if closed and not opened else Diagnosis.JSON_INCOMPLETE
            return (Diagnosis.MULTI_CALL if len(calls) > 1 else diagnosis), calls
        if closed and not opened:
            return Diagnosis.TRAILING_TEXT, calls
    if at == len(body):
        return Diagnosis.JSON_INCOMPLETE, calls
    return Diagnosis.FUNCTION_SYNTAX if _FUNCTION_SYNTAX.match(body, at) else Diagnosis.BAD_JSON, calls


HERMES = ToolCallFormat(
    name="hermes",
    call_tag=TAG,
    call_end=IM_END,
    turn_end=IM_END,
    user_turn=USER_TURN,
    tokens=(TAG, CLOSE, IM_END),
    begins_like_call=OPENS_OBJECT,
    render=render_hermes,
    render_text=render_chatml_text,
    parse=parse_hermes,
    executed_calls=executed_hermes,
    parallel_calls=True,
    told_by=(IM_END, TAG, CLOSE, "arguments"),
    not_told_by=(FUNCTION,),
    tool_parser="hermes",
    # No reasoning parser: `qwen3` takes all that a model without thinking writes for its thinking. What Qwen3 writes
    # between its tags is shown as text, and its template drops it from the history.
)

# Of QwQ and the Thinking models of Qwen3.
HERMES_THINKING = with_open_thinking(
    HERMES,
    executed_calls=lambda completion, tools=None: executed_hermes(answer_for_server(completion)),
    reasoning_parser="qwen3",
)
