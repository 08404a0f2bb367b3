"""Conversations in ShareGPT's form, with the calls of LLaMA-Factory, Glaive or Hermes.

    {"conversations": [{"from": "human", "value": "What does the notice say?"},
                       {"from": "function_call", "value": "{\\"name\\": \\"read_file\\", \\"arguments\\": {...}}"},
                       {"from": "observation", "value": "Closed."},
                       {"from": "gpt", "value": "The pool is closed."}],
     "tools": "[{\\"name\\": \\"read_file\\", ...}]"}

    {"from": "gpt", "value": "<functioncall> {\\"name\\": \\"read_file\\", \\"arguments\\": '{...}'} <|endoftext|>"}

    {"from": "gpt", "value": "<tool_call>\\n{\\"name\\": \\"read_file\\", \\"arguments\\": {...}}\\n</tool_call>"}

    {"system": "SYSTEM: You are a helpful assistant with access to the following functions. ...",
     "chat": "USER: What does the notice say?\\n\\n\\nASSISTANT: <functioncall> ... <|endoftext|>\\n\\n\\n..."}

None of them has ids of calls: results answer the calls before them, in order. The tools of Glaive and Hermes are in
the system prompt, among instructions on how to write calls. A target model is told its own format by its chat
template, so these instructions are left out.
"""

import json
import re
from collections import Counter
from typing import Any

from ...json_records import parse_json
from .common import cut_tags, line_of, parse_value, without_nulls
from .openai import calls_in, cut_calls


