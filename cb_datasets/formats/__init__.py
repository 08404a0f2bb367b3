"""Tool-call formats by name, one file each: a call -> completion, and completion -> calls and a diagnosis."""

from functools import lru_cache
from typing import TYPE_CHECKING

from .chat_template import RENDER_ERRORS, named_format, own_templates
from .deepseek import DEEPSEEK, DEEPSEEK_THINKING
from .harmony import HARMONY
from .hermes import HERMES, HERMES_THINKING
from .llama3_json import LLAMA3_JSON
from .mistral import MISTRAL_V3, MISTRAL_V11, MISTRAL_V13
from .pythonic import PYTHONIC, PYTHONIC_LLAMA4
from .qwen3_xml import QWEN3_XML, QWEN3_XML_THINKING
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


__all__ = ["CANONICAL", "FORMATS", "Diagnosis", "Parsed", "ToolCall", "ToolCallFormat", "format_of", "get_format"]


_TOLD: tuple[ToolCallFormat, ...] = (
    LLAMA3_JSON,
    HERMES,
    QWEN3_XML,
    HARMONY,
    PYTHONIC,
    PYTHONIC_LLAMA4,
    MISTRAL_V3,
    MISTRAL_V11,
    MISTRAL_V13,
    DEEPSEEK,
)
# Formats of models whose prompts end inside the thinking.
_OPEN_THINKING: tuple[ToolCallFormat, ...] = (
    HERMES_THINKING,
    QWEN3_XML_THINKING,
    DEEPSEEK_THINKING,
)

# The format of rows and records that state none.
CANONICAL = LLAMA3_JSON.name

FORMATS = {tool_format.name: tool_format for tool_format in (*_TOLD, *_OPEN_THINKING)}


def get_format(name: str) -> ToolCallFormat:
    """The format of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in FORMATS:
        raise ValueError(f"Unknown tool-call format {name!r}; known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_of(tokenizer: "PreTrainedTokenizerBase") -> ToolCallFormat:
    """The format of a tokenizer's model: the one decided for its chat template, else the one that the template tells.

    Raises:
        ValueError: If the template tells none, or more than one, or the one decided for it is unknown.
    """
    return _format_of(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=64)
def _format_of(tokenizer: "PreTrainedTokenizerBase", template: str) -> ToolCallFormat:
    name = named_format(template)
    tool_format = _told_by(template) if name is None else get_format(name)
    if _opens_thinking(tokenizer):
        return get_format(f"{tool_format.name.removesuffix('_thinking')}_thinking")
    return tool_format


def _opens_thinking(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether prompts end inside the thinking of the turn to generate."""
    turns = [{"role": "user", "content": "Hello."}]
    try:
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except RENDER_ERRORS:  # `check_template` says what the template cannot write
        return False
    return str(prompt).rstrip().endswith("<think>")


def _told_by(template: str) -> ToolCallFormat:
    fitting = [
        each
        for each in _TOLD
        if all(text in template for text in each.told_by) and not any(text in template for text in each.not_told_by)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = f"fits {' and '.join(each.name for each in fitting)}" if fitting else "tells none that is known"
    raise ValueError(
        f"The chat template {found} as its tool-call format. Name it, one of {', '.join(FORMATS)}: "
        "`cb-datasets tokenizer MODEL --tool-format NAME`. Or take a template of the package, "
        f"`--chat-template NAME`: {', '.join(own_templates())}."
    )
