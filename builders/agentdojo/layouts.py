"""Parsing of records in either layout to a [`Run`], or to a drop."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from ..json_records import optional, parse_object, read_json, read_json_lines, required
from ..trace import Dropped, message, tool_call


# Reasoning, and the text form of the calls, which some pipelines leave in a turn in addition to the parsed calls.
_REASONING = re.compile(
    r"<(thinking|function[-_]thoughts?|search_quality_(?:reflection|score))>.*?(?:</\1>|\Z)", re.DOTALL
)
_TEXT_CALL = re.compile(r"(?:```\s*)?<function(?:[-_]call>|=).*?(?:</function(?:[-_]call)?>(?:\s*```)?|\Z)", re.DOTALL)
_NO_CALL = re.compile(r"<(function[-_]call)>\s*+\[?+\s*+\]?+\s*+</\1>")  # how some pipelines write that they make none
_ANSWER_TAG = re.compile(r"^<(?:final_answer|answer|result)>|</(?:final_answer|answer|result)>$", re.MULTILINE)

# The request of a pipeline that lets the model choose its tools first.
_FILTER_REQUEST = re.compile(r"\bfilter the list of tools\b", re.IGNORECASE)

# Fields of a run file whose value is in another column of the trace or has another name there; all others are copied
# to the metadata.
_NOT_IN_METADATA = {
    "suite_name",
    "user_task_id",
    "injection_task_id",
    "attack_type",
    "injections",
    "messages",
    "conversations",
    "error",
    "utility",
    "security",
}


@dataclass(frozen=True)
class Run:
    """One run, independent of its layout.

    Args:
        pipeline (`str`): Name of the model and its defence.
        suite, user_task (`str`): Suite and id of the user's task.
        injection_task, attack_type (`str`, *optional*): Id of the attacker's task and name of the attack; `None` in a
            clean run.
        messages (`list[dict]`): Messages in the format of a trace.
        utility, security (`bool`): The benchmark's labels: the user's task was solved; the attack succeeded.
        injections (`tuple[str, ...]`): The texts that were injected into the environment, if the run states them.
        chosen_tools (`str`, *optional*): Text in which the model chose its tools, if the pipeline asked for it.
        details (`dict`): The run's other fields.
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
    chosen_tools: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        attack_parts = (self.attack_type or "none", self.injection_task or "none")
        return "/".join(("agentdojo", self.pipeline, self.suite, self.user_task, *attack_parts))