_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("observation", "tool", "tool_response", "function_response"), "tool"),
    "system": "system",
}
_CALLS = ("function_call", "tool_call")
_GLAIVE_CALL = "<functioncall>"
_GLAIVE_END = re.compile(r"(?:</functioncall>|<\|endoftext\|>)")
# Glaive's calls are no JSON: the text of the arguments is in single quotes.
_GLAIVE_QUOTED = re.compile(r"""\{\s*"name":\s*("[^"]+"),\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)
_GLAIVE_SPEAKER = re.compile(r"^(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_GLAIVE_ROLES = {"USER": "human", "ASSISTANT": "gpt", "FUNCTION RESPONSE": "observation"}
_GLAIVE_PROMPT = " with access to the following functions"
# The first words of Hermes's prompt, which is about its format from there to the end.
_HERMES_PROMPT = "You are a function calling AI model."


def matches(record: dict) -> bool:
    """Whether a record is of this layout."""
    return isinstance(record.get("conversations"), list) or isinstance(record.get("chat"), str)


def read(record: dict, left_out: Counter[str]) -> dict:
    """The line of a trace."""
    if isinstance(record.get("chat"), str) and "conversations" not in record:
        record = {**record, "conversations": _glaive_turns(record["chat"])}
    if not isinstance(record.get("conversations"), list):
        raise ValueError("conversations is missing. Add it.")
    turns: list[tuple[int | None, Any]] = list(enumerate(record["conversations"]))
    if isinstance(record.get("system"), str) and record["system"]:
        turns = [(None, {"from": "system", "value": record["system"]}), *turns]
    tools, messages = record.get("tools") or None, []
    for index, turn in turns:
        where = "system" if index is None else f"conversations[{index}]"
        for message in _messages(turn, where):
            if message["role"] == "system":
                message["content"], in_prompt = _without_tools(message["content"], where, tools is None)
                tools = tools or in_prompt
                left_out["format_prompt"] += message["content"] != turn["value"]
            # The instructions of the format may be all that the system says.
            if message["role"] != "system" or message["content"]:
                messages.append((index, message))
    return line_of(
        record, messages, tools, ("conversations", "chat", "system", "model"), {"generator": record.get("model")}
    )


def _messages(turn: Any, where: str) -> list[dict]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise ValueError(f"{where}.value is missing. Add it.")
    speaker, text = turn.get("from"), turn["value"]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ValueError(f"{where}.from must be one of {', '.join(_ROLES)}; got {str(speaker)[:40]!r}. Correct it.")
    if speaker in _CALLS:
        return [{"role": "assistant", "tool_calls": calls_in(text, where)}]
    if _ROLES[speaker] == "tool":
        return [{"role": "tool", "content": result.strip()} for result in _results(text)]
    if _ROLES[speaker] == "assistant":
        content, calls = _glaive_call(text, where) if _GLAIVE_CALL in text else cut_calls(text, where)
        return [without_nulls({"role": "assistant", "content": content, "tool_calls": calls or None})]
    return [{"role": _ROLES[speaker], "content": text}]


def _results(text: str) -> list[str]:
    """The results in a turn: Hermes gives those of parallel calls in one, each in tags of its own.

    Text beside the tags is a result that forges them, of which all is kept.
    """
    rest, results = cut_tags(text, "tool_response")
    if rest.strip() or not results:
        return [text.strip().removeprefix("<tool_response>").removesuffix("</tool_response>")]
    return results


def _glaive_turns(chat: str) -> list[dict]:
    """The turns of Glaive's text.

    Raises:
        ValueError: If the text does not start with a speaker, or nobody answers.
    """
    before, *rest = _GLAIVE_SPEAKER.split(chat)
    turns = [
        {"from": _GLAIVE_ROLES[speaker], "value": text.replace("<|endoftext|>", "").strip()}
        for speaker, text in zip(rest[::2], rest[1::2], strict=True)
    ]
    if before.strip() or not any(turn["from"] == "gpt" for turn in turns):
        raise ValueError("chat has no lines that start with USER: and ASSISTANT:. Correct it, or give conversations.")
    return turns


def _glaive_call(text: str, where: str) -> tuple[str | None, list[dict]]:
    before, _, written = text.partition(_GLAIVE_CALL)
    written = _GLAIVE_END.split(written, maxsplit=1)[0].strip()
    if quoted := _GLAIVE_QUOTED.fullmatch(written):
        written = f'{{"name": {quoted[1]}, "arguments": {json.dumps(_unquoted(quoted[2]))}}}'
    return before.strip() or None, calls_in(written, where)


def _unquoted(text: str) -> str:
    return text.replace("\\'", "'")


def _without_tools(text: str, where: str, wanted: bool) -> tuple[str, list | None]:
    """A system prompt without the tools of Hermes or Glaive and how to call them, and these tools if `wanted`."""
    if "<tools>" in text:
        before, found, _ = text.partition(_HERMES_PROMPT)
        # The prompt speaks of `<tools></tools>` before it gives them.
        rest, written = cut_tags(text, "tools")
        tools = next((each for each in written if each.strip()), "")
        return (before if found else rest).strip(), _tools_in(tools, where) if wanted else None
    if _GLAIVE_PROMPT in text:
        before, _, rest = text.removeprefix("SYSTEM:").strip().partition(_GLAIVE_PROMPT)
        return f"{before}.", _json_objects(rest[rest.find("{") :], where) if wanted and "{" in rest else None
    return text, None


def _tools_in(written: str, where: str) -> list:
    try:
        tools = parse_value(written)
        tools = [tools] if isinstance(tools, dict) else tools
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ValueError("it is no list of functions")
    except ValueError as error:
        try:
            return _json_objects(written, where)
        except ValueError:
            raise ValueError(
                f"{where}: <tools> holds no functions in JSON ({error}). Correct it, or add tools."
            ) from None
    return tools


def _json_objects(text: str, where: str) -> list[dict]:
    """The JSON objects that stand one after the other."""
    # By position: a copy of the rest for every object would take quadratic time.
    objects, text, at = [], text.strip().rstrip(","), 0
    while at < len(text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
            objects.append(parse_json(text[at:end]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: the functions are no JSON ({error}). Correct them, or add tools.") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where}: the functions are no JSON objects. Correct them, or add tools.")
        at = end
        while at < len(text) and text[at] in " \r\n\t,":
            at += 1
    return objects
