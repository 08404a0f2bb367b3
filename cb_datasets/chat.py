"""The one renderer: messages, tools and a tokenizer in, token ids out.

Generation, training, preflight and evaluation all come here, so a model is trained on exactly the ids it is asked
with:

    prompt      <|begin_of_text|>...<|start_header_id|>assistant<|end_header_id|>\\n\\n     the tokenizer's chat
    template completion  <|python_tag|>{"name": "read_file", "parameters": {...}}<|eom_id|>         verbatim, as
    generated

The two are encoded apart and joined: a template would render the call without its tag, and joint encoding could merge
tokens across the seam. The loss mask is "after the prompt's tokens", nothing else.
"""

import hashlib
import json
from typing import TYPE_CHECKING, cast


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates print today's date unless told otherwise; data made on two days must not differ.
DATE_STRING = "26 Jul 2024"

# Rows longer than this many tokens are dropped by name; nothing is ever truncated.
MAX_LENGTH = 8192

# Private-use characters that mark an injection while its message is rendered.
_SPAN_START, _SPAN_END = "\ue000", "\ue001"


def template_messages(messages: list[dict]) -> list[dict]:
    """Messages as chat templates expect them.

    Absent fields are absent rather than null, arguments are objects, and parallel calls are written as call/result
    pairs one after another, because Llama 3.1 and its kin refuse an assistant turn with more than one call. Results
    are paired with calls by order: ids are empty or repeated in real traces.
    """
    out: list[dict] = []
    waiting: list[dict] = []  # calls of the last assistant turn whose results have not been placed yet
    for message in messages:
        if message["role"] == "tool":
            if waiting:
                out.append(waiting.pop(0))
            out.append({"role": "tool", "content": message["content"] or "", **_named(message)})
            continue
        out.extend(waiting)
        waiting = []
        if message["tool_calls"]:
            waiting = [_call_turn(message, call) for call in message["tool_calls"]]
        else:
            out.append({"role": message["role"], "content": message["content"] or ""})
    return out + waiting


def _named(message: dict) -> dict:
    return {key: message[key] for key in ("tool_call_id", "name") if message[key]}


def _call_turn(message: dict, call: dict) -> dict:
    function = {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
    turn = {"role": "assistant", "tool_calls": [{"id": call["id"], "type": "function", "function": function}]}
    if message["content"]:
        turn["content"] = message["content"]
    return turn


def render_prompt(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING) -> str:
    """Text of a prompt, up to and including the header of the turn to be written.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer, with its chat template.
        row (`dict`): A prompt or a sample: `messages` and `tools` are read.
        date_string (`str`, *optional*, defaults to [`DATE_STRING`]): The date that the template prints.
    """
    text = tokenizer.apply_chat_template(
        template_messages(row["messages"]),
        tools=json.loads(row["tools"]) if row["tools"] else None,
        add_generation_prompt=True,
        date_string=date_string,
        tokenize=False,
    )
    return cast(str, text)


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING) -> list[int]:
    """Token ids of a prompt. The template writes the BOS token itself, so none is added."""
    return tokenizer(render_prompt(tokenizer, row, date_string), add_special_tokens=False)["input_ids"]


def encode_completion(tokenizer: "PreTrainedTokenizerBase", assistant_raw: str) -> list[int]:
    """Token ids of a completion, its special tokens included and none added."""
    return tokenizer(assistant_raw, add_special_tokens=False)["input_ids"]


def encode_sample(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING) -> dict:
    """`{"prompt_ids", "completion_ids"}` of a sample; training concatenates them and masks the first."""
    return {
        "prompt_ids": encode_prompt(tokenizer, row, date_string),
        "completion_ids": encode_completion(tokenizer, row["assistant_raw"]),
    }


def injection_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING
) -> list[tuple[int, int]]:
    """Token ranges `[start, end)` of the prompt that show the row's injection, in prompt order.

    Templates trim, quote and escape contents, so character offsets of a message are not offsets of the prompt. Each
    span is marked in the message, the marked prompt is rendered, and the marks are read off and taken out again.

    Raises:
        ValueError: If the template does not print a span exactly once.
    """
    marked = {**row, "messages": _mark(row["messages"], row["injection"])}
    text, starts, ends = "", [], []
    for character in render_prompt(tokenizer, marked, date_string):
        if character == _SPAN_START:
            starts.append(len(text))
        elif character == _SPAN_END:
            ends.append(len(text))
        else:
            text += character
    if not len(starts) == len(ends) == len(row["injection"]):
        raise ValueError(f"{row['id']}: the chat template prints {len(starts)} of {len(row['injection'])} injections.")
    if text != render_prompt(tokenizer, row, date_string):
        raise ValueError(f"{row['id']}: the chat template alters a message when its injection is marked.")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [_tokens_of(encoding["offset_mapping"], start, end) for start, end in zip(starts, ends, strict=True)]


def _mark(messages: list[dict], spans: list[dict]) -> list[dict]:
    contents = [message["content"] for message in messages]
    for span in sorted(spans, key=lambda span: -span["start"]):
        text = contents[span["message"]]
        inside = _SPAN_START + text[span["start"] : span["end"]] + _SPAN_END
        contents[span["message"]] = text[: span["start"]] + inside + text[span["end"] :]
    return [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]


def _tokens_of(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    inside = [index for index, (left, right) in enumerate(offsets) if left < end and right > start]
    return inside[0], inside[-1] + 1


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Short hash of the chat template; data and model must agree on it."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()[:12]
