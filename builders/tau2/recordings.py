"""Recorded conversations: result files of τ², and trajectories of its predecessor τ-bench.

A result file (shortened; in the format of the benchmark's `Results` class):

    {"info": {"environment_info": {"domain_name": "retail", "policy": "...", "tool_defs": null},
              "agent_info": {"llm": "some-model", ...}, ...},
     "tasks": [{"id": "17", ...}],
     "simulations": [{"id": "0b7c...", "task_id": "17", "trial": 0, "termination_reason": "user_stop",
         "reward_info": {"reward": 1.0, ...},
         "messages": [{"role": "assistant", "content": "Hi! How can I help you today?"},
                      {"role": "user", "content": "..."}, ...]}]}

The results of a run may also be a folder: a `results.json` without simulations, and each of them in a file:

    run-1/results.json               {"info": {...}, "tasks": [...], "simulation_index": [{"id": "0b7c...", ...}]}
    run-1/simulations/0b7c....json   {"id": "0b7c...", "task_id": "17", ...}

A trajectory file:

    [{"task_id": 6, "trial": 0, "reward": 1.0, "info": {"task": {"user_id": "ada_osei_1234", ...}, ...},
      "traj": [{"role": "system", "content": "# Airline Agent Policy ..."}, {"role": "user", "content": "..."}, ...]}]
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from ..json_records import optional, read_json, required
from .conversation import Conversation, Unusable, add_openai_messages, add_tau2_messages, as_object
from .reference import RESULT_FOLDERS, RUN_FILE, Reference, run_folder
from .rewards import check_success
from .tasks import Task, customers_in, parse_task


_POLICY = re.compile(r"# (\w+) agent policy", re.IGNORECASE)


@dataclass(frozen=True)
class Recording:
    """One recorded conversation.

    Args:
        domain (`str`): The domain; empty if it is unknown.
        id (`str`): Id of the trace.
        group (`str`): Group of the trace, as [`Task.group`].
        task_id (`str`, *optional*): Id of the τ² task.
        where (`str`): File and position of the record.
        failure ([`Unusable`], *optional*): Why it is no success of the agent.
        policy (`str`, *optional*): The system prompt, if it is not among the messages.
        raw_messages (`list`): The messages as recorded.
        add_messages (`Callable`): Function that adds `raw_messages`, in their format, to a [`Conversation`].
        metadata (`dict`): The record's other fields.
    """

    domain: str
    id: str
    group: str
    task_id: str | None
    where: str
    failure: Unusable | None
    policy: str | None
    raw_messages: list
    add_messages: Callable[[Conversation, list, str], None]
    metadata: dict

    def build_conversation(self) -> Conversation:
        """Convert the recorded messages.

        Raises:
            ValueError: If a message does not have the benchmark's format.
            Unusable: If it is no success of the agent, or calls and results cannot be matched.
        """
        if self.failure is not None:
            raise self.failure
        conversation = Conversation()
        if self.policy is not None:
            conversation.add_text("system", self.policy)
        self.add_messages(conversation, self.raw_messages, self.where)
        return conversation


def read_recordings(file: Path, reference: Reference) -> Iterator[Recording]:
    """Yield the conversations of a result file (a JSON object) or a trajectory file (a JSON list).

    Raises:
        ValueError: If the file has neither format.
    """
    name = name_of(file)
    document = read_json(file, name)
    if isinstance(document, list):
        for number, record in enumerate(document):
            yield _trajectory_recording(record, file, f"{name}[{number}]")
    else:
        yield from _simulation_recordings(as_object(document, name), file, reference)


def name_of(file: Path) -> str:
    """Name of a file in errors and drops: with its folder, where several files may have the same name."""
    in_results = file.parent.name in RESULT_FOLDERS and file.name != RUN_FILE
    return file.name if in_results or file.name.startswith("taubench") else f"{file.parent.name}/{file.name}"


def _trajectory_recording(raw: object, file: Path, where: str) -> Recording:
    record = as_object(raw, where)
    task_id, trial = required(record, "task_id", (int, str), where), optional(record, "trial", int, where) or 0
    task = required(required(record, "info", dict, where), "task", dict, f"{where}.info")
    messages = required(record, "traj", list, where)
    customer = required(task, "user_id", str, f"{where}.info.task")
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    # A trajectory does not name its domain, but its system prompt begins with "# Airline Agent Policy".
    title = _POLICY.match(optional(first, "content", str, f"{where}.traj[0]") or "")
    domain = title[1].lower() if title else ""
    return Recording(
        domain=domain,
        id=f"tau2/{file.stem}/{task_id}/{trial}",
        # The tasks are older versions of τ²'s tasks with other ids, but the customers are the same.
        group=f"{domain}/{min(customers_in(customer), default=customer)}",
        task_id=None,
        where=where,
        failure=Unusable("reward_below_one") if required(record, "reward", (int, float), where) < 1 else None,
        policy=None,
        raw_messages=messages,
        add_messages=add_openai_messages,
        metadata={"kind": "taubench_trajectory", "generator": file.stem, "task_id": task_id, "trial": trial},
    )


def _simulation_recordings(document: dict, file: Path, reference: Reference) -> Iterator[Recording]:
    name = name_of(file)
    info = required(document, "info", dict, name)
    environment = required(info, "environment_info", dict, f"{name}: info")
    where = f"{name}: info.environment_info"
    # `telecom-workflow` is the telecom domain with its policy in another wording.
    domain = required(environment, "domain_name", str, where).removesuffix("-workflow")
    policy = required(environment, "policy", str, where)
    agent = optional(info, "agent_info", dict, f"{name}: info") or {}
    model = optional(agent, "llm", str, f"{name}: info.agent_info")
    tasks: dict[str, Task] = {}
    for number, record in enumerate(required(document, "tasks", list, name)):
        task = parse_task(record, domain, f"{name}: tasks[{number}]")
        tasks[task.id] = task
    for where, raw in _simulations(document, file, name):
        record = as_object(raw, where)
        task_id = required(record, "task_id", str, where)
        # The group comes from the task, so a simulation without its task cannot be assigned to a split.
        if task_id not in tasks:
            raise ValueError(f"{where}: task_id {task_id[:40]!r} is not among the file's tasks. Add the task to them.")
        yield Recording(
            domain=domain,
            id=f"tau2/{domain}/{task_id}/{required(record, 'id', str, where)}",
            group=tasks[task_id].group,
            task_id=task_id,
            where=where,
            failure=_failure(record, tasks[task_id], where),
            policy=policy,
            raw_messages=record.get("messages") or [],
            add_messages=add_tau2_messages,
            metadata={
                "kind": "tau2_result",
                "generator": model,
                "official_splits": reference.official_splits_of(domain, task_id),
                **{key: value for key, value in record.items() if key not in ("id", "messages", "reward_info")},
            },
        )


def _simulations(document: dict, file: Path, name: str) -> Iterator[tuple[str, object]]:
    """The simulations of a result file, or of the folder that it stands in, with their places."""
    folder = run_folder(file)
    inside = required(document, "simulations", list, name) if folder is None else document.get("simulations") or []
    for number, raw in enumerate(inside):
        yield f"{name}: simulations[{number}]", raw
    if folder is None:
        return
    names = [path.stem for path in sorted(folder.glob("*.json"))]
    for number, entry in enumerate(optional(document, "simulation_index", list, name) or []):
        at = f"{name}: simulation_index[{number}]"
        id = required(as_object(entry, at), "id", str, at)
        if id not in names:
            raise ValueError(f"{at}: {folder.parent.name}/{folder.name} has no {id[:80]}.json. Copy the whole folder.")
    for each in names:
        where = f"{folder.parent.name}/{folder.name}/{each}.json"
        yield where, read_json(folder / f"{each}.json", where)


def _failure(simulation: dict, task: Task, where: str) -> Unusable | None:
    try:
        check_success(simulation, task, where)
        # Runs of voice agents store ticks of audio instead.
        if required(simulation, "messages", (list, NoneType), where) is None:
            raise Unusable("no_messages")
    except Unusable as error:
        return error
    return None
