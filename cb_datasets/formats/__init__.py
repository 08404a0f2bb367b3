"""Tool-call formats by name, one file each: a call -> completion, and completion -> calls and a diagnosis."""

from .llama3_json import LLAMA3_JSON
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat


__all__ = ["FORMATS", "Diagnosis", "Parsed", "ToolCall", "ToolCallFormat", "format_of", "get_format"]


FORMATS = {tool_format.name: tool_format for tool_format in (LLAMA3_JSON,)}


def get_format(name: str) -> ToolCallFormat:
    """The format of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in FORMATS:
        raise ValueError(f"Unknown tool-call format {name!r}; known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_of(chat_template: str) -> ToolCallFormat:
    """The format of a chat template's model, recognised by its special tokens.

    Raises:
        ValueError: If no known format fits.
    """
    for tool_format in FORMATS.values():
        if tool_format.turn_end in chat_template:
            return tool_format
    raise ValueError(f"The chat template fits none of the tool-call formats {', '.join(FORMATS)}.")
