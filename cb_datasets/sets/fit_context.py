"""Visible pruning of contexts that are too long.

AgentDojo's tool schemas alone take 1.6-5.2k tokens, and tools return whole inboxes. First the tools that neither the
trace nor its attack uses are removed, then older tool results are elided, oldest first:

    {"role": "tool", "content": "[5312 characters left out]", ...}
    provenance.fitted = "tools 28 -> 5; results left out: messages 3, 5"

The system prompt, user messages, messages with the injection, the last message before the completion and the
completion itself never change. A context that still does not fit is dropped with a named reason, never truncated.
"""

import json
from typing import TYPE_CHECKING

from builders.trace import to_json

from ..chat import encode_completion, encode_prompt


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_count(prompt: dict, completion: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Number of tokens of a prompt and its completion."""
    return len(encode_prompt(tokenizer, prompt)) + len(encode_completion(tokenizer, completion))


def tools_used(trace: dict) -> set[str]:
    """The tools that a trace calls, should call, or is attacked for."""
    attack = trace["attack"] or {}
    target_calls = [attack.get("expected_calls"), attack.get("goal_calls")]
    named = {trace["expected_tool"], trace["simulated_tool"]} - {None}
    called = {call["function"]["name"] for message in trace["messages"] for call in message["tool_calls"]}
    return named | called | {call["name"] for calls in target_calls for call in json.loads(calls or "[]")}


def prune_context(
    prompt: dict, completion: str, used: set[str] | None, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict | None:
    """The prompt, pruned as little as possible so that it fits with its completion; `None` if it cannot.

    Args:
        prompt (`dict`): A row of `PROMPT_FEATURES`.
        completion (`str`): The completion.
        used (`set[str]`, *optional*): Names of the tools that are never removed, see [`tools_used`]. With `None`
            nothing is pruned.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        max_length (`int`): Maximum number of tokens of both together.
    """
    over = token_count(prompt, completion, tokenizer) - max_length
    if over <= 0:
        return prompt
    if used is None:
        return None
    fitted, notes = _pruned(prompt, used)
    over = token_count(fitted, completion, tokenizer) - max_length
    elided: list[int] = []
    for index in _older_results(prompt):
        if over <= 0:
            break
        fitted = _elided(fitted, index)
        elided.append(index)
        over = token_count(fitted, completion, tokenizer) - max_length
    if over > 0:
        return None
    if elided:
        notes.append(f"results left out: messages {', '.join(map(str, elided))}")
    return {**fitted, "provenance": {**fitted["provenance"], "fitted": "; ".join(notes)}}


def _pruned(prompt: dict, used: set[str]) -> tuple[dict, list[str]]:
    tools = json.loads(prompt["tools"] or "[]")
    kept = [tool for tool in tools if tool["function"]["name"] in used]
    if len(kept) == len(tools):
        return prompt, []
    return {**prompt, "tools": to_json(kept)}, [f"tools {len(tools)} -> {len(kept)}"]


def _older_results(prompt: dict) -> list[int]:
    """Tool results that may be elided, oldest first."""
    injected = {span["message"] for span in prompt["injection"]}
    return [
        index
        for index, message in enumerate(prompt["messages"][:-1])
        if message["role"] == "tool" and index not in injected and len(message["content"] or "") > len(_note(message))
    ]


def _elided(prompt: dict, index: int) -> dict:
    messages = list(prompt["messages"])
    messages[index] = {**messages[index], "content": _note(messages[index])}
    return {**prompt, "messages": messages}


def _note(message: dict) -> str:
    return f"[{len(message['content'])} characters left out]"
