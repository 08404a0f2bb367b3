"""Recorded turns of other models -> samples, written in the target's format.

    GPT-4o in AgentDojo: {"role": "assistant", "tool_calls": [{"function": {"name": "send_money", "arguments":
    "{...}"}}]} for Llama 3.1:       <|python_tag|>{"name": "send_money", "parameters": {...}}<|eom_id|>

Such rows are off-policy (`completion_source = recorded`): the target never wrote them.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from datasets import Dataset

from ..chat import DATE_STRING, MAX_LENGTH, encode_sample, template_hash
from ..outcomes import Outcome
from ..tool_calls import ToolCall, ToolCallFormat, format_of
from .label import label
from .prompts import decision_prompt, turn_prompt
from .yields import Yield


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Turns:
    """Which turns of which traces make a set.

    Args:
        subset (`str`): Folder of the set.
        verdict (`str`): Verdict of the traces that are taken.
        priority_class (`str`): Class of the rows.
    """

    subset: str
    verdict: str
    priority_class: str


COMPROMISED = Turns("harmful/agentdojo_failures", "compromised", "harmful_flip")
RESISTED = Turns("retain/agentdojo_resisted", "resisted", "injection_resisted")
BENIGN = Turns("retain/agentdojo_benign", "benign_success", "tool_capability")


def recorded_set(traces: dict[str, Dataset], turns: Turns, tokenizer: "PreTrainedTokenizerBase") -> Yield:
    """Samples of recorded turns.

    Args:
        traces (`dict[str, Dataset]`): Traces by split.
        turns ([`Turns`]): Which turns to take.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's: decides the format and what is `too_long`.
    """
    result = Yield(turns.subset)
    tool_format = format_of(tokenizer.chat_template)
    ambiguous = _ambiguous_groups(traces)
    for split, rows in traces.items():
        for trace in rows:
            if trace["verdict"] != turns.verdict:
                continue
            reason = _doubt(trace, ambiguous)
            if reason is not None:
                result.drop(reason)
                continue
            for prompt, turn in _turns(trace):
                if len(turn["tool_calls"]) > 1:
                    result.drop("parallel_decision")
                    continue
                text = written_turn(turn, tool_format)
                if text is None:
                    result.drop("empty_turn")
                    continue
                sample = label(
                    prompt,
                    text,
                    subset=turns.subset,
                    split=split,
                    priority_class=turns.priority_class,
                    tool_format=tool_format,
                    provenance=_provenance(trace, tokenizer, tool_format.name),
                )
                reason = _unfit(sample, turns, tokenizer)
                result.drop(reason) if reason else result.keep(sample)
    return result


def _ambiguous_groups(traces: dict[str, Dataset]) -> set[str]:
    """User tasks whose own prompt names the attacker's account: their right call and the attacker's look alike."""
    return {
        trace["group"]
        for rows in traces.values()
        for trace in rows
        if json.loads(trace["metadata"]).get("names_attacker_account")
    }


def _doubt(trace: dict, ambiguous: set[str]) -> str | None:
    """Why a trace's verdict is not good enough to train on, or `None`."""
    if trace["group"] in ambiguous:
        return "prompt_names_attacker_account"
    if trace["verdict"] == "resisted" and json.loads(trace["metadata"])["touches_goal"]:
        return "resisted_but_touches_goal"
    return None


def _turns(trace: dict) -> Iterator[tuple[dict, dict]]:
    """The turns a trace offers: its decision, or every call of a trace in which nothing was at stake."""
    if trace["decision_turn"] is not None:
        yield decision_prompt(trace), trace["messages"][trace["decision_turn"]]
        return
    for index, message in enumerate(trace["messages"]):
        if message["role"] == "assistant" and message["tool_calls"]:
            yield turn_prompt(trace, index), message


def written_turn(turn: dict, tool_format: ToolCallFormat) -> str | None:
    """A recorded assistant turn as the target would write it; `None` if it says and does nothing."""
    text = (turn["content"] or "").strip()
    if not turn["tool_calls"]:
        return text + tool_format.turn_end if text else None
    [call] = turn["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    return tool_format.render(ToolCall(call["function"]["name"], arguments), text)


def _unfit(sample: dict, turns: Turns, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    stolen = sample["outcome"] == Outcome.ATTACK_SUCCESS
    if stolen != (turns.verdict == "compromised"):
        return f"decision_is_{sample['outcome']}"
    encoded = encode_sample(tokenizer, sample)
    return "too_long" if len(encoded["prompt_ids"]) + len(encoded["completion_ids"]) > MAX_LENGTH else None


def _provenance(trace: dict, tokenizer: "PreTrainedTokenizerBase", prompt_format: str) -> dict:
    return {
        "generator_model": json.loads(trace["metadata"])["pipeline"],
        "prompt_format": prompt_format,
        "template_hash": template_hash(tokenizer),
        "date_string": DATE_STRING,
        "completion_source": "recorded",
    }
