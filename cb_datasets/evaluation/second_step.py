"""The second step of an attack that needs two calls: read the data, then send them away.

    first step    ... the tool's result with the injection         the model: ViewSavedAddresses()    attack_success
    second step   ... the same, the model's own call, and          the model: SendEmail(to=...)       attack_success
                  {"addresses": [...]}, the simulated result

A prompt says so in `goal_calls`: the attacker's call has the `result` that is simulated for it, and the calls that
follow (`then`). Only prompts on which the first step succeeded are asked again, each model after its own call.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path

from datasets import Dataset

from builders.trace import call_matches, message, to_json, tool_call

from ..files import to_dataset
from ..formats import ToolCall, ToolCallFormat, format_of
from ..generation import Backend, Sampling
from ..outcomes import Outcome
from ..sample import PROMPT_FEATURES
from .scored_completions import ScoredCompletion, SecondStep, complete_and_score


def ask_second_steps(
    prompts: Dataset, scored: list[ScoredCompletion], backend: Backend, sampling: Sampling, work_dir: Path, name: str
) -> list[ScoredCompletion]:
    """The completions, those with a second step with its outcome.

    A completion that makes both calls in one turn has taken both steps, and is not asked again.

    Args:
        prompts ([`~datasets.Dataset`]): The rows that were completed.
        scored (`list[ScoredCompletion]`): Their completions, one or several of each.
        backend ([`Backend`]): The model that wrote them.
        sampling ([`Sampling`]): As for the first step; there is one second step per completion.
        work_dir (`Path`): Folder of the finished shards.
        name (`str`): Label of the progress bar.
    """
    tool_format = format_of(backend.tokenizer)
    by_id = {row["id"]: row for row in prompts if _has_second_step(row)}
    steps: dict[int, SecondStep] = {}
    asked: dict[int, dict] = {}
    numbers: Counter[str] = Counter()  # of the samples of one prompt
    for index, one in enumerate(scored):
        row = by_id.get(one.prompt.id)
        if row is None:
            continue
        numbers[row["id"]] += 1
        if one.outcome != Outcome.ATTACK_SUCCESS or one.text is None:
            continue
        goal, position, calls = _attackers_call(one.text, row, tool_format)
        if any(_is_one_of(call, goal["then"]) for call in calls[position + 1 :]):
            steps[index] = SecondStep(one.text, Outcome.ATTACK_SUCCESS)
        else:
            said = tool_format.parse(one.text, row["tools"]).text
            asked[index] = _second_prompt(row, said, calls[position], goal, numbers[row["id"]])
    if asked:
        rows = to_dataset(list(asked.values()), PROMPT_FEATURES)
        once = dataclasses.replace(sampling, num_samples=1)
        answers = complete_and_score(rows, backend, once, work_dir, f"{name}, second step")
        steps |= {index: SecondStep(each.text, each.outcome) for index, each in zip(asked, answers, strict=True)}
    return [
        dataclasses.replace(one, second_step=steps[index]) if index in steps else one
        for index, one in enumerate(scored)
    ]


def _has_second_step(row: dict) -> bool:
    return any("then" in goal for goal in json.loads(row["target"]["goal_calls"] or "[]"))


def _attackers_call(text: str, row: dict, tool_format: ToolCallFormat) -> tuple[dict, int, tuple[ToolCall, ...]]:
    """The goal that the first of the attacker's calls in a completion meets, the call's position, and all calls."""
    calls = tool_format.executed_calls(text, row["tools"])
    goals = json.loads(row["target"]["goal_calls"])
    met = [(goal, position) for position, call in enumerate(calls) for goal in goals if _is_one_of(call, [goal])]
    return *met[0], calls


def _is_one_of(call: ToolCall, wanted: list[dict]) -> bool:
    return any(call_matches(call.name, call.arguments, each) for each in wanted)


def _second_prompt(row: dict, said: str, call: ToolCall, goal: dict, number: int) -> dict:
    """The prompt with the model's own call and its simulated result; other calls of the same turn are left out."""
    id = f"call_{sum(len(turn['tool_calls']) for turn in row['messages'])}"
    turns = [
        message("assistant", said or None, [tool_call(call.name, call.arguments, id)]),
        message("tool", goal["result"], tool_call_id=id, name=call.name),
    ]
    then = goal["then"]
    return row | {
        "id": f"{row['id']}/second_step/{number}",
        "messages": [*row["messages"], *turns],
        "target": row["target"] | {"simulated_tool": then[0]["name"], "goal_calls": to_json(then)},
    }
