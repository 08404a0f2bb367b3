"""Rows of BFCL: a request with its answer, and the prompt that it becomes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..json_records import numbered_lines, parse_line, read_json_lines, required
from ..json_schema import standard_types
from ..trace import Dropped, message, to_json
from .answers import NoAcceptedValue, expected_call


# Categories whose requests need all calls of their answer in one turn.
PARALLEL = ("parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple")
# Categories with answers: the calls that are right. In the others no call is.
ANSWERED = ("simple_python", "multiple", "live_simple", "live_multiple", *PARALLEL)
CATEGORIES = (*ANSWERED, "irrelevance", "live_irrelevance")

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """A request with its answer.

    Args:
        file (`Path`): Its file.
        where (`str`): File and line.
        category (`str`): One of `CATEGORIES`.
        id (`str`): Its id in the benchmark.
        turns (`list[list[dict]]`): The messages of each turn.
        functions (`list[dict]`): The functions offered, with the names that are offered to a model.
        answer (`list[tuple[str, dict]]`, *optional*): Name and accepted arguments of each right call; `None` where
            no call is right.
    """

    file: Path
    where: str
    category: str
    id: str
    turns: list[list[dict]]
    functions: list[dict]
    answer: list[tuple[str, dict]] | None

    @property
    def subjects(self) -> list[str]:
        """Names of the functions that the row is about: those of the answer, or else the first one offered."""
        if self.answer is not None:
            return [name for name, _ in self.answer]
        return [function["name"] for function in self.functions[:1]]


def read_rows(files: Iterable[Path]) -> list[Row]:
    """The rows of all files of requests.

    Args:
        files (`Iterable[Path]`): The files, those of the answers among them.

    Raises:
        ValueError: If a line is malformed, or a request and an answer are without the other.
    """
    paths = sorted(files)
    answer_files = {path.name: path for path in paths if path.parent.name == "possible_answer"}
    return [
        row
        for path in paths
        if path.parent.name != "possible_answer"
        for row in _rows_of(path, answer_files.get(path.name))
    ]


def _rows_of(path: Path, answer_file: Path | None) -> Iterator[Row]:
    category = path.stem.removeprefix("BFCL_v4_")
    answers = None if answer_file is None else _read_answers(answer_file)
    for where, record in read_json_lines(path):
        id = required(record, "id", str, where)
        functions = [_function(each, where) for each in required(record, "function", list, where)]
        turns = [_turn(each, where) for each in required(record, "question", list, where)]
        if answers is not None and id not in answers:
            raise ValueError(f"{where}: possible_answer/{path.name} has no answer to {id[:60]!r}. Fetch both again.")
        yield Row(path, where, category, id, turns, functions, None if answers is None else answers[id])


def _read_answers(path: Path) -> dict[str, list[tuple[str, dict]]]:
    """Id -> name and accepted arguments of each right call."""
    answers = {}
    for where, line in numbered_lines(path):
        at = f"possible_answer/{where}"
        record = parse_line(line, at)
        id = required(record, "id", str, at)
        if id in answers:
            raise ValueError(f"{at}: a second answer to {id[:60]!r}. Fetch the file again.")
        answers[id] = [_answer(each, at) for each in required(record, "ground_truth", list, at)]
    return answers


def _answer(value: Any, at: str) -> tuple[str, dict]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{at}: a right call must be an object with the name of one function. Fetch the file again.")
    [(name, accepted)] = value.items()
    if not isinstance(accepted, dict) or not all(isinstance(each, list) for each in accepted.values()):
        raise ValueError(f"{at}: every argument of {name[:60]!r} must have a list of values. Fetch the file again.")
    return _safe(name), accepted


def _function(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a function must be an object, got {type(value).__name__}. Fetch the file again.")
    name = required(value, "name", str, where)
    parameters = required(value, "parameters", dict, where)
    required(parameters, "properties", dict, where)
    return {**value, "name": _safe(name), "parameters": standard_types(parameters)}


def _safe(name: str) -> str:
    """A function's name without dots, which many APIs forbid."""
    return name.replace(".", "_")


def _turn(value: Any, where: str) -> list[dict]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: a turn must be a list of messages, got {type(value).__name__}. Fetch it again.")
    messages = []
    for each in value:
        if not isinstance(each, dict):
            raise ValueError(f"{where}: a message must be an object, got {type(each).__name__}. Fetch it again.")
        role, content = required(each, "role", str, where), required(each, "content", str, where)
        if role not in _ROLES:
            raise ValueError(f"{where}: unknown role {role[:40]!r}. Correct it.")
        messages.append(message(role, content))
    return messages


def bfcl_trace(row: Row, group: str) -> dict | Dropped:
    """The prompt of a row, or why there is none.

    - `several_turns`: the request has several turns, or none.
    - `no_request`: the last message is not the user's, or is empty.
    - `no_tools`: no function is offered.
    - `ambiguous_tools`: two functions have one name.
    - `no_right_call`: the answer has no call.
    - `several_calls`: the answer has several calls, in a category of requests that need one.
    - `unknown_tools`: a right call is of a function that is not offered.
    - `no_accepted_value`: the answer accepts no value of an argument that it wants.

    Raises:
        ValueError: If the answer is malformed.
    """
    if len(row.turns) != 1:
        return Dropped("several_turns", row.where)
    [messages] = row.turns
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        return Dropped("no_request", row.where)
    names = [function["name"] for function in row.functions]
    if not names:
        return Dropped("no_tools", row.where)
    if len(set(names)) < len(names):
        return Dropped("ambiguous_tools", row.where)
    expected = None if row.answer is None else _expected_calls(row, row.answer)
    if isinstance(expected, Dropped):
        return expected
    return {
        "id": f"bfcl/{row.id}",
        "source": "bfcl",
        "group": group,
        "messages": messages,
        "tools": to_json([{"type": "function", "function": function} for function in row.functions]),
        "expected_tool": expected[0]["name"] if expected and len(expected) == 1 else None,
        "simulated_tool": None,
        "attack": None,
        "verdict": "prompt_only",
        "decision_turn": None,
        "metadata": to_json(
            {
                "task": "irrelevance" if expected is None else "capability",
                "category": row.category,
                **({} if expected is None else {"expected_calls": expected}),
            }
        ),
    }


def _expected_calls(row: Row, answer: list[tuple[str, dict]]) -> list[dict] | Dropped:
    """The right calls of a row, marked as `parallel` where there are several, or why it has none."""
    if not answer:
        return Dropped("no_right_call", row.where)
    if len(answer) > 1 and row.category not in PARALLEL:
        return Dropped("several_calls", row.where)
    parameters = {function["name"]: function["parameters"] for function in row.functions}
    if any(name not in parameters for name, _ in answer):
        return Dropped("unknown_tools", row.where)
    try:
        calls = [expected_call(name, accepted, parameters[name], row.where) for name, accepted in answer]
    except NoAcceptedValue:
        return Dropped("no_accepted_value", row.where)
    return calls if len(calls) == 1 else [{**call, "parallel": True} for call in calls]
