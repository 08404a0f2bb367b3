"""Where a chat template begins a control token that the text after it can complete, found out by rendering.

    {{- '[TOOL_CALLS][' }}{{- '{"name": "' ~ name     `[` begins `[INST]`, but the template itself goes on
    {{- '<' ~ key ~ '>' }}                            `<` begins `<think>`, and so may a key of a tool's schema go on

Every literal of the template that ends inside a control token gets a mark behind it, and every text of a short
conversation one in front. Where a text follows, it can complete the token. A literal that the conversation does not
make the template print is taken for one that text follows.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import Environment

from builders.trace import message, tool_call

from .formats import format_of
from .formats.chat_template import RENDER_ERRORS
from .template_form import template_messages
from .text_marks import map_strings, private_use_characters


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_of_openings",
        "description": "Says what stands before a text.",
        "parameters": {
            "type": "object",
            "properties": {"what_to_say": {"type": "string", "description": "A text.", "enum": ["a", "b"]}},
            "required": ["what_to_say"],
        },
        "unknown": "A key that templates do not know.",
    },
}
_CONVERSATION = [
    message("system", "Be good."),
    message("user", "Hello."),
    message("assistant", "Hello to you."),
    message("user", "Call it twice."),
    message(
        "assistant",
        "I will.",
        [tool_call("probe_of_openings", {"what_to_say": each, "n": [each]}, f"call0000{each}") for each in ("a", "b")],
    ),
    message("tool", "A result.", tool_call_id="call0000a", name="probe_of_openings"),
    message("tool", "Another.", tool_call_id="call0000b", name="probe_of_openings"),
    message("assistant", "Done."),
    message("user", "Thanks."),
]
# The conversation ends here and there, and without tools it has no calls.
_ENDS, _ENDS_WITHOUT_TOOLS = (2, 4, 7, 9), (2, 4)


def text_openings(
    tokenizer: "PreTrainedTokenizerBase", template: str, ends_inside: Callable[[str], bool]
) -> list[str]:
    """The texts of a chat template that end inside a control token, and that other text may follow.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A tokenizer with this template.
        template (`str`): The chat template.
        ends_inside (`Callable`): Whether a text ends with the beginning of a control token.
    """
    marked, literals = _with_marks(template, ends_inside)
    text_mark = next(private_use_characters(marked))
    openings: list[str] = []
    printed: set[str] = set()
    for prompt in _prompts(tokenizer, marked, text_mark):
        printed.update(set(prompt) & set(literals))
        plain = prompt.translate(dict.fromkeys(map(ord, literals)))
        before = (plain[: found.start()] for found in re.finditer(text_mark, plain))
        openings += filter(ends_inside, before)
    return openings + [literal for mark, literal in literals.items() if mark not in printed]


@lru_cache(maxsize=16)
def words_of(chat_template: str) -> frozenset[str]:
    """The names and string literals in a chat template: it looks for roles, types and the like by name."""
    tokens = Environment().lex(chat_template)
    return frozenset(text.strip("'\"") for _, kind, text in tokens if kind in ("name", "string"))


def _with_marks(template: str, ends_inside: Callable[[str], bool]) -> tuple[str, dict[str, str]]:
    """The template with a mark behind each literal that ends inside a control token, and the literal of each mark."""
    unused, literals, pieces = private_use_characters(template), {}, []
    for _, kind, text in Environment().lex(template):
        quote = text[-1:] if kind == "string" else ""
        literal = text.removesuffix(quote)
        if kind in ("data", "string") and ends_inside(literal):
            mark, end = next(unused), len(literal.rstrip())
            literals[mark] = literal[len(quote) :]
            text = literal[:end] + mark + literal[end:] + quote
        pieces.append(text)
    return "".join(pieces), literals


def _prompts(tokenizer: "PreTrainedTokenizerBase", template: str, text_mark: str) -> Iterator[str]:
    """Prompts of the conversation, with a mark in place of the first character of each text."""
    try:
        tool_format = format_of(tokenizer)
    except ValueError:  # of no known format
        return
    words = words_of(str(tokenizer.chat_template))

    def marked(text: str) -> str:
        return text if text in words else text_mark + text[1:]

    tools = map_strings([_TOOL], marked)
    endings = [(end, tools) for end in _ENDS] + [(end, None) for end in _ENDS_WITHOUT_TOOLS]
    for start in (0, 1):  # with a system prompt, and without one
        for end, offered in endings:
            turns = map_strings(template_messages(_CONVERSATION[start:end], tool_format), marked)
            try:
                prompt = tokenizer.apply_chat_template(
                    turns, tools=offered, chat_template=template, add_generation_prompt=True, tokenize=False
                )
            except RENDER_ERRORS:  # `check_template` says what the template cannot write
                continue
            escaped = f"\\u{ord(text_mark):04x}"  # of templates that escape all but ASCII
            yield str(prompt).replace(escaped, text_mark)
