"""τ²-bench: tasks that can be replayed, and recorded conversations with full reward.

A file is one JSON document, so a record is named by its position in it: `mock/tasks.json[3]`.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from .expected import ERROR, SILENT, Outcomes, Unit, comparable, drop, parse_bytes, parse_json, verdict


# A sentence of a scenario that a user can say.
_PLAIN_REQUEST = re.compile(r"(?:^|\. )(?:Now y|Y)ou want [\w ]+\.")


class Malformed(Exception):
    """The record does not have the documented format: only an error is allowed."""


def require(condition: bool) -> None:
    if not condition:
        raise Malformed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def list_units(file: str, data: bytes, judge: Callable[[dict], Outcomes]) -> list[Unit]:
    """Units of a document that is a list of records."""
    try:
        document, _ = parse_bytes(data)
    except ValueError:
        return [Unit(file, (), None, ERROR)]
    if not isinstance(document, list):
        return [Unit(file, (), None, ERROR)]
    return [_unit(file, f"{file}[{number}]", record, judge) for number, record in enumerate(document)]


def _unit(file: str, place: str, record: Any, judge: Callable[[dict], Outcomes]) -> Unit:
    try:
        require(isinstance(record, dict))
        outcomes = judge(record)
    except Malformed:
        outcomes = ERROR
    return Unit(file, (place,), comparable(record), outcomes)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


def judge_task(task: dict, tools: Collection[str], known_states: Collection[str]) -> Outcomes:
    """Allowed outcomes of a task.

    Args:
        task (`dict`): The task.
        tools (`Collection[str]`): Names of the assistant's tools.
        known_states (`Collection[str]`): Valid initial states, as comparable text.
    """
    require(isinstance(task.get("id"), str) and isinstance(task.get("ticket"), str | None))
    scenario, criteria = task.get("user_scenario"), task.get("evaluation_criteria")
    require(isinstance(scenario, dict | None) and isinstance(criteria, dict | None))
    instructions, actions = (scenario or {}).get("instructions"), (criteria or {}).get("actions")
    require(isinstance(instructions, dict | str | None) and isinstance(actions, list | None))
    if isinstance(instructions, dict):
        parts = ("reason_for_call", "known_info", "unknown_info", "task_instructions")
        require(all(isinstance(instructions.get(part), str | None) for part in parts))
        instructions = "".join(instructions.get(part) or "" for part in parts)
    for action in actions or []:
        require(isinstance(action, dict) and isinstance(action.get("name"), str))
        require(isinstance(action.get("arguments"), dict))
        # Older files have no requestor; an empty one is treated like a missing one.
        require((action.get("requestor") or "assistant") in ("assistant", "user"))
        require(isinstance(action.get("requestor"), str | None))
    assistant_actions = [action for action in actions or [] if action.get("requestor") != "user"]
    reasons = []
    if not assistant_actions:
        reasons.append("no_assistant_action")
    has_ticket, scripted = bool((task.get("ticket") or "").strip()), frozenset()
    if not has_ticket and not (instructions or "").strip():
        reasons.append("no_user_turn")
    elif not has_ticket and not _PLAIN_REQUEST.search(instructions or ""):
        scripted = drop("scripted_user_turn")  # whether any other sentence is a request is up to the builder's rule
    if not {action["name"] for action in assistant_actions} <= set(tools):
        reasons.append("unknown_tools")
    state = task.get("initial_state")
    if not isinstance(state, dict | None):
        return ERROR | drop(*reasons)
    is_doubtful = state is not None and comparable(state) not in known_states
    if is_doubtful:
        allowed = ERROR | drop("initial_state_fails", "unpaired_result") | verdict("benign_success")
        return allowed | scripted | drop(*reasons)
    if reasons:
        return scripted | drop(*reasons)
    arguments = [value for action in actions or [] for value in action["arguments"].values()]
    if all(isinstance(value, str) and value.isprintable() for value in arguments):
        return scripted | verdict("benign_success")
    return scripted | verdict("benign_success") | drop("replay_fails")


# ---------------------------------------------------------------------------------------------------------------------
# τ-bench: a list of trajectories in OpenAI's format


def judge_trajectory(record: dict, tools: Collection[str], policy: str) -> Outcomes:
    """Allowed outcomes of a trajectory.

    Args:
        record (`dict`): The trajectory.
        tools (`Collection[str]`): Names of the assistant's tools.
        policy (`str`): Beginning of the system prompt, which names the domain.
    """
    require(_is_number(record.get("reward")) and isinstance(record.get("traj"), list))
    task_id, trial = record.get("task_id"), record.get("trial")
    require(isinstance(task_id, int | str) and not isinstance(task_id, bool))
    require(trial is None or (isinstance(trial, int) and not isinstance(trial, bool)))
    info = record.get("info")
    require(isinstance(info, dict) and isinstance(info.get("task"), dict))
    require(isinstance(info["task"].get("user_id"), str))
    messages = record["traj"]
    if record["reward"] < 1:
        return drop("reward_below_one") | _error_if_malformed(messages, _check_openai)
    _check_openai(messages)
    reasons = []
    if not _openai_results_match(messages):
        reasons.append("unpaired_result")
    if not any(message["role"] == "assistant" for message in messages):
        reasons.append("no_assistant_turn")
    called = {call["function"]["name"] for message in messages for call in message.get("tool_calls") or []}
    opening = (messages[0].get("content") or "") if messages else ""
    if not opening.casefold().startswith(policy.casefold()) or not called <= set(tools):
        reasons.append("unknown_tools")
    return drop(*reasons) if reasons else verdict("benign_success")


def _error_if_malformed(messages: list, check: Callable[[list], None]) -> Outcomes:
    try:
        check(messages)
    except Malformed:
        return ERROR
    return frozenset()


def _check_openai(messages: list) -> None:
    for message in messages:
        require(isinstance(message, dict) and message.get("role") in ("system", "user", "assistant", "tool"))
        require(isinstance(message.get("content"), str | None) and isinstance(message.get("tool_call_id"), str | None))
        require(isinstance(message.get("tool_calls"), list | None))
        for call in message.get("tool_calls") or []:
            require(isinstance(call, dict) and isinstance(call.get("id"), str | None))
            function = call.get("function")
            require(isinstance(function, dict) and isinstance(function.get("name"), str))
            require(isinstance(function.get("arguments"), str))
            try:
                require(isinstance(parse_json(function["arguments"]), dict))
            except ValueError:
                raise Malformed from None


def _openai_results_match(messages: list[dict]) -> bool:
    """Whether every result has a call in the turn before it, and every call except the last turn's has a result."""
    unanswered: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if (message.get("tool_call_id") or "") not in unanswered:
                return False
            unanswered.remove(message.get("tool_call_id") or "")
        elif unanswered:
            return False
        elif message["role"] == "assistant":
            unanswered = [call.get("id") or "" for call in message.get("tool_calls") or []]
    return True


