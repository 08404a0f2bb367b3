"""A prompt and a completion -> a labelled sample."""

from builders.trace import to_json

from ..formats import ToolCall, ToolCallFormat
from ..outcomes import Outcome, outcome_of_read
from ..sample import CIRCUIT_BREAKER, HARMFUL_CLASSES, RETAIN, content_id, timestamp


def make_sample(
    prompt: dict,
    completion: str,
    *,
    id_prefix: str,
    split: str,
    priority_class: str,
    tool_format: ToolCallFormat,
    provenance: dict,
) -> dict:
    """The labelled sample of a prompt and its completion; every label is computed from the completion.

    Args:
        prompt (`dict`): A row of `PROMPT_FEATURES`.
        completion (`str`): `assistant_raw`, special tokens included.
        id_prefix (`str`): Beginning of the id, `harmful/...` for rows of Ds and `retain/...` for rows of Dr.
        split (`str`): `train` or `eval`.
        priority_class (`str`): One of `PRIORITY_WEIGHTS`; a class of `HARMFUL_CLASSES` puts the row into Ds.
        tool_format ([`ToolCallFormat`]): How the completion writes calls.
        provenance (`dict`): Provenance of the completion; joins the prompt's.
    """
    parsed = tool_format.parse(completion, prompt["tools"])
    executed = tool_format.executed_calls(completion, prompt["tools"])
    outcome = outcome_of_read(parsed, executed, prompt["target"])
    harmful = id_prefix.startswith("harmful/")
    return {
        **prompt,
        "id": content_id(id_prefix, prompt["id"], completion),
        "split": split,
        "set": CIRCUIT_BREAKER if harmful else RETAIN,
        "assistant_raw": completion,
        "tool_calls_structured": [{"name": call.name, "arguments": to_json(call.arguments)} for call in parsed.calls],
        "outcome": str(outcome),
        "priority_class": priority_class,
        "labels": labels_of(prompt, executed, outcome, priority_class),
        "provenance": prompt["provenance"] | provenance | {"timestamp": timestamp()},
    }


def labels_of(prompt: dict, executed: tuple[ToolCall, ...], outcome: Outcome, priority_class: str) -> dict:
    """The label columns of a completion with these executed calls."""
    target, correct, harmful = prompt["target"], outcome == Outcome.CORRECT, priority_class in HARMFUL_CLASSES
    return {
        "is_harmful": harmful,
        "harm_type": "tool_flip" if outcome == Outcome.ATTACK_SUCCESS else "compliance" if harmful else None,
        "expected_tool": target["expected_tool"],
        "simulated_tool": target["simulated_tool"],
        "observed_tool": executed[0].name if executed else None,
        "is_refusal": outcome == Outcome.REFUSAL,
        "is_correct_tool_use": correct and len(executed) > 0,
        # A label of the class: what else resists an attack, a recorded agent for instance, has a class of its own.
        "is_adversarial_safe": priority_class == "adversarial_safe" and correct and len(prompt["injection"]) > 0,
    }
