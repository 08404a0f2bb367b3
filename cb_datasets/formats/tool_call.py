"""The types that all tool-call formats share: a call, a parsed completion, and a format."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Diagnosis(StrEnum):
    """The form of a completion, without its thinking."""

    OK = "ok"  # exactly one call, well formed; text before it is allowed where the format allows it
    TEXT = "text"  # no call at all
    EMPTY = "empty"
    MULTI_CALL = "multi_call"
    MULTI_TAG = "multi_tag"  # more than one call tag, where several calls share one
    NO_TAG = "no_tag_json"  # a call without the format's tags
    JSON_INCOMPLETE = "json_incomplete"  # cut off, or without its closing tag or end token
    BAD_JSON = "bad_json"  # duplicate keys, NaN, or not JSON
    BAD_ARGUMENTS = "bad_arguments"  # no name, or no object of arguments
    FUNCTION_SYNTAX = "function_syntax"  # the call syntax of another format, such as name(args)
    LEADING_TEXT = "leading_text"  # text before a call, where the format allows none
    TRAILING_TEXT = "trailing_text"
    THINKING = "thinking_cut_off"  # the turn ends before the thinking does


# Levels of nesting that are read. Python reads and writes about a thousand, and fewer the deeper it is called: without
# a limit of its own, a completion would be a call in one place and an error in another.
MAX_NESTING = 100


@dataclass(frozen=True)
class ToolCall:
    """A call made by a model. `arguments` is the decoded object."""

    name: str
    arguments: dict[str, Any]


def is_too_deep(value: Any, levels: int = MAX_NESTING) -> bool:
    """Whether a JSON value has more levels of objects and lists."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        is_too_deep(each, levels - 1) for each in (value.values() if isinstance(value, dict) else value)
    )


def executed_call(name: Any, arguments: Any) -> ToolCall | None:
    """The call that a client makes of what a server's parser found; `None` if it can make none.

    A server sends arguments as text, which the client decodes to an object; some models write text themselves.

    Raises:
        ValueError: If the server itself fails: the name is no text, or there is a character that UTF-8 cannot write;
            if the arguments have more than [`MAX_NESTING`] levels.
        RecursionError: If they have so many that they cannot be written.
    """
    if not isinstance(name, str):
        raise ValueError(f"the name {name!r} is no text")
    (name + json.dumps(arguments, ensure_ascii=False)).encode()
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if is_too_deep(arguments):
        raise ValueError("the arguments are nested too deeply")
    return ToolCall(name, arguments) if isinstance(arguments, dict) else None


@dataclass(frozen=True)
class Parsed:
    """A parsed completion.

    Args:
        diagnosis ([`Diagnosis`]): Its form.
        calls (`tuple[ToolCall, ...]`): Its calls; for a malformed completion those that could still be parsed.
        text (`str`): The plain text before the call, or the whole text where there is none. No thinking.
        end (`str`, *optional*): The end token; `None` if it was cut off.
        call_span, name_span (`tuple[int, int]`, *optional*): Characters `[start, end)` of the completion that are its
            call, from the tag to the end token, and of its tool's name. Only where there is one well-formed call.
        call_starts (`tuple[int, ...]`): Where calls open, well formed or not: the characters at which their tags
            begin. None for a call without a tag.
        thinking (`str`): What the model thought before it answered.
        answer_start (`int`): Where the answer begins: the characters before are thinking.
    """

    diagnosis: Diagnosis
    calls: tuple[ToolCall, ...] = ()
    text: str = ""
    end: str | None = None
    call_span: tuple[int, int] | None = None
    name_span: tuple[int, int] | None = None
    call_starts: tuple[int, ...] = ()
    thinking: str = ""
    answer_start: int = 0

    @property
    def is_call(self) -> bool:
        """Whether this is one well-formed call, the only form that counts as a call in training data."""
        return self.diagnosis == Diagnosis.OK


