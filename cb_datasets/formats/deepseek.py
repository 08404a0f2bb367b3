"""The format of DeepSeek V3.1, without fences and types around its calls:

    I'll look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search_web<｜tool▁sep｜>{"query": "tides"}<｜tool▁call▁end｜>
    <｜tool▁calls▁end｜><｜end▁of▁sentence｜>

(without the line break). Where it thinks, its prompts end inside the thinking, and the answer follows `</think>`
directly. vLLM's `deepseek_v31` parser takes every call that has no line break in it, in a block or not, and whatever
its arguments are.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from .json_text import LENIENT_JSON, JsonFault, bare_call_form, dump_json, read_json_value
from .thinking import with_open_thinking
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call


_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEP, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_END, _THINK, _THINK_END = "<｜end▁of▁sentence｜>", "<think>", "</think>"
_TAGS = re.compile(_CALLS)
_BLANKS = re.compile(r"\s*+")
_HEADER = re.compile(rf"{_CALL}(?P<name>[^\s<](?:[^<\n]*[^\s<])?){_SEP}\s*+")
_CALL_CLOSED = re.compile(rf"\s*+{_CALL_END}\s*+")
# DeepSeek V3 and R1 write `function<｜tool▁sep｜>search_web`, and the arguments in a fence.
_V3_SYNTAX = re.compile(rf"(?:{_CALL})?+\s*+function{_SEP}[^\n<]++\n```")
_FUNCTION_SYNTAX = re.compile(r"[A-Za-z_][\w.]*+\(")


def render_deepseek(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, with optional text before it."""
    written = f"{_CALL}{call.name}{_SEP}{dump_json(call.arguments)}{_CALL_END}"
    return f"{text_before}{_CALLS}{written}{_CALLS_END}{_END}"


def render_deepseek_text(text: str) -> str:
    """The completion that says `text`."""
    return text + _END


def parse_deepseek(completion: str, tools: str | None = None) -> Parsed:
    """Parse a completion of DeepSeek V3.1 that does not think; never raises."""
    body, closed, after = completion.partition(_END)
    end = closed or None
    tag = body.find(_CALLS)
    starts = tuple(match.start() for match in _TAGS.finditer(completion))
    if tag < 0:
        return _parse_without_tag(body, after, end, starts)
    diagnosis, calls, name = _read_calls(body, tag + len(_CALLS))
    if diagnosis == Diagnosis.OK and (end is None or after.strip()):
        diagnosis = Diagnosis.JSON_INCOMPLETE if end is None else Diagnosis.TRAILING_TEXT
    parsed = Parsed(diagnosis, tuple(calls), body[:tag].strip(), end, call_starts=starts)
    return replace(parsed, call_span=(tag, len(body) + len(_END)), name_span=name) if parsed.is_call else parsed


