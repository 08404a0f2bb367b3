"""The format of gpt-oss, whose turns are messages on channels:

    thinking   <|channel|>analysis<|message|>We need tides.<|end|><|start|>assistant
    a call     <|channel|>commentary to=functions.search_web <|constrain|>json<|message|>{"query": "tides"}<|call|>
    an answer  <|channel|>final<|message|>High tide at 5.<|return|>

A message with a recipient is a call; other messages are words, those before a call on `commentary`. Prompts end with
`<|start|>assistant`, so a turn begins after it, and so does a call after thinking or words.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from .json_text import JsonFault, dump_json, first_of, read_json_value
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call


_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_END, _CALL, _RETURN = "<|end|>", "<|call|>", "<|return|>"
_OPENING = f"{_START}assistant"
_FUNCTIONS = "functions."

# Models write the recipient on either side of the channel.
_HEADER = re.compile(
    r"(?: to=(?P<before>[^\s<]+))?<\|channel\|>(?P<channel>analysis|commentary|final)(?: to=(?P<after>[^\s<]+))?"
    r"(?: json| code| ?<\|constrain\|>json)?"
)
_NOT_BLANK = re.compile(r"\S")

_SERVED_CHANNEL = re.compile(r"<\|channel\|>([^\s<]*)")
_SERVED_PART = re.compile(r"[^ \t\n\r\f]+")
_ROLES = ("assistant", "user", "system", "developer", "tool")
# The model's own tools.
_BUILT_IN = ("python", "browser", "container")


class _Message(NamedTuple):
    """A message of a turn, which begins at character `at`.

    The content is `None` if the header does not end; what does not open as a message does is such a header.
    """

    at: int
    header: str
    content: str | None
    closed: bool

    @property
    def fields(self) -> re.Match[str] | None:
        """The fields of a well-formed header."""
        match = _HEADER.fullmatch(self.header)
        return None if match is None or (match["before"] and match["after"]) else match

    @property
    def is_call(self) -> bool:
        return " to=" in self.header

    @property
    def is_thinking(self) -> bool:
        return not self.is_call and self.fields is not None and self.fields["channel"] == "analysis"

    @property
    def text(self) -> str:
        """What it says; a header that does not end may be the words of a model without channels."""
        return (self.header if self.content is None else self.content).strip()

    @property
    def name_span(self) -> tuple[int, int] | None:
        """Characters of the tool's name in the completion; `None` if the recipient is no function."""
        fields = self.fields
        group = "after" if fields is not None and fields["after"] else "before"
        if fields is None or not (fields[group] or "").startswith(_FUNCTIONS):
            return None
        start, end = fields.span(group)
        return (self.at + start + len(_FUNCTIONS), self.at + end) if end - start > len(_FUNCTIONS) else None


def render_harmony(call: ToolCall, text_before: str = "") -> str:
    """The completion that makes `call`, with optional text before it."""
    words = f"{_CHANNEL}commentary{_MESSAGE}{text_before}{_END}{_OPENING}" if text_before else ""
    header = f"{_CHANNEL}commentary to={_FUNCTIONS}{call.name} {_CONSTRAIN}json{_MESSAGE}"
    return f"{words}{header}{dump_json(call.arguments)}{_CALL}"


def render_harmony_text(text: str) -> str:
    """The completion that says `text`."""
    return f"{_CHANNEL}final{_MESSAGE}{text}{_RETURN}"


def parse_harmony(completion: str, tools: str | None = None) -> Parsed:
    """Parse a completion of gpt-oss; never raises.

    The answer begins at the name of its channel, the first token that decides between a call and words.
    """
    end_at, end = first_of((_CALL, _RETURN), completion)
    messages = [*_messages(completion[:end_at])]
    thoughts = [each for each in messages if each.is_thinking]
    thinking = "\n".join(each.text for each in thoughts)
    if thoughts and not thoughts[-1].closed:
        return Parsed(Diagnosis.THINKING, end=end, thinking=thinking, answer_start=len(completion))
    answer_start = _answer_start(completion, messages, end_at)
    called = [each for each in messages if each.is_call]
    words = [each for each in messages if not each.is_call and not each.is_thinking]
    trails = _NOT_BLANK.search(completion, end_at + len(end or "")) is not None
    if not called:
        diagnosis, text = _diagnosis_of_words(words, trails), "\n".join(each.text for each in words).strip()
        return Parsed(diagnosis, (), text, end, thinking=thinking, answer_start=answer_start)
    read = [_read_call(each) for each in called]
    diagnosis = read[0][0] if len(called) == 1 else Diagnosis.MULTI_CALL
    if diagnosis == Diagnosis.OK:
        if trails or not messages[-1].is_call:
            diagnosis = Diagnosis.TRAILING_TEXT
        elif any(each.fields is None for each in messages):
            diagnosis = Diagnosis.BAD_JSON
        elif end != _CALL or called[0].closed:
            diagnosis = Diagnosis.JSON_INCOMPLETE
    is_call = diagnosis == Diagnosis.OK
    return Parsed(
        diagnosis,
        tuple(call for _, call in read if call is not None),
        "\n".join(each.text for each in words if each.at < called[0].at).strip(),
        end,
        call_span=(called[0].at, end_at + len(_CALL)) if is_call else None,
        name_span=called[0].name_span if is_call else None,
        call_starts=tuple(each.at for each in called),
        thinking=thinking,
        answer_start=answer_start,
    )


