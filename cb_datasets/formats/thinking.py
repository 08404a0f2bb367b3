"""Thinking between tags, before the answer: `<think>The user wants tides.</think>`.

Some models open it themselves, others find it open: their prompt ends inside it. A format of the second kind is that
of the first with `_thinking` at the end of its name, see [`with_open_thinking`].
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat


class Thinking(NamedTuple):
    """The thinking at the beginning of a completion.

    Args:
        text (`str`): What was thought; empty where nothing was.
        end (`int`): Where the answer begins.
        is_cut_off (`bool`): Whether it does not end, so that there is no answer.
    """

    text: str
    end: int
    is_cut_off: bool = False


def split_thinking(completion: str, open_tag: str = "<think>", close_tag: str = "</think>") -> Thinking:
    """Split off the thinking that a completion begins with, tags and the blank lines after it included."""
    start = len(completion) - len(completion.lstrip())
    if not completion.startswith(open_tag, start):
        return Thinking("", 0)
    return _until(completion, start + len(open_tag), close_tag)


def _until(completion: str, start: int, close_tag: str) -> Thinking:
    at = completion.find(close_tag, start)
    if at < 0:
        return Thinking(completion[start:].strip(), len(completion), is_cut_off=True)
    end = at + len(close_tag)
    end += len(completion[end:]) - len(completion[end:].lstrip())
    return Thinking(completion[start:at].strip(), end)


def parse_after_thinking(
    completion: str, thinking: Thinking, end_tokens: tuple[str, ...], parse: Callable[[str], Parsed]
) -> Parsed:
    """A completion without its thinking, parsed; its spans are characters of the whole completion.

    Args:
        completion (`str`): The completion.
        thinking ([`Thinking`]): What it begins with.
        end_tokens (`tuple[str, ...]`): The tokens that end a turn.
        parse (`Callable`): `answer -> Parsed`.
    """
    if thinking.is_cut_off:
        return cut_off(thinking, completion, end_tokens)
    return _moved(parse(completion[thinking.end :]), thinking)


def with_open_thinking(
    tool_format: ToolCallFormat,
    executed_calls: Callable[..., tuple[ToolCall, ...]],
    reasoning_parser: str,
    close_tag: str = "</think>",
    no_thinking: str = "\n</think>\n\n",
) -> ToolCallFormat:
    """The format of models whose prompts end inside the thinking.

    What is rendered closes it at once, as templates write a turn without thinking: one that is recorded, or begun for
    the model, has none.

    Args:
        tool_format ([`ToolCallFormat`]): The format of the answers.
        executed_calls (`Callable`): The calls that a server executes which begins inside the thinking.
        reasoning_parser (`str`): The parser that such a server needs.
        close_tag (`str`): What ends the thinking.
        no_thinking (`str`): What the model writes where it thinks nothing, up to the answer.
    """

    def render(call: ToolCall, text_before: str = "") -> str:
        return no_thinking + tool_format.render(call, text_before)

    def render_text(text: str) -> str:
        return no_thinking + tool_format.render_text(text)

    def parse(completion: str, tools: str | None = None) -> Parsed:
        thinking = _until(completion, 0, close_tag)
        return parse_after_thinking(
            completion, thinking, tool_format.end_tokens, lambda answer: tool_format.parse(answer, tools)
        )

    return replace(
        tool_format,
        name=f"{tool_format.name}_thinking",
        render=render,
        render_text=render_text,
        parse=parse,
        executed_calls=executed_calls,
        reasoning_parser=reasoning_parser,
    )


def cut_off(thinking: Thinking, completion: str, end_tokens: tuple[str, ...]) -> Parsed:
    """A completion that ends inside its thinking."""
    end = next((token for token in end_tokens if completion.rstrip().endswith(token)), None)
    text = thinking.text.removesuffix(end or "").rstrip()
    return Parsed(Diagnosis.THINKING, end=end, thinking=text, answer_start=len(completion))


def _moved(parsed: Parsed, thinking: Thinking) -> Parsed:
    """What was parsed of the answer alone, in the characters of the whole completion."""

    def span(of_answer: tuple[int, int] | None) -> tuple[int, int] | None:
        return of_answer and (of_answer[0] + thinking.end, of_answer[1] + thinking.end)

    return replace(
        parsed,
        call_span=span(parsed.call_span),
        name_span=span(parsed.name_span),
        call_starts=tuple(start + thinking.end for start in parsed.call_starts),
        thinking="\n\n".join(filter(None, (thinking.text, parsed.thinking))),
        answer_start=parsed.answer_start + thinking.end,
    )