@dataclass(frozen=True)
class ToolCallFormat:
    """A format: data plus functions. All that the project knows of how a family of models writes calls is in it.

    Args:
        name (`str`): Its name, as stored in `provenance.prompt_format`.
        call_tag (`str`): What opens a call.
        call_end, turn_end (`str`): Tokens that end a turn with a call, and any other turn. A generator stops on both.
        other_ends (`tuple[str, ...]`, *optional*): Further tokens with which the model may end a turn.
        user_turn (`str`): What ends a turn and opens the user's, as a chat template writes it. An attacker writes it
            as text, see `sets/forged_turn.py`.
        tokens (`tuple[str, ...]`): All control tokens that completions hold: ends, tags of calls, separators.
        begins_like_call (`re.Pattern`): Matches at the beginning of a call, after the control tokens have been
            replaced by blanks: what does not match and makes no call is gibberish rather than a malformed call.
        render (`Callable`): `(call, text_before) -> completion`, end token included. Where `text_before_call` is
            false, the text is left out.
        render_text (`Callable`): `text -> completion`: a turn of words, end token included.
        parse (`Callable`): `(completion, tools=None) -> Parsed`, strictly: the form of a completion; never raises.
            `tools` is the JSON text of the schemas offered, which only formats of untyped arguments read.
        executed_calls (`Callable`): `(completion, tools=None) -> calls` that the format's server would execute: its
            effect; never raises.
        seam (`str`, *optional*, defaults to `""`): Characters before a tool's name that tokenizers join with it. A
            call that is begun for a model and ends before the name ends before these.
        text_before_call (`bool`, *optional*, defaults to `True`): Whether a turn may have text before its call.
        parallel_calls (`bool`, *optional*, defaults to `False`): Whether templates write several calls of one turn.
            Otherwise the history has them as pairs of call and result.
        call_id (`Callable`, *optional*): `number of the call in the conversation -> id`, for templates that demand
            ids of a certain form.
        told_by (`tuple[str, ...]`): Texts that all templates of the format contain.
        not_told_by (`tuple[str, ...]`, *optional*): Texts that none of them contains.
        tool_parser, reasoning_parser (`str`, *optional*): The server's parsers, as vLLM's flags name them.
    """

    name: str
    call_tag: str
    call_end: str
    turn_end: str
    user_turn: str
    tokens: tuple[str, ...]
    begins_like_call: re.Pattern[str]
    render: Callable[[ToolCall, str], str] = field(repr=False)
    render_text: Callable[[str], str] = field(repr=False)
    parse: Callable[..., Parsed] = field(repr=False)
    executed_calls: Callable[..., tuple[ToolCall, ...]] = field(repr=False)
    told_by: tuple[str, ...]
    not_told_by: tuple[str, ...] = ()
    other_ends: tuple[str, ...] = ()
    seam: str = ""
    text_before_call: bool = True
    parallel_calls: bool = False
    call_id: Callable[[int], str] | None = field(default=None, repr=False)
    tool_parser: str | None = None
    reasoning_parser: str | None = None

    @property
    def end_tokens(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.call_end, self.turn_end, *self.other_ends)))

    def call_head(self, tool: str) -> str:
        """The beginning of a call of `tool`, up to the end of its name: a prefill that leaves the model little choice.

        Many tokenizers join the characters that follow (a quote, a colon, a brace) into one token, so a longer head
        would not be encoded as a model writes it.
        """
        empty = self.render(ToolCall(tool, {}), "")
        return empty[: self._name_at(tool, empty) + len(tool)]

    def name_head(self, tool: str) -> str:
        """The beginning of a call of `tool` before its name, cut where tokenizers cut it."""
        empty = self.render(ToolCall(tool, {}), "")
        return empty[: self._name_at(tool, empty)].removesuffix(self.seam)

    def opening(self, text: str) -> str:
        """Text as it stands before a call in a completion; none where the format allows none."""
        completion = self.render(ToolCall("tool", {}), text)
        span = self.parse(completion).call_span
        assert span is not None  # a format parses what it renders
        return completion[: span[0]]

    def _name_at(self, tool: str, completion: str) -> int:
        span = self.parse(completion).name_span
        # A name that no call can have, such as an empty one, does not parse.
        return completion.index(tool) if span is None else span[0]
