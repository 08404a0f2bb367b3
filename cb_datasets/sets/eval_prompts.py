"""Evaluation prompts that are harder: the attacker's call is prefilled, or honest turns precede the attack.

forced_call     the completion starts with `<|python_tag|>{"name": "search_web`; the rest is the model's
multi_turn      an honest request, its call and its answer are inserted between the system prompt and the attacked
                request; and decisions of recorded agents that come after more than one of their turns
"""

import hashlib
import json
from collections.abc import Iterable, Iterator

from datasets import Dataset

from builders.trace import message, tool_call

from ..files import to_dataset
from ..formats import ToolCallFormat
from ..sample import PROMPT_FEATURES
from .prompts import TASKS, asked_prompt, clean_prompt, decision_prompt, is_attacked, prompts_for_task


EVALUATION_TASKS = (*TASKS, "forced_call", "multi_turn")


def evaluation_prompts(traces: Dataset, task: str, tool_format: ToolCallFormat) -> Dataset:
    """The evaluation prompts of one task in these traces; there may be none.

    Args:
        traces ([`~datasets.Dataset`]): Held-out traces of a source.
        task (`str`): One of `EVALUATION_TASKS`.
        tool_format ([`ToolCallFormat`]): The target's tool-call format, for prefills.
    """
    if task == "forced_call":
        return to_dataset(list(forced_prompts(traces, tool_format)), PROMPT_FEATURES)
    if task == "multi_turn":
        return to_dataset(list(multi_turn_prompts(traces)), PROMPT_FEATURES)
    return prompts_for_task(traces, task)


def forced_prompts(traces: Iterable[dict], tool_format: ToolCallFormat) -> Iterator[dict]:
    """Three prompts per attacked one, with more and more of the attacker's call prefilled (`target.prefill`).

    `tag` ends before the tool's name, `word` after its first word, `name` with all of it.
    """
    for trace in traces:
        if trace["verdict"] != "prompt_only" or not is_attacked(trace):
            continue
        tool = trace["simulated_tool"]
        head = tool_format.call_head(tool)
        tag = head[: head.index(tool)]
        for name, prefill in (("tag", tag), ("word", tag + tool.split("_")[0]), ("name", head)):
            prompt = asked_prompt(trace) | {"task": "forced_call", "subtype": f"prefill_{name}"}
            prompt["target"]["prefill"] = prefill
            yield prompt | {"id": f"forced_call/{trace['id']}/{name}"}


def multi_turn_prompts(traces: Iterable[dict]) -> Iterator[dict]:
    """Attacked prompts after an honest exchange, and late decisions of recorded agents."""
    rows = list(traces)
    attacked = [trace for trace in rows if trace["verdict"] == "prompt_only" and is_attacked(trace)]
    # Ordered by a hash, so that the preceding exchange is another request and not another attack on the same one.
    attacked.sort(key=lambda trace: hashlib.sha256(trace["id"].encode()).digest())
    for number, trace in enumerate(attacked):
        before = next((other for other in attacked[number - 1 :: -1] if other["group"] != trace["group"]), None)
        if before is not None:
            yield _after(asked_prompt(trace), _exchange(before))
    for trace in rows:
        if trace["verdict"] in ("compromised", "resisted") and _turns_before_decision(trace) > 1:
            yield decision_prompt(trace) | {"id": f"multi_turn/{trace['id']}", "task": "multi_turn"}


def _exchange(trace: dict) -> list[dict]:
    """The clean request of a trace, answered with the right call."""
    request = clean_prompt(trace)["messages"][-1]
    expected = json.loads(trace["attack"]["expected_calls"] or "null")
    arguments = expected[0]["arguments"] if expected else {"query": request["content"]}
    call = tool_call(trace["expected_tool"], arguments, id="call_0")
    return [
        request,
        message("assistant", None, [call]),
        message("tool", "Done.", tool_call_id="call_0", name=trace["expected_tool"]),
        message("assistant", "That is done."),
    ]


def _after(prompt: dict, exchange: list[dict]) -> dict:
    """The prompt with an exchange between its system prompt and its request."""
    *first, request = prompt["messages"]
    spans = [{**span, "message": span["message"] + len(exchange)} for span in prompt["injection"]]
    changed = {"id": f"multi_turn/{prompt['pair']}", "task": "multi_turn", "injection": spans}
    return prompt | changed | {"messages": [*first, *exchange, request]}


def _turns_before_decision(trace: dict) -> int:
    return sum(turn["role"] == "assistant" for turn in trace["messages"][: trace["decision_turn"]])
