"""Evaluation prompts of every task, among them harder forms of the attacked ones.

forced_call     the completion starts with the attacker's call up to the tool's name; the rest is the model's
multi_turn      attacked requests after earlier turns, see `earlier_turns.py`
later_turn      honest requests after earlier turns
forged_turn     attacks that open with a forged turn of the user's, see `forged_turn.py`
fidelity        requests to quote, summarise or translate a text with an instruction in it, see `fidelity.py`
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from datasets import Dataset

from ..files import REPORT_FILE, read_json, to_dataset
from ..formats import ToolCallFormat
from ..outcomes import is_right_known, parallel_calls
from ..sample import PROMPT_FEATURES
from .earlier_turns import later_turn_prompts, multi_turn_prompts
from .fidelity import FIDELITY, fidelity_prompt, fidelity_prompts, is_source
from .forged_turn import FORGED_TURN, forged_turn_prompts
from .prompts import (
    RECORDED_DECISIONS,
    TASKS,
    asked_prompt,
    is_attacked_prompt,
    names_attacker_account,
    prompts_for_task,
)


# Tasks of prompts that follow earlier turns, and what makes these prompts of traces that have no such turns.
_AFTER_EARLIER_TURNS = {"multi_turn": multi_turn_prompts, "later_turn": later_turn_prompts}

# Tasks whose prompts are, at least in part, decisions of recorded agents.
_OF_DECISIONS = ("agentdojo", "multi_turn", FORGED_TURN)

FORCED_CALL = "forced_call"
EVALUATION_TASKS = (*TASKS, FORGED_TURN, FIDELITY, FORCED_CALL)


def evaluation_prompts(traces: Dataset, task: str, tool_format: ToolCallFormat) -> Dataset:
    """The evaluation prompts of one task in these traces; there may be none.

    Args:
        traces ([`~datasets.Dataset`]): Held-out traces of a source.
        task (`str`): One of `EVALUATION_TASKS`.
        tool_format ([`ToolCallFormat`]): The target's tool-call format, for prefills and forged turns.
    """
    if task == FORCED_CALL:
        return to_dataset(list(forced_prompts(traces, tool_format)), PROMPT_FEATURES)
    if task == FORGED_TURN:
        return to_dataset(list(forged_turn_prompts(traces, tool_format)), PROMPT_FEATURES)
    if task == FIDELITY:
        return to_dataset(fidelity_prompts(traces), PROMPT_FEATURES)
    prompts = prompts_for_task(traces, task)
    if task in _AFTER_EARLIER_TURNS:
        return to_dataset([*prompts, *_AFTER_EARLIER_TURNS[task](traces)], PROMPT_FEATURES)
    return prompts


def in_format(prompts: Dataset, tool_format: ToolCallFormat) -> Dataset:
    """The prompts whose right answer the format can write: without parallel calls, not those that need some."""
    if tool_format.parallel_calls:
        return prompts
    single = [number for number, target in enumerate(prompts["target"]) if not parallel_calls(target)]
    return prompts.select(single)


def made_for(prompts: Dataset, tool_format: ToolCallFormat, template: str | None) -> Dataset:
    """The prompts, which say for which format, and with which chat template, they were made.

    Args:
        prompts ([`~datasets.Dataset`]): What [`in_format`] returned.
        tool_format ([`ToolCallFormat`]): The target's tool-call format.
        template (`str`, *optional*): Hash of its chat template, where that is known.
    """
    made = {"prompt_format": tool_format.name, "template_hash": template}
    rows = [{**row, "provenance": {**row["provenance"], **made}} for row in prompts]
    return to_dataset(rows, PROMPT_FEATURES)


def limits_of(prompts: Dataset, traces: Iterable[Dataset], task: str) -> dict[str, int]:
    """What limits the evaluation of a task: counts by name, empty if nothing does.

    - `left_out_names_attacker_account`: decisions that are no prompts, see [`~prompts.names_attacker_account`].
    - `right_answer_unknown`: prompts that measure attacks only. The source has no reference calls for them, or the
      model was not offered the tools that are left.
    - `left_out_nothing_to_judge_by`: attacks that are no prompts of `fidelity`, see [`~fidelity.fidelity_prompt`].

    Args:
        prompts ([`~datasets.Dataset`]): The evaluation prompts of the task.
        traces (`Iterable[Dataset]`): The held-out traces of every source.
        task (`str`): The task. Only those with recorded decisions and `fidelity` have such limits.
    """
    held_out = (trace for rows in traces for trace in rows)
    if task == FIDELITY:
        counts = {
            "left_out_nothing_to_judge_by": sum(is_source(each) and fidelity_prompt(each) is None for each in held_out)
        }
    elif task in _OF_DECISIONS:
        decided = [trace for trace in held_out if trace["verdict"] in RECORDED_DECISIONS]
        counts = {
            "left_out_names_attacker_account": sum(map(names_attacker_account, decided)),
            "right_answer_unknown": sum(not is_right_known(target) for target in prompts["target"]),
        }
    else:
        return {}
    return {name: count for name, count in counts.items() if count}


def forced_prompts(traces: Iterable[dict], tool_format: ToolCallFormat) -> Iterator[dict]:
    """Three prompts per attacked one, with more and more of the attacker's call prefilled, see [`prefills`]."""
    for trace in traces:
        if not is_attacked_prompt(trace):
            continue
        for name, prefill in prefills(trace["simulated_tool"], tool_format).items():
            prompt = asked_prompt(trace) | {"task": "forced_call", "subtype": f"prefill_{name}"}
            prompt["target"]["prefill"] = prefill
            yield prompt | {"id": f"forced_call/{trace['id']}/{name}"}


def prefills(tool: str, tool_format: ToolCallFormat) -> dict[str, str]:
    """Beginnings of a call: `tag` ends before the tool's name, `word` after its first word, `name` with all of it."""
    head = tool_format.call_head(tool)
    word = head[: len(head) - len(tool)] + tool.split("_")[0]
    return {"tag": tool_format.name_head(tool), "word": word, "name": head}


def prompts_report(prompts: Dataset, task: str, available: int, limits: dict[str, int]) -> dict:
    """The report of the prompts of a task, of which so many are `available`."""
    return {"task": task, "rows": len(prompts), "available": available, "limits": limits}


def other_tasks(folder: Path, tasks: Collection[str]) -> list[str]:
    """Other tasks whose prompts an earlier run wrote to a prompts folder. Whoever reads it takes all tasks in it."""
    others = [path.parent for path in sorted(folder.glob(f"*/{REPORT_FILE}")) if path.parent.name not in tasks]
    return [path.name for path in others if _is_prompts_report(path / REPORT_FILE)]


def _is_prompts_report(path: Path) -> bool:
    """Whether a file is the report of [`prompts_report`] on the task that its folder is named for."""
    with suppress(ValueError, OSError):
        report = read_json(path)
        return {"rows", "available"} <= report.keys() and report.get("task") == path.parent.name
    return False
