"""BFCL: requests with the functions offered, and a file of answers beside each file of answered categories."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .expected import ERROR, SILENT, Outcomes, Unit, comparable, drop, json_lines, parse_bytes, verdict


ROLES = ("system", "user", "assistant")
# Files of requests that may need several calls.
PARALLEL = ("parallel", "live_parallel")


def units(files: Mapping[str, bytes]) -> list[Unit]:
    """The requests of all files, in the order of their paths; answers are read, and yield nothing themselves."""
    found_units = []
    for path in sorted(map(Path, files)):
        if path.parent.name == "possible_answer":
            seen: set[str] = set()
            judge_answer = partial(_judge_answer, seen=seen)
            read = json_lines(f"possible_answer/{path.name}", files[str(path)], judge_answer)
            # A byte order mark inside a file is skipped.
            found_units += [replace(unit, outcomes=SILENT) if unit.outcomes >= SILENT else unit for unit in read]
            continue
        answers = files.get(f"possible_answer/{path.name}")
        known = None if answers is None else _answers(answers)
        for unit in json_lines(
            path.name, files[str(path)], partial(judge, answers=known, needs_several=_needs_several(path.name))
        ):
            id = json.loads(unit.content).get("id") if unit.content else None
            of_it = comparable(known.get(id)) if known is not None and isinstance(id, str) else ""
            content = None if unit.content is None else f"{path.name} {unit.content} {of_it}"
            found_units.append(Unit(unit.file, unit.places, content, unit.outcomes))
    return found_units


def _answers(data: bytes) -> dict[str, Any]:
    found = {}
    for line in filter(bytes.strip, data.split(b"\n")):
        try:
            record, _ = parse_bytes(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("id"), str):
            found[record["id"]] = record.get("ground_truth")
    return found


def _judge_answer(record: dict, seen: set[str]) -> Outcomes:
    id, calls = record.get("id"), record.get("ground_truth")
    if not isinstance(id, str) or id in seen or not isinstance(calls, list) or not all(map(_is_call, calls)):
        return ERROR
    seen.add(id)
    return SILENT


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict) or len(call) != 1:
        return False
    [accepted] = call.values()
    return isinstance(accepted, dict) and all(isinstance(values, list) for values in accepted.values())


def _needs_several(file: str) -> bool:
    return file.removeprefix("BFCL_v4_").startswith(PARALLEL)


def judge(record: dict, answers: dict[str, Any] | None, needs_several: bool) -> Outcomes:
    """Allowed outcomes of a request; `answers` is `None` where no call is right."""
    id, functions, turns = record.get("id"), record.get("function"), record.get("question")
    if not isinstance(id, str) or not _are_functions(functions) or not _are_turns(turns):
        return ERROR
    if answers is not None and id not in answers:
        return ERROR
    names = [function["name"].replace(".", "_") for function in functions]
    reasons = []
    if len(turns) != 1:
        reasons.append("several_turns")
    elif not turns[0] or turns[0][-1]["role"] != "user" or not turns[0][-1]["content"].strip():
        reasons.append("no_request")
    if not names:
        reasons.append("no_tools")
    if len(set(names)) < len(names):
        reasons.append("ambiguous_tools")
    calls = None if answers is None else answers[id]
    if calls is not None and isinstance(calls, list) and all(map(_is_call, calls)):
        reasons += _answer_reasons(calls, names, needs_several)
        if not reasons and any('{"' in comparable(values)[1:] for call in calls for values in call.values()):
            return verdict("prompt_only") | ERROR  # an accepted object has lists of its own
    return drop(*reasons) if reasons else verdict("prompt_only")


def _answer_reasons(calls: list[dict], names: list[str], needs_several: bool) -> list[str]:
    if not calls:
        return ["no_right_call"]
    if len(calls) > 1 and not needs_several:
        return ["several_calls"]
    named = [(name.replace(".", "_"), accepted) for call in calls for name, accepted in call.items()]
    reasons = ["unknown_tools"] * any(name not in names for name, _ in named)
    unanswerable = any(not values for _, accepted in named for values in accepted.values())
    return reasons + ["no_accepted_value"] * unanswerable


def _are_functions(functions: Any) -> bool:
    return isinstance(functions, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("name"), str)
        and isinstance(each.get("parameters"), dict)
        and isinstance(each["parameters"].get("properties"), dict)
        for each in functions
    )


def _are_turns(turns: Any) -> bool:
    return isinstance(turns, list) and all(isinstance(turn, list) and all(map(_is_message, turn)) for turn in turns)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message["role"], str)
        and isinstance(message.get("content"), str)
    )
