"""The types that all tool-call formats share: a call, a parsed completion, and a format."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Diagnosis(StrEnum):
    """The form of a completion."""

    OK = "ok"  # exactly one call, well formed; text before the tag is allowed
    TEXT = "text"  # no call at all
    EMPTY = "empty"
    MULTI_CALL = "multi_call"
    MULTI_TAG = "multi_tag"  # more than one call tag
    NO_TAG_JSON = "no_python_tag_json"  # a call without the tag
    JSON_INCOMPLETE = "json_incomplete"
    BAD_JSON = "bad_json"  # duplicate keys, NaN, or not JSON
    BAD_ARGUMENTS = "bad_arguments"  # no name, or no object under "parameters"
    FUNCTION_SYNTAX = "function_syntax"  # name(args) instead of JSON
    TRAILING_TEXT = "trailing_text"


@dataclass(frozen=True)
class ToolCall:
    """A call made by a model. `arguments` is the decoded object."""

    name: str
    arguments: dict[str, Any]


def executed_call(name: Any, arguments: Any) -> ToolCall | None:
    """The call that a client makes of what a server's parser found; `None` if it can make none.

    A server sends arguments as text, which the client decodes to an object; some models write text themselves.

    Raises:
        ValueError: If the server itself fails: the name is no text, or there is a character that UTF-8 cannot write.
        RecursionError: If the arguments are nested too deeply.
    """
    if not isinstance(name, str):
        raise ValueError(f"the name {name!r} is no text")
    (name + json.dumps(arguments, ensure_ascii=False)).encode()
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return ToolCall(name, arguments) if isinstance(arguments, dict) else None


@dataclass(frozen=True)
class Parsed:
    """A parsed completion.

    Args:
        diagnosis ([`Diagnosis`]): Its form.
        calls (`tuple[ToolCall, ...]`): Its calls; for a malformed completion those that could still be parsed.
        text (`str`): The plain text before the call, or the whole text where there is none.
        end (`str`, *optional*): The end token; `None` if it was cut off.
        call_span, name_span (`tuple[int, int]`, *optional*): Characters `[start, end)` of the completion that are its
            call, from the tag to the end token, and of its tool's name. Only where there is one well-formed call.
    """

    diagnosis: Diagnosis
    calls: tuple[ToolCall, ...] = ()
    text: str = ""
    end: str | None = None
    call_span: tuple[int, int] | None = None
    name_span: tuple[int, int] | None = None

    @property
    def is_call(self) -> bool:
        """Whether this is one well-formed call, the only form that counts as a call in training data."""
        return self.diagnosis == Diagnosis.OK


@dataclass(frozen=True)
class ToolCallFormat:
    """A format: data plus three functions.

    Args:
        name (`str`): Its name, as stored in `provenance.prompt_format`.
        call_tag (`str`): Special token that opens a call.
        call_end, turn_end (`str`): Tokens that end a turn with a call, and any other turn. A generator stops on both.
        render (`Callable`): `(call, text_before) -> completion`, end token included.
        parse (`Callable`): `completion -> Parsed`, strictly: the form of a completion.
        executed_calls (`Callable`): `completion -> calls` that the format's server would execute: its effect.
    """

    name: str
    call_tag: str
    call_end: str
    turn_end: str
    render: Callable[[ToolCall, str], str] = field(repr=False)
    parse: Callable[[str], Parsed] = field(repr=False)
    executed_calls: Callable[[str], tuple[ToolCall, ...]] = field(repr=False)

    @property
    def end_tokens(self) -> tuple[str, str]:
        return self.call_end, self.turn_end

    def call_head(self, tool: str) -> str:
        """The beginning of a call of `tool`, up to the end of its name: a prefill that leaves the model little choice.

        Many tokenizers join the characters that follow (a quote, a colon, a brace) into one token, so a longer head
        would not be encoded as a model writes it.
        """
        empty = self.render(ToolCall(tool, {}), "")
        return empty[: empty.index(tool) + len(tool)]