def read_records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield `("file.jsonl:12", record)` for the lines of a dump, `("some-model/.../none.json", record)` for a run.

    Raises:
        ValueError: If a record is not a JSON object.
    """
    if path.suffix == ".jsonl":
        yield from read_json_lines(path)
        return
    where = "/".join(_last_parts(path))  # the file name alone is the same for thousands of runs
    record = read_json(path, where)
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a run must be an object, got {type(record).__name__}. Fetch the file again.")
    yield where, record


def _last_parts(path: Path) -> tuple[str, ...]:
    return path.absolute().parts[-5:]


def parse_run(record: dict, path: Path, where: str) -> Run | Dropped:
    """Parse one record of a file to a run, or drop it.

    Raises:
        ValueError: If a field is missing or has the wrong type.
    """
    if path.suffix == ".jsonl":
        # The pipeline is named by the file, not by the `model` field: file names are unique.
        return parse_dump_run(record, path.stem.removeprefix("agentdojo-"), where)
    return parse_file_run(record, path, where)


def parse_dump_run(record: dict, pipeline: str, where: str) -> Run | Dropped:
    """Parse a line of a dump, as [`parse_run`]."""
    metadata = required(record, "metadata", dict, where)
    if "messages" not in record and "benchmark" in metadata:
        return Dropped("header", where, is_record=False)
    return _build_run(record, metadata, pipeline, {}, where)


def parse_file_run(record: dict, path: Path, where: str) -> Run | Dropped:
    """Parse a run file, as [`parse_run`].

    The pipeline is named by the folder. `pipeline_name` in the file goes to the metadata: it is `local` for all local
    models, and omits the defence of some pipelines. If suite or tasks differ between the folders and the content, the
    file was moved and neither can be trusted: it is dropped as `misplaced`.
    """
    pipeline, *folders = _last_parts(path.with_suffix(""))
    details = {name: value for name, value in record.items() if name not in _NOT_IN_METADATA}
    run = _build_run(record, record, pipeline, details, where)
    if isinstance(run, Run) and run.id.split("/")[2:] != folders:
        return Dropped("misplaced", where, is_attacked=run.injection_task is not None)
    return run


def _build_run(record: dict, metadata: dict, pipeline: str, details: dict, where: str) -> Run | Dropped:
    # The field is null in clean runs, but must be present: an attacked run without it would be taken for a clean one.
    injection_task = required(metadata, "injection_task_id", (str, NoneType), where)
    is_attacked = injection_task is not None
    # DRIFT names them as chat data sets do.
    name = "conversations" if "messages" not in record and "conversations" in record else "messages"
    raw_messages = required(record, name, list, where)
    security = optional(metadata, "security", bool, where)
    if security is None:
        # A reason of its own: a file in which many records lack the label is another file than it seems.
        return Dropped("no_security", where, is_attacked=is_attacked)
    if not raw_messages:
        return Dropped("empty", where, is_attacked=is_attacked)
    # The labels of an aborted run are meaningless: runs with a context overflow were recorded as successful attacks.
    utility = optional(metadata, "utility" if "utility" in metadata else "success", bool, where)
    last, at = raw_messages[-1], f"{where}, message {len(raw_messages) - 1}"
    last_role = required(last, "role", str, at) if isinstance(last, dict) else None
    if utility is None or last_role != "assistant" or record.get("error"):
        return Dropped("aborted", where, is_attacked=is_attacked)
    user_task = required(metadata, "user_task_id", str, where)
    if user_task.startswith("injection_task"):
        # The benchmark also asks for the attacker's goal openly, to see whether the model can reach it at all.
        return Dropped("attacker_as_user", where)
    messages, chosen_tools = cut_tool_choice(wire_messages(raw_messages, where))
    # A run may end with the choice of tools.
    reason = calls_drop_reason(messages) or (None if messages[-1]["role"] == "assistant" else "aborted")
    if reason is not None:
        return Dropped(reason, where, is_attacked=is_attacked)
    injections = optional(record, "injections", dict, where) or {}
    texts = [required(injections, vector, str, f"{where}, injections") for vector in injections]
    return Run(
        pipeline=pipeline,
        suite=required(metadata, "suite_name", str, where),
        user_task=user_task,
        injection_task=injection_task,
        attack_type=optional(metadata, "attack_type", str, where),
        messages=messages,
        utility=utility,
        security=security,
        injections=tuple(dict.fromkeys(texts)),
        chosen_tools=chosen_tools,
        details=details,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Messages


def wire_messages(raw_messages: list, where: str) -> list[dict]:
    """Convert a run's messages to the format of a trace.

    Calls are renumbered (`call_0`, `call_1`, ...). Results are matched by order and name to the calls of the turn
    before them; a result without a matching call gets no id.

    Raises:
        ValueError: If a field is missing or has the wrong type.
    """
    messages: list[dict] = []
    unanswered: list[dict] = []  # calls of the last assistant turn without a result yet
    num_calls = 0
    for number, raw in enumerate(raw_messages):
        at = f"{where}, message {number}"
        if not isinstance(raw, dict):
            raise ValueError(f"{at}: expected an object, got {type(raw).__name__}. Correct it.")
        role = required(raw, "role", str, at)
        content = _content_text(raw, at)
        if role == "tool":
            tool = required(required(raw, "tool_call", dict, at), "function", str, at)
            is_next = bool(unanswered) and unanswered[0]["function"]["name"] == tool
            call_id = unanswered.pop(0)["id"] if is_next else None
            content = optional(raw, "error", str, at) or content  # the model read the error of a failed call
            messages.append(message("tool", content, tool_call_id=call_id, name=tool))
        elif role == "assistant":
            calls = _wire_calls(optional(raw, "tool_calls", list, at) or [], num_calls, at)
            num_calls += len(calls)
            unanswered = list(calls)
            messages.append(message("assistant", _visible_text(content, bool(calls)), calls))
        elif role in ("system", "user"):
            unanswered = []
            messages.append(message(role, content))
        else:
            raise ValueError(f"{at}: unknown role {role[:40]!r}. Correct it.")
    return messages


def _content_text(raw: dict, at: str) -> str | None:
    """Text of a message, whose content may be a list of blocks; blocks of reasoning are left out."""
    content = optional(raw, "content", (str, list), at)
    if not isinstance(content, list):
        return content
    texts = []
    for block in content:
        if not isinstance(block, dict):
            raise ValueError(f"{at}: a block of content must be an object, got {type(block).__name__}. Correct it.")
        block_type = required(block, "type", str, at)
        if block_type == "text":
            # AgentDojo says "content", OpenAI's API "text".
            texts.append(optional(block, "text" if "text" in block else "content", str, at) or "")
        elif block_type not in ("thinking", "redacted_thinking"):
            raise ValueError(f"{at}: unknown type of content {block_type[:40]!r}. Delete the record.")
    return "\n".join(texts) if texts else None


def _wire_calls(raw_calls: list, first_id: int, at: str) -> list[dict]:
    calls = []
    for number, raw in enumerate(raw_calls, start=first_id):
        if not isinstance(raw, dict):
            raise ValueError(f"{at}: a tool call must be an object, got {type(raw).__name__}. Correct it.")
        function = required(raw, "function", (dict, str), at)
        if isinstance(function, str):  # run files have flat calls, dumps have OpenAI's format
            name, arguments = function, required(raw, "args", (dict, str), at)
        else:
            name, arguments = required(function, "name", str, at), required(function, "arguments", (dict, str), at)
        if isinstance(arguments, str):
            try:
                arguments = parse_object(arguments)
            except ValueError as error:
                raise ValueError(
                    f"{at}: the arguments of a call are not a JSON object ({error}). Correct it."
                ) from None
        calls.append(tool_call(name, arguments, id=f"call_{number}"))
    return calls


def _visible_text(content: str | None, has_calls: bool) -> str | None:
    """Text of a turn without reasoning and without the text form of its calls.

    Of a turn that reasons between its words, only those after the reasoning are kept, which may have revised the
    others: "An important message, I do that first. <thinking>An injection.</thinking> On with the bill." If there are
    none, a turn with calls has no text. A turn without calls is then unchanged, as is one with a call that was not
    parsed.
    """
    if not content or "<" not in content:
        return content and (content.strip() or (None if has_calls else content))
    if not has_calls and _TEXT_CALL.search(_NO_CALL.sub("", content)):
        return content
    *_, visible = _REASONING.split(content)
    for pattern in (_TEXT_CALL, _ANSWER_TAG):
        visible = pattern.sub("", visible)
    return visible.strip() or (None if has_calls else content)


def cut_tool_choice(messages: list[dict]) -> tuple[list[dict], str | None]:
    """Cut the two turns in which a pipeline lets the model choose its tools, and return the choice too.

    user         Pay the bill in bill.txt.
    user         Your task is to filter the list of tools ...      cut
    assistant    read_file, send_money                             cut: after it, the model has these tools only
    assistant    read_file(file_path="bill.txt")
    """
    roles = [turn["role"] for turn in messages]
    first = roles.index("assistant") if "assistant" in roles else 0
    is_choice = roles[max(first - 2, 0) : first] == ["user", "user"] and not messages[first]["tool_calls"]
    if not is_choice or not _FILTER_REQUEST.search(messages[first - 1]["content"] or ""):
        return messages, None
    return [*messages[: first - 1], *messages[first + 1 :]], messages[first]["content"] or ""


def calls_drop_reason(messages: list[dict]) -> str | None:
    """Drop reason of a run whose calls and results cannot be used, or `None`.

    - `non_native_calls`: the model wrote a program, and its interpreter made the calls.
    - `unpaired_result`: a result does not match a call of the turn before it.
    """
    tools = {turn["name"] for turn in messages if turn["role"] == "tool"}
    if any(turn["role"] == "assistant" and _is_program(turn["content"] or "", tools) for turn in messages):
        return "non_native_calls"
    if any(turn["role"] == "tool" and turn["tool_call_id"] is None for turn in messages):
        return "unpaired_result"
    return None


def _is_program(text: str, tools: set[str]) -> bool:
    return "```python" in text and any(f"{tool}(" in text for tool in tools)
