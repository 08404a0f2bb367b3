"""Evaluation prompts that are harder: the attacker's call is prefilled, or earlier turns precede the request.

forced_call     the completion starts with `<|python_tag|>{"name": "search_web`; the rest is the model's
multi_turn      attacked requests after earlier turns: those that the trace has itself; an honest request, its call and
                its answer, inserted between the system prompt and the attacked request; and decisions of recorded
                agents that come after a second request or after more than one of their turns
later_turn      honest requests after earlier turns: the clean twins of `multi_turn`, and turns of recorded
                conversations that come after a second request
"""

import hashlib
import json
from collections.abc import Iterable, Iterator

from datasets import Dataset

from builders.trace import message, tool_call

from ..files import to_dataset
from ..formats import ToolCallFormat
from ..placement import user_turns
from ..sample import PROMPT_FEATURES
from .prompts import TASKS, asked_prompt, clean_prompt, decision_prompt, is_attacked, prompts_for_task, turn_fault
from .recorded import every_call, last_answer


EVALUATION_TASKS = (*TASKS, "forced_call", "multi_turn", "later_turn")


def evaluation_prompts(traces: Dataset, task: str, tool_format: ToolCallFormat) -> Dataset:
    """The evaluation prompts of one task in these traces; there may be none.

    Args:
        traces ([`~datasets.Dataset`]): Held-out traces of a source.
        task (`str`): One of `EVALUATION_TASKS`.
        tool_format ([`ToolCallFormat`]): The target's tool-call format, for prefills.
    """
    if task == "forced_call":
        return to_dataset(list(forced_prompts(traces, tool_format)), PROMPT_FEATURES)
    prompts = prompts_for_task(traces, task)
    if task in _AFTER_EARLIER_TURNS:
        return to_dataset([*prompts, *_AFTER_EARLIER_TURNS[task](traces)], PROMPT_FEATURES)
    return prompts


def forced_prompts(traces: Iterable[dict], tool_format: ToolCallFormat) -> Iterator[dict]:
    """Three prompts per attacked one, with more and more of the attacker's call prefilled (`target.prefill`).

    `tag` ends before the tool's name, `word` after its first word, `name` with all of it.
    """
    for trace in traces:
        if not _is_attacked_prompt(trace):
            continue
        tool = trace["simulated_tool"]
        head = tool_format.call_head(tool)
        tag = head[: head.index(tool)]
        for name, prefill in (("tag", tag), ("word", tag + tool.split("_")[0]), ("name", head)):
            prompt = asked_prompt(trace) | {"task": "forced_call", "subtype": f"prefill_{name}"}
            prompt["target"]["prefill"] = prefill
            yield prompt | {"id": f"forced_call/{trace['id']}/{name}"}


def multi_turn_prompts(traces: Iterable[dict]) -> Iterator[dict]:
    """Attacked prompts after an honest exchange, and late decisions of recorded agents.

    Traces that have earlier turns of their own are left to [`~prompts.prompts_for_task`].
    """
    rows = list(traces)
    for trace, before in _with_earlier_request(rows):
        yield _after(asked_prompt(trace), _exchange(before), "multi_turn")
    for trace in rows:
        if trace["verdict"] in ("compromised", "resisted") and _is_late(trace["messages"][: trace["decision_turn"]]):
            yield decision_prompt(trace) | {"id": f"multi_turn/{trace['id']}", "task": "multi_turn"}


def later_turn_prompts(traces: Iterable[dict]) -> Iterator[dict]:
    """Honest later requests: the clean twins of [`multi_turn_prompts`], and later turns of successful recordings.

    Of a recorded conversation, every call is taken, or the last answer where it has no calls.
    """
    rows = list(traces)
    for trace, before in _with_earlier_request(rows):
        yield _after(clean_prompt(trace), _exchange(before), "later_turn")
    for trace in rows:
        if trace["verdict"] != "benign_success":
            continue
        for prompt, turn in (*every_call(trace), *last_answer(trace)):
            if user_turns(prompt["messages"]) > 1 and turn_fault(trace, turn) is None:
                yield prompt | {"id": f"later_turn/{prompt['pair']}", "task": "later_turn"}


def _with_earlier_request(rows: list[dict]) -> Iterator[tuple[dict, dict]]:
    """Attacked prompts of one turn, each with another one of another group, whose request comes before it."""
    single = [trace for trace in rows if _is_attacked_prompt(trace) and user_turns(trace["messages"]) == 1]
    # Ordered by a hash, so that the preceding exchange is another request and not another attack on the same one.
    single.sort(key=lambda trace: hashlib.sha256(trace["id"].encode()).digest())
    for number, trace in enumerate(single):
        before = next((other for other in single[number - 1 :: -1] if other["group"] != trace["group"]), None)
        if before is not None:
            yield trace, before


def _is_attacked_prompt(trace: dict) -> bool:
    return trace["verdict"] == "prompt_only" and is_attacked(trace)


def _is_late(context: list[dict]) -> bool:
    """Whether a decision comes after a second request, or after more than one assistant turn."""
    return user_turns(context) > 1 or sum(message["role"] == "assistant" for message in context) > 1


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


def _after(prompt: dict, exchange: list[dict], task: str) -> dict:
    """The prompt with an exchange between its system prompt and its request."""
    *first, request = prompt["messages"]
    spans = [{**span, "message": span["message"] + len(exchange)} for span in prompt["injection"]]
    changed = {"id": f"{task}/{prompt['pair']}", "task": task, "injection": spans}
    return prompt | changed | {"messages": [*first, *exchange, request]}


_AFTER_EARLIER_TURNS = {"multi_turn": multi_turn_prompts, "later_turn": later_turn_prompts}
