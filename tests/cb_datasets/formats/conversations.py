"""Conversations with tools, as tests with real tokenizers write them, and what is checked of them in every format."""

from collections.abc import Iterator

from builders.trace import message, tool_call
from cb_datasets.chat import encode_prompt, injection_tokens
from cb_datasets.checks.preflight import TargetTokenizer, row_faults
from cb_datasets.formats import ToolCall, format_of
from cb_datasets.sets.make_sample import make_sample
from cb_datasets.template_probe import template_hash

from ..conftest import INJECTION


SEARCH = ToolCall("search_web", {"query": "tides"})


def asked(prompt: dict, *messages: dict) -> dict:
    return {**prompt, "messages": [*prompt["messages"], *messages], "injection": []}


def history(text: str | None, names: tuple[str, ...], results: tuple[str, ...]) -> list[dict]:
    calls = [tool_call(name, {"query": "tides", "n": 3}, f"call_{number}") for number, name in enumerate(names)]
    return [message("assistant", text, calls), *(message("tool", each) for each in results)]


def shown_spans(tokenizer, prompt: dict, result: str) -> Iterator[str]:
    """The tokens of spans in a tool result, as text: of the injection that it has, and of more around it."""
    turns = [*prompt["messages"], *history(None, ("search_web",), (result,))]
    start = result.index(INJECTION)
    tight = {"message": len(turns) - 1, "start": start, "end": start + len(INJECTION)}
    for span in (tight, {**tight, "start": 0, "end": len(result)}, {**tight, "end": len(result)}):
        row = {**prompt, "messages": turns, "injection": [span]}
        [(first, last)] = injection_tokens(tokenizer, row)
        yield tokenizer.decode(encode_prompt(tokenizer, row)[first:last])


def sample_faults(
    tokenizer, row: dict, completion: str, provenance: dict, priority_class: str = "tool_capability"
) -> list[str]:
    """Faults that preflight finds in the sample of a prompt and a completion."""
    tool_format = format_of(tokenizer)
    rendering = {"prompt_format": tool_format.name, "template_hash": template_hash(tokenizer)}
    sample = make_sample(
        row,
        completion,
        id_prefix="retain/x",
        split="train",
        priority_class=priority_class,
        tool_format=tool_format,
        provenance=provenance | rendering,
    )
    return row_faults(sample, TargetTokenizer(tokenizer), 8192)[0]
