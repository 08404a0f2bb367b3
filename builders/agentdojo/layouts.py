"""From a record of either layout to a `Run`, or to the reason why it is none."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from ..json_records import optional, parse_object, read_json, read_json_lines, required
from ..trace import Dropped, message, tool_call


# Reasoning, and calls as text, that some pipelines leave in a turn beside the calls parsed from it.
_THOUGHT = re.compile(r"<(thinking|function[-_]thoughts?)>.*?(?:</\1>|\Z)", re.DOTALL)
_TEXT_CALL = re.compile(r"(?:```\s*)?<function(?:[-_]call>|=).*?(?:</function(?:[-_]call)?>(?:\s*```)?|\Z)", re.DOTALL)
_ANSWER_TAG = re.compile(r"</?final_answer>")

# Fields of a run's file that a trace has in columns or under names of its own; all others go to the metadata.
_CARRIED = {
    "suite_name",
    "user_task_id",
    "injection_task_id",
    "attack_type",
    "injections",
    "messages",
    "error",
    "utility",
    "security",
}


@dataclass(frozen=True)
class Run:
    """One run, whatever layout it came in.

    Args:
        pipeline (`str`): The model with its defence.
        suite, user_task (`str`): What it worked on.
        injection_task, attack_type (`str`, *optional*): What the attacker wanted and how it was put; `None` in a
            clean run.
        messages (`list[dict]`): As a trace has them.
        utility, security (`bool`): The benchmark's verdicts.
        injections (`tuple[str, ...]`): The texts that were put into the environment, where the run states them.
        details (`dict`): Its other fields.
    """

    pipeline: str
    suite: str
    user_task: str
    injection_task: str | None
    attack_type: str | None
    messages: list[dict]
    utility: bool
    security: bool
    injections: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        attack_parts = (self.attack_type or "none", self.injection_task or "none")
        return "/".join(("agentdojo", self.pipeline, self.suite, self.user_task, *attack_parts))


def read_records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield `("file.jsonl:12", record)` for every line of a dump, `("some-model/.../none.json", record)` for a run.

    Raises:
        ValueError: If a record is not a JSON object.
    """
    if path.suffix == ".jsonl":
        yield from read_json_lines(path)
        return
    where = "/".join(_folders(path))  # thousands of these files have one name
    record = read_json(path, where)
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a run must be an object, got {type(record).__name__}. Fetch the file again.")
    yield where, record


def _folders(path: Path) -> tuple[str, ...]:
    return path.absolute().parts[-5:]


def run_of(record: dict, path: Path, where: str) -> Run | Dropped:
    """The run in one record of a file, or why it is none.

    Raises:
        ValueError: If the record lacks a field or a field has the wrong type.
    """
    if path.suffix == ".jsonl":
        # The file name, not the `model` field, names the pipeline: it cannot repeat.
        return run_of_dump(record, path.stem.removeprefix("agentdojo-"), where)
    return run_of_file(record, path, where)


def run_of_dump(record: dict, pipeline: str, where: str) -> Run | Dropped:
    """As [`run_of`], for a line of a dump."""
    metadata = required(record, "metadata", dict, where)
    if "messages" not in record and "benchmark" in metadata:
        return Dropped("header", where, is_record=False)
    return _run(record, metadata, pipeline, {}, where)


def run_of_file(record: dict, path: Path, where: str) -> Run | Dropped:
    """As [`run_of`], for a run of its own file.

    The folder names the pipeline, the content says what the run is. `pipeline_name` inside is kept in the metadata: it
    is `local` for all local models, and lacks the defence of some pipelines. Where the other folders and the content
    disagree, the file was moved, and neither is to be trusted: it is dropped as `misplaced`.
    """
    pipeline, *folders = _folders(path.with_suffix(""))
    details = {name: value for name, value in record.items() if name not in _CARRIED}
    run = _run(record, record, pipeline, details, where)
    if isinstance(run, Run) and run.id.split("/")[2:] != folders:
        return Dropped("misplaced", where, is_attacked=run.injection_task is not None)
    return run