# ---------------------------------------------------------------------------------------------------------------------
# A result file of τ²

DOMAIN = "mock"


def result_units(file: str, data: bytes, tools: Collection[str]) -> list[Unit]:
    """Units of a result file: the head with info and tasks, which all simulations depend on, and the simulations."""
    try:
        document, _ = parse_bytes(data)
        if document == []:
            return []  # a file of trajectories is a list, and this one has none
        require(isinstance(document, dict))
        _check_head(document)
    except (ValueError, Malformed):
        return [Unit(file, (), None, ERROR)]
    # A damaged head may change all simulations, so it is part of their content.
    head = comparable([document["info"], document["tasks"]])
    is_known = document["info"]["environment_info"]["domain_name"] == DOMAIN
    tasks = {task["id"] for task in document["tasks"]}
    judge = partial(judge_simulation, tasks=tasks, tools=tools if is_known else None)
    places = [f"{file}: simulations[{number}]" for number in range(len(document["simulations"]))]
    units = [_unit(file, *each, judge) for each in zip(places, document["simulations"], strict=True)]
    return [Unit(file, (), head, SILENT), *(replace(unit, content=f"{head}{unit.content}") for unit in units)]


def _check_head(document: dict) -> None:
    info = document.get("info")
    require(isinstance(info, dict) and isinstance(info.get("environment_info"), dict))
    require(all(isinstance(info["environment_info"].get(key), str) for key in ("domain_name", "policy")))
    agent = info.get("agent_info")
    require(isinstance(agent, dict | None) and isinstance((agent or {}).get("llm"), str | None))
    require(isinstance(document.get("tasks"), list) and isinstance(document.get("simulations"), list))
    for task in document["tasks"]:
        require(isinstance(task, dict))
        judge_task(task, (), ())


