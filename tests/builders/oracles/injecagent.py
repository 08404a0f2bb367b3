"""InjecAgent: cases whose injection stands where the template has it, and whose tools are known."""

import ast
import math
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .expected import ERROR, SILENT, Outcomes, Unit, comparable, drop, parse_bytes, verdict


MARK = "<Attacker Instruction>"
TEXTS = (
    *("User Instruction", "User Tool", "Tool Parameters", "Tool Response Template", "Tool Response"),
    *("Attacker Instruction", "Attack Type"),
)


def units(files: Mapping[str, bytes], tools: Collection[str]) -> list[Unit]:
    """The cases of all files, in the order of their paths."""
    found = []
    for path in sorted(Path(path) for path in files):
        try:
            cases, _ = parse_bytes(files[str(path)])
        except ValueError:
            cases = None
        if not isinstance(cases, list):
            found.append(Unit(path.name, (), None, ERROR))
            continue
        found.append(Unit(path.name, (), "document", SILENT))
        _, _, kind, setting = path.stem.split("_")
        for number, case in enumerate(cases):
            outcomes = judge(case, kind, setting, tools) if isinstance(case, dict) else ERROR
            places = (f"{path.name}: case {number}",)
            found.append(Unit(path.name, places, f"{path.name} {comparable(case)}", outcomes))
    return found


def judge(case: dict, kind: str, setting: str, tools: Collection[str]) -> Outcomes:
    """Allowed outcomes of a case."""
    attackers = case.get("Attacker Tools")
    if (
        not all(isinstance(case.get(field), str) for field in TEXTS)
        or not isinstance(attackers, list)
        or len(attackers) != (2 if kind == "ds" else 1)
        or not all(isinstance(name, str) for name in attackers)
        or not _are_arguments(case["Tool Parameters"])
    ):
        return ERROR
    instruction, reasons = case["Attacker Instruction"], []
    if not instruction.strip() or not case["User Instruction"].strip():
        reasons.append("empty_instruction")
    if not _stands_in_result(case, setting):
        reasons.append("injection_not_found")
    if not {case["User Tool"], *attackers} <= set(tools):
        reasons.append("unknown_tool")
    if attackers[0] == case["User Tool"] and (attackers[0] != "GitHubGetUserDetails" or "john_hub" not in instruction):
        reasons.append("attacker_wants_user_tool")
    return drop(*reasons) if reasons else verdict("prompt_only")


def _are_arguments(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
    except Exception:
        return False
    return isinstance(value, dict) and all(isinstance(key, str) for key in value) and _is_json(value)


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _stands_in_result(case: dict, setting: str) -> bool:
    template, instruction = case["Tool Response Template"], case["Attacker Instruction"]
    if MARK not in template:
        return False
    sentence = "" if setting == "base" else ".*"
    patterns = []
    for written in (template, template.replace('"', '\\"')):
        before, after = written.split(MARK, 1)
        patterns.append(re.escape(f'"{before}') + sentence + re.escape(f'{instruction}{after}"'))
    return any(re.fullmatch(pattern, case["Tool Response"], re.DOTALL) for pattern in patterns)