def executed_harmony(completion: str, tools: str | None = None) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM makes them of what OpenAI's parser reads; never raises.

    Every message to a recipient that is none of the model's own tools is a call, with or without its end token, on
    any channel and with any content type. A header that cannot be read takes its message with it, not the others.
    """
    turn = completion[: first_of((_CALL, _RETURN), completion)[0]]
    try:
        found = [
            executed_call(recipient.removeprefix(_FUNCTIONS), content)
            for recipient, content in _served_messages(turn)
            if recipient not in ("", "assistant", _FUNCTIONS)
            and not recipient.startswith("<|")
            and recipient.split(".", 1)[0] not in _BUILT_IN
        ]
    except (ValueError, RecursionError):
        return ()
    return tuple(call for call in found if call is not None)


def _messages(turn: str) -> Iterator[_Message]:
    """The messages of a turn without its end token."""
    at = 0
    while (header_end := turn.find(_MESSAGE, at)) >= 0:
        content_at = header_end + len(_MESSAGE)
        end = turn.find(_END, content_at)
        yield _Message(at, turn[at:header_end], turn[content_at : None if end < 0 else end], end >= 0)
        at = len(turn) if end < 0 else end + len(_END)
        if not turn.startswith(_OPENING, at):
            break
        at += len(_OPENING)
    if at < len(turn):
        yield _Message(at, turn[at:], None, False)


def _answer_start(completion: str, messages: list[_Message], end_at: int) -> int:
    """Where the answer begins: after the last message of thinking and what opens the next message."""
    at = end_at
    for message in reversed(messages):
        if message.is_thinking:
            break
        at = message.at
    return at + len(_CHANNEL) if completion.startswith(_CHANNEL, at) else at


def _diagnosis_of_words(words: list[_Message], trails: bool) -> Diagnosis:
    if not any(each.text for each in words):
        return Diagnosis.EMPTY
    if words[0].content is None:
        return Diagnosis.JSON_INCOMPLETE if words[0].header.startswith(_CHANNEL) else Diagnosis.BAD_JSON
    if words[0].fields is None:
        return Diagnosis.BAD_JSON
    return Diagnosis.TRAILING_TEXT if trails or any(each.fields is None for each in words) else Diagnosis.TEXT


def _read_call(message: _Message) -> tuple[Diagnosis, ToolCall | None]:
    if message.content is None:
        return Diagnosis.BAD_JSON if _MESSAGE in message.header else Diagnosis.JSON_INCOMPLETE, None
    fields, name = message.fields, message.name_span
    if fields is None or fields["channel"] == "final":
        return Diagnosis.BAD_JSON, None
    if name is None:
        return Diagnosis.BAD_ARGUMENTS, None
    content = message.content.strip(" \t\n\r")
    try:
        arguments, at = read_json_value(content, 0)
    except JsonFault as fault:
        return fault.diagnosis, None
    if not isinstance(arguments, dict):
        return Diagnosis.BAD_ARGUMENTS, None
    call = ToolCall(message.header[name[0] - message.at : name[1] - message.at], arguments)
    return Diagnosis.OK if at == len(content) else Diagnosis.TRAILING_TEXT, call


def _served_messages(turn: str) -> Iterator[tuple[str, str]]:
    """Recipient, which may be empty, and content of the assistant's messages that OpenAI's parser reads in a turn."""
    at, role = 0, _ROLES[0]  # the prompt names the first message's
    while at >= 0 and (header_end := turn.find(_MESSAGE, at)) >= 0:
        content_at = header_end + len(_MESSAGE)
        end = content_at
        if (header := _served_header(turn[at:header_end], role)) is not None:
            end = turn.find(_END, content_at)
            end = len(turn) if end < 0 else end
            if header[0] == _ROLES[0]:
                yield header[1], turn[content_at:end]
            role = ""
        at = turn.find(_START, end)
        at = at if at < 0 else at + len(_START)


def _served_header(header: str, role: str) -> tuple[str, str] | None:
    """Role and recipient of a header, as OpenAI's parser reads it; `None` if it cannot. The recipient may be empty.

    The role of the turn, if it is still open, holds for a header without one.
    """
    channel = _SERVED_CHANNEL.search(header)
    if channel is not None and not channel[1]:
        return None
    header = _SERVED_CHANNEL.sub("", header)
    parts = _SERVED_PART.findall(header.strip().replace(_CONSTRAIN, f" {_CONSTRAIN}"))
    if not role:
        if not parts:
            return None
        role = parts[0]
        if role not in _ROLES:
            if len(parts) == 1 and not role.startswith("to="):
                return None
            role, parts = "tool", parts[1:]
    if parts and parts[0] == role:
        parts = parts[1:]
    if parts and not parts[-1].startswith("to=") and (len(parts) > 1 or parts[0].startswith(_CONSTRAIN)):
        parts = parts[:-1]  # the content type
    if len(parts) > 1:
        return None
    return role, parts[0].removeprefix("to=") if parts else ""


HARMONY = ToolCallFormat(
    name="harmony",
    call_tag=f"{_CHANNEL}commentary to={_FUNCTIONS}",
    call_end=_CALL,
    turn_end=_RETURN,
    user_turn=f"{_END}<|start|>user{_MESSAGE}",
    tokens=(_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END, _CALL, _RETURN),
    # Possessive: letters of the recipient are not tried as a content type, one after the other.
    begins_like_call=re.compile(r"(?:\w++\s++)?to=(?:\S++\s*+(?:\w++\s++){0,2}+(?:\{|\Z)|\S+\{)"),
    render=render_harmony,
    render_text=render_harmony_text,
    parse=parse_harmony,
    executed_calls=executed_harmony,
    told_by=(_CHANNEL, _CALL),
    seam=".",
    tool_parser="openai",
    reasoning_parser="openai_gptoss",
)
