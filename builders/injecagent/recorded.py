"""Verdicts of the benchmark's own judge on recorded models, `recorded/<SETTING>/<model>/test_cases_<...>.json`.

One line per case, whatever the file's name says; shortened:

    {"User Instruction": ..., "Attacker Instruction": ..., "output": "Thought: ...\\nAction: ...\\nObservation: ...",
     "eval": "succ", "output Step 2": ..., "eval Step 2": "invalid", "invalid_reason  Step 2": ...}

`output` is text of a ReAct agent that goes on to invent its observations. It is no completion in a tool-call format,
so only the verdicts are kept.
"""

from collections.abc import Iterable
from pathlib import Path

from ..json_records import optional, read_json_lines, required


FOLDER = "recorded"
VERDICTS = ("succ", "unsucc", "invalid")

# Request and instruction of the attacker: together they name a case of one kind and setting.
CaseKey = tuple[str, str]


def case_key(record: dict, where: str) -> CaseKey:
    """The key of a case, or of the recorded output for it."""
    return required(record, "User Instruction", str, where), required(record, "Attacker Instruction", str, where)


def read_recorded(paths: Iterable[Path]) -> dict[str, dict[CaseKey, dict[str, dict]]]:
    """`{file name: {case: {model: verdicts}}}` of all recorded models.

    Args:
        paths (`Iterable[Path]`): The files. The folder of a file is the name of its model.

    Raises:
        ValueError: If a line is malformed, or has another verdict than `VERDICTS`.
    """
    verdicts: dict[str, dict[CaseKey, dict[str, dict]]] = {}
    for path in paths:
        by_case = verdicts.setdefault(path.name, {})
        for where, line in read_json_lines(path):
            by_case.setdefault(case_key(line, where), {})[path.parent.name] = _verdicts_of(line, where)
    return verdicts


def _verdicts_of(line: dict, where: str) -> dict:
    fields = {
        "eval": required(line, "eval", str, where),
        "invalid_reason": optional(line, "invalid_reason", str, where),
        "eval_step_2": optional(line, "eval Step 2", str, where),
        "invalid_reason_step_2": optional(line, "invalid_reason  Step 2", str, where),  # two blanks, as published
    }
    for name in ("eval", "eval_step_2"):
        if fields[name] not in (*VERDICTS, None):
            raise ValueError(f"{where}: {name} must be {', '.join(VERDICTS)}, got {fields[name][:20]!r}. Correct it.")
    return {name: value for name, value in fields.items() if value is not None}