def executed_deepseek(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `deepseek_v31` parser finds them; never raises."""
    return _executed(completion.partition(_END)[0])


def executed_deepseek_thinking(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The same after vLLM's `deepseek_r1` parser, for which thinking begins at the first `<think>` if there is one."""
    before, opened, thought = completion.partition(_END)[0].partition(_THINK)
    _, _, answer = (thought if opened else before).partition(_THINK_END)
    return _executed(answer)


def _parse_without_tag(body: str, after: str, end: str | None, starts: tuple[int, ...]) -> Parsed:
    at = body.find(_CALL)
    if at >= 0:
        diagnosis, calls, _ = _read_calls(body.rstrip().removesuffix(_CALLS_END) + _CALLS_END, at)
        diagnosis = Diagnosis.NO_TAG if diagnosis == Diagnosis.OK else diagnosis
        return Parsed(diagnosis, tuple(calls), body[:at].strip(), end, call_starts=starts)
    if after.strip():
        diagnosis = Diagnosis.TRAILING_TEXT
    elif not body.strip():
        diagnosis = Diagnosis.EMPTY
    else:
        diagnosis = bare_call_form(body) or Diagnosis.TEXT
    return Parsed(diagnosis, text=body.strip(), end=end, call_starts=starts)


def _read_calls(text: str, at: int) -> tuple[Diagnosis, list[ToolCall], tuple[int, int] | None]:
    """The calls of a block that begins at `at`, after its tag, and the place of the last one's name."""
    calls: list[ToolCall] = []
    name = None
    at = _after_blanks(text, at)
    while not text.startswith(_CALLS_END, at):
        header = None if _V3_SYNTAX.match(text, at) else _HEADER.match(text, at)
        if header is None:
            return _fault_at(text, at), calls, None
        try:
            arguments, at = read_json_value(text, header.end())
        except JsonFault as fault:
            return fault.diagnosis, calls, None
        if not isinstance(arguments, dict):
            return Diagnosis.BAD_ARGUMENTS, calls, None
        calls.append(ToolCall(header["name"], arguments))
        name = header.span("name")
        closed = _CALL_CLOSED.match(text, at)
        if closed is None:
            is_cut_off = _after_blanks(text, at) == len(text) or text.startswith((_CALL, _CALLS_END), at)
            return Diagnosis.JSON_INCOMPLETE if is_cut_off else Diagnosis.TRAILING_TEXT, calls, None
        at = closed.end()
    rest = text[at + len(_CALLS_END) :]
    if rest.strip():
        return Diagnosis.MULTI_TAG if _CALLS in rest else Diagnosis.TRAILING_TEXT, calls, None
    if not calls:
        return Diagnosis.BAD_ARGUMENTS, calls, None
    return Diagnosis.MULTI_CALL if len(calls) > 1 else Diagnosis.OK, calls, name


def _fault_at(text: str, at: int) -> Diagnosis:
    """What is wrong with a text in place of a call."""
    if _V3_SYNTAX.match(text, at) or _FUNCTION_SYNTAX.match(text, at):
        return Diagnosis.FUNCTION_SYNTAX
    if text.startswith(_CALL, at):
        # A name that is not there, or has blanks or signs in it that no name has.
        return Diagnosis.BAD_ARGUMENTS if text.find(_SEP, at) >= 0 else Diagnosis.JSON_INCOMPLETE
    return Diagnosis.JSON_INCOMPLETE if at == len(text) else Diagnosis.BAD_JSON


def _after_blanks(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    assert blanks is not None  # it matches anything
    return blanks.end()


def _executed(content: str) -> tuple[ToolCall, ...]:
    if _CALLS not in content:
        return ()
    try:
        calls = [executed_call(name, LENIENT_JSON.decode(arguments)) for name, arguments in _served_calls(content)]
    except (ValueError, RecursionError):
        return ()
    return tuple(call for call in calls if call is not None)


def _served_calls(content: str) -> Iterator[tuple[str, str]]:
    """The name of each call, and the text of its arguments. No call goes over the end of a line."""
    for line in content.split("\n"):
        at = 0
        while (start := line.find(_CALL, at)) >= 0:
            separator = line.find(_SEP, start + len(_CALL))
            end = line.find(_CALL_END, separator + len(_SEP)) if separator >= 0 else -1
            if end < 0:
                break
            yield line[start + len(_CALL) : separator], line[separator + len(_SEP) : end]
            at = end + len(_CALL_END)


DEEPSEEK = ToolCallFormat(
    name="deepseek",
    call_tag=_CALLS,
    call_end=_END,
    turn_end=_END,
    user_turn=f"{_END}<｜User｜>",
    tokens=(_CALLS, _CALL, _SEP, _CALL_END, _CALLS_END, _END),
    begins_like_call=re.compile(r"[\w.:/-]++\s*+(?:[\w.:/-]++\s*+)?(?:\{|```|\Z)"),
    render=render_deepseek,
    render_text=render_deepseek_text,
    parse=parse_deepseek,
    executed_calls=executed_deepseek,
    parallel_calls=True,
    told_by=(_CALLS, _SEP),
    tool_parser="deepseek_v31",
)

DEEPSEEK_THINKING = with_open_thinking(
    DEEPSEEK,
    executed_calls=executed_deepseek_thinking,
    reasoning_parser="deepseek_r1",
    no_thinking=_THINK_END,
)
