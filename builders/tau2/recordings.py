"""Recorded conversations: result files of τ², and trajectories of its predecessor τ-bench.

A result file (shortened; in the format of the benchmark's `Results` class):

    {"info": {"environment_info": {"domain_name": "retail", "policy": "...", "tool_defs": null},
              "agent_info": {"llm": "some-model", ...}, ...},
     "tasks": [{"id": "17", ...}],
     "simulations": [{"id": "0b7c...", "task_id": "17", "trial": 0, "termination_reason": "user_stop",
         "reward_info": {"reward": 1.0, ...},
         "messages": [{"role": "assistant", "content": "Hi! How can I help you today?"},
                      {"role": "user", "content": "..."}, ...]}]}

A trajectory file:

    [{"task_id": 6, "trial": 0, "reward": 1.0, "info": {"task": {"user_id": "ada_osei_1234", ...}, ...},
      "traj": [{"role": "system", "content": "# Airline Agent Policy ..."}, {"role": "user", "content": "..."}, ...]}]
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..json_records import optional, read_json, required
from .conversation import Conversation, add_openai_messages, add_tau2_messages, as_object
from .reference import Reference
from .tasks import Task, customers_in, parse_task


_POLICY = re.compile(r"# (\w+) agent policy", re.IGNORECASE)


@dataclass(frozen=True)
class Recording:
    """One recorded conversation.

    Args:
        domain (`str`): The domain; empty if it is unknown.
        id (`str`): Id of the trace.
        group (`str`): Group of the trace, as [`Task.group`].
        where (`str`): File and position of the record.
        reward (`float`, *optional*): Reward from the benchmark; `None` for a run that was not scored.
        policy (`str`, *optional*): The system prompt, if it is not among the messages.
        raw_messages (`list`): The messages as recorded.
        add_messages (`Callable`): Function that adds `raw_messages`, in their format, to a [`Conversation`].
        metadata (`dict`): The record's other fields.
    """

    domain: str
    id: str
    group: str
    where: str
    reward: float | None
    policy: str | None
    raw_messages: list
    add_messages: Callable[[Conversation, list, str], None]
    metadata: dict

    def build_conversation(self) -> Conversation:
        """Convert the recorded messages.

        Raises:
            ValueError: If a message does not have the benchmark's format.
            Unusable: If calls and results cannot be matched.
        """
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
    document = read_json(file)
    if isinstance(document, list):
        for number, record in enumerate(document):
            yield _trajectory_recording(record, file, f"{file.name}[{number}]")
    else:
        yield from _simulation_recordings(as_object(document, file.name), file, reference)


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
        where=where,
        reward=required(record, "reward", (int, float), where),
        policy=None,
        raw_messages=messages,
        add_messages=add_openai_messages,
        metadata={"kind": "taubench_trajectory", "generator": file.stem, "task_id": task_id, "trial": trial},
    )


def _simulation_recordings(document: dict, file: Path, reference: Reference) -> Iterator[Recording]:
    info = required(document, "info", dict, file.name)
    environment = required(info, "environment_info", dict, f"{file.name}: info")
    where = f"{file.name}: info.environment_info"
    # `telecom-workflow` is the telecom domain with its policy in another wording.
    domain = required(environment, "domain_name", str, where).removesuffix("-workflow")
    policy = required(environment, "policy", str, where)
    agent = optional(info, "agent_info", dict, f"{file.name}: info") or {}
    model = optional(agent, "llm", str, f"{file.name}: info.agent_info")
    tasks: dict[str, Task] = {}
    for number, record in enumerate(required(document, "tasks", list, file.name)):
        task = parse_task(record, domain, f"{file.name}: tasks[{number}]")
        tasks[task.id] = task
    for number, raw in enumerate(required(document, "simulations", list, file.name)):
        where = f"{file.name}: simulations[{number}]"
        record = as_object(raw, where)
        task_id = required(record, "task_id", str, where)
        # The group comes from the task, so a simulation without its task cannot be assigned to a split.
        if task_id not in tasks:
            raise ValueError(f"{where}: task_id {task_id[:40]!r} is not among the file's tasks. Add the task to them.")
        info = optional(record, "reward_info", dict, where)
        reward = None if info is None else required(info, "reward", (int, float), f"{where}.reward_info")
        yield Recording(
            domain=domain,
            id=f"tau2/{domain}/{task_id}/{required(record, 'id', str, where)}",
            group=tasks[task_id].group,
            where=where,
            reward=reward,
            policy=policy,
            raw_messages=required(record, "messages", list, where),
            add_messages=add_tau2_messages,
            metadata={
                "kind": "tau2_result",
                "generator": model,
                "official_splits": reference.official_splits_of(domain, task_id),
                **{key: value for key, value in record.items() if key not in ("id", "messages", "reward_info")},
            },
        )
