"""Calls checked against the schemas of the tools that a row offers, see [`~builders.tool_schema.ToolSchema`]."""

from functools import lru_cache

from builders.tool_schema import ToolSchema

from .arguments import parameter_schemas
from .formats import ToolCall


@lru_cache(maxsize=4096)
def schemas_of(tools: str | None) -> dict[str, ToolSchema]:
    """The schemas of the tools, by tool name. Cached, because many rows have the same tools.

    Raises:
        ValueError: If the text is not a JSON list of function schemas, or one of these cannot be evaluated.
    """
    return {name: ToolSchema(name, schema) for name, schema in parameter_schemas(tools).items()}


def schema_fault(call: ToolCall, tools: dict[str, ToolSchema]) -> str | None:
    """Describe why a call does not fit the tools, or return `None` if it does.

    Raises:
        ValueError: If the tool's schema takes too long to evaluate.
    """
    if call.name not in tools:
        return f"tool {call.name!r} is not on offer"
    fault = tools[call.name].fault(call.arguments)
    return None if fault is None else f"arguments of {call.name!r} do not fit: {fault}"