def _run(record: dict, facts: dict, pipeline: str, details: dict, where: str) -> Run | Dropped:
    # Null in clean runs, and always there: without it an attacked run would pass for a clean one.
    injection_task = required(facts, "injection_task_id", (str, NoneType), where)
    is_attacked = injection_task is not None
    raw_messages = required(record, "messages", list, where)
    if not raw_messages:
        return Dropped("empty", where, is_attacked=is_attacked)
    # The verdicts of a run that broke off mean nothing: a context overflow was recorded as a successful attack.
    utility = optional(facts, "utility" if "utility" in facts else "success", bool, where)
    security = optional(facts, "security", bool, where)
    last_role = raw_messages[-1].get("role") if isinstance(raw_messages[-1], dict) else None
    if utility is None or security is None or last_role != "assistant" or record.get("error"):
        return Dropped("aborted", where, is_attacked=is_attacked)
    user_task = required(facts, "user_task_id", str, where)
    if user_task.startswith("injection_task"):
        return Dropped("attacker_as_user", where)  # the attacker's goal, asked for openly to see if it can be done
    messages = wire_messages(raw_messages, where)
    fault = fault_of(messages)
    if fault is not None:
        return Dropped(fault, where, is_attacked=is_attacked)
    injections = optional(record, "injections", dict, where) or {}
    texts = [required(injections, vector, str, f"{where}, injections") for vector in injections]
    return Run(
        pipeline=pipeline,
        suite=required(facts, "suite_name", str, where),
        user_task=user_task,
        injection_task=injection_task,
        attack_type=optional(facts, "attack_type", str, where),
        messages=messages,
        utility=utility,
        security=security,
        injections=tuple(dict.fromkeys(texts)),
        details=details,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Messages


def wire_messages(raw_messages: list, where: str) -> list[dict]:
    """A run's messages as a trace has them.

    Calls are numbered afresh (`call_0`, `call_1`, ...), and a result gets the id of the call that it answers, which
    its place tells; a result that answers no call of the turn before it gets none.

    Raises:
        ValueError: If a message lacks a field or a field has the wrong type.
    """
    messages: list[dict] = []
    waiting: list[dict] = []  # calls of the last assistant turn that are not answered yet
    calls_so_far = 0
    for number, raw in enumerate(raw_messages):
        at = f"{where}, message {number}"
        if not isinstance(raw, dict):
            raise ValueError(f"{at}: expected an object, got {type(raw).__name__}. Correct it.")
        role = required(raw, "role", str, at)
        content = _text(raw, at)
        if role == "tool":
            called = required(required(raw, "tool_call", dict, at), "function", str, at)
            answers = waiting.pop(0)["id"] if waiting and waiting[0]["function"]["name"] == called else None
            content = optional(raw, "error", str, at) or content
            messages.append(message("tool", content, tool_call_id=answers, name=called))
        elif role == "assistant":
            calls = _wire_calls(optional(raw, "tool_calls", list, at) or [], calls_so_far, at)
            calls_so_far += len(calls)
            waiting = list(calls)
            messages.append(message("assistant", _spoken(content, bool(calls)), calls))
        elif role in ("system", "user"):
            waiting = []
            messages.append(message(role, content))
        else:
            raise ValueError(f"{at}: unknown role {role[:40]!r}. Correct it.")
    return messages


def _text(raw: dict, at: str) -> str | None:
    """The content of a message: text, or a list of blocks, of which the model's thoughts are left out."""
    content = optional(raw, "content", (str, list), at)
    if not isinstance(content, list):
        return content
    texts = []
    for block in content:
        if not isinstance(block, dict):
            raise ValueError(f"{at}: a block of content must be an object, got {type(block).__name__}. Correct it.")
        kind = required(block, "type", str, at)
        if kind == "text":
            texts.append(optional(block, "content", str, at) or "")
        elif kind not in ("thinking", "redacted_thinking"):
            raise ValueError(f"{at}: unknown type of content {kind[:40]!r}. Delete the record.")
    return "\n".join(texts) if texts else None


def _wire_calls(raw_calls: list, first_id: int, at: str) -> list[dict]:
    calls = []
    for number, raw in enumerate(raw_calls, start=first_id):
        if not isinstance(raw, dict):
            raise ValueError(f"{at}: a tool call must be an object, got {type(raw).__name__}. Correct it.")
        function = required(raw, "function", (dict, str), at)
        if isinstance(function, str):
            name, arguments = function, required(raw, "args", (dict, str), at)
        else:
            name, arguments = required(function, "name", str, at), required(function, "arguments", (dict, str), at)
        if isinstance(arguments, str):
            try:
                arguments = parse_object(arguments)
            except ValueError as error:
                raise ValueError(f"{at}: the arguments of a call are no JSON object ({error}). Correct it.") from None
        calls.append(tool_call(name, arguments, id=f"call_{number}"))
    return calls


def _spoken(content: str | None, has_calls: bool) -> str | None:
    """What a turn says, without its thoughts and without the text of its calls.

    A turn stays as it is if it is all thought, or if its text holds a call that was not understood and not made.
    """
    if not content or (not has_calls and _TEXT_CALL.search(content)):
        return content
    said = content
    if "<" in content:
        for aside in (_THOUGHT, _TEXT_CALL, _ANSWER_TAG):
            said = aside.sub("", said)
    return said.strip() or (None if has_calls else content)


def fault_of(messages: list[dict]) -> str | None:
    """Why calls and results of a run cannot be told, or `None`.

    - `non_native_calls`: the model wrote a program, and the calls are its interpreter's.
    - `unpaired_result`: a result answers no call of the turn before it.
    """
    tools = {turn["name"] for turn in messages if turn["role"] == "tool"}
    if any(turn["role"] == "assistant" and _is_program(turn["content"] or "", tools) for turn in messages):
        return "non_native_calls"
    if any(turn["role"] == "tool" and turn["tool_call_id"] is None for turn in messages):
        return "unpaired_result"
    return None


def _is_program(text: str, tools: set[str]) -> bool:
    return "```python" in text and any(f"{tool}(" in text for tool in tools)