def judge_simulation(record: dict, tasks: Collection[str], tools: Collection[str] | None) -> Outcomes:
    """Allowed outcomes of one simulation.

    Args:
        record (`dict`): The simulation.
        tasks (`Collection[str]`): Ids of the file's tasks.
        tools (`Collection[str]`, *optional*): Names of the assistant's tools; `None` if the domain is unknown.
    """
    require(isinstance(record.get("task_id"), str) and record["task_id"] in tasks)
    messages = record.get("messages")
    require(isinstance(record.get("id"), str))
    if reason := _failure(record):
        return drop(reason)  # nothing more is read
    require("messages" in record and isinstance(messages, list | None))
    if messages is None:
        return drop("no_messages")
    _check_tau2(messages)
    reasons = []
    if not _tau2_results_match(messages):
        reasons.append("unpaired_result")
    turns = [message for message in messages if message["role"] == "assistant"]
    first_request = next((at for at, message in enumerate(messages) if message["role"] == "user"), len(messages))
    if not any(message["role"] == "assistant" for message in messages[first_request:]):
        reasons.append("no_assistant_turn")  # text before the first request is a greeting
    called = {call["name"] for turn in turns for call in turn.get("tool_calls") or []}
    if tools is None or not called <= set(tools):
        reasons.append("unknown_tools")
    return drop(*reasons) if reasons else verdict("benign_success")


def _failure(record: dict) -> str | None:
    """Why a simulation of a made-up task is no success, if it is none."""
    end, score = record.get("termination_reason"), record.get("reward_info")
    require(isinstance(end, str | None) and isinstance(record.get("skipped"), bool | None))
    if record.get("skipped") or end in {
        "infrastructure_error", "unexpected_error", "context_window_exceeded", "timeout"
    }:  # fmt: skip
        return "run_failed"
    require(isinstance(score, dict | None))
    if score is None:
        return "not_rewarded"
    require(_is_number(score.get("reward")) or score.get("reward") is None)
    require(isinstance(score.get("info"), dict | None))
    notes = score.get("info") or {}
    if score.get("reward") is None or any(each.get("error") for each in [notes, *notes.values()] if _is_object(each)):
        return "evaluator_crashed"
    if score["reward"] < 1:
        return "reward_below_one"
    for kind in ("action_checks", "env_assertions", "communicate_checks", "nl_assertions"):
        require(isinstance(score.get(kind), list | None))
        for check in score.get(kind) or []:
            holds = check.get("action_match" if kind == "action_checks" else "met") if _is_object(check) else None
            require(isinstance(holds, bool))
            if not holds:
                return "failed_action_check" if kind == "action_checks" else "failed_assertion"
    return None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _check_tau2(messages: list) -> None:
    for message in messages:
        require(isinstance(message, dict) and message.get("role") in ("system", "user", "assistant", "tool"))
        if message["role"] == "tool":
            require(isinstance(message.get("tool_messages"), list | None))
            for result in _results(message):
                require(isinstance(result, dict))
                require(all(isinstance(result.get(key), str | None) for key in ("id", "content", "requestor")))
                require(isinstance(result.get("error"), bool | None))
            continue
        require(isinstance(message.get("content"), str | None))
        require(isinstance(message.get("tool_calls"), list | None) or message["role"] == "system")
        for call in message.get("tool_calls") or [] if message["role"] != "system" else []:
            require(isinstance(call, dict) and isinstance(call.get("id"), str | None))
            require(isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict))


def _results(message: dict) -> list:
    return [message] if message.get("tool_messages") is None else message["tool_messages"]


def _tau2_results_match(messages: list[dict]) -> bool:
    """As `_openai_results_match`, ignoring the user's own calls and their results."""
    unanswered: list[str] = []
    for message in messages:
        calls = [call.get("id") or "" for call in message.get("tool_calls") or []]
        if message["role"] == "tool":
            for result in _results(message):
                if result.get("requestor") == "user":
                    continue
                if (result.get("id") or "") not in unanswered:
                    return False
                unanswered.remove(result.get("id") or "")
        elif message["role"] == "user" and calls and not message.get("content"):
            continue
        elif unanswered:
            return False
        elif message["role"] == "assistant":
            unanswered = calls
    return True
