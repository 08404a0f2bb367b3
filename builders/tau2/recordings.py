"""Recorded conversations: the result files of τ², and the trajectories of its predecessor τ-bench.

A result file (shortened; as the benchmark's own `Results` class writes it):

    {"info": {"environment_info": {"domain_name": "retail", "policy": "...", "tool_defs": null},
              "agent_info": {"llm": "some-model", ...}, ...},
     "tasks": [{"id": "17", ...}],
     "simulations": [{"id": "0b7c...", "task_id": "17", "trial": 0, "termination_reason": "user_stop",
         "reward_info": {"reward": 1.0, ...},
         "messages": [{"role": "assistant", "content": "Hi! How can I help you today?"},
                      {"role": "user", "content": "..."}, ...]}]}

A file of trajectories:

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
from .tasks import Task, customers_in, task_of


_POLICY = re.compile(r"# (\w+) agent policy", re.IGNORECASE)


@dataclass(frozen=True)
class Recording:
    """One recorded conversation.

    Args:
        domain (`str`): The domain; the empty text if it cannot be told.
        id (`str`): Id of the trace.
        group (`str`): As [`Task.group`].
        where (`str`): File and place.
        reward (`float`, *optional*): The benchmark's verdict; `None` for a run that it did not judge.
        policy (`str`, *optional*): The system prompt, where it is not among the messages.
        raw_messages (`list`): The messages as recorded.
        add_messages (`Callable`): What reads them.
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

    def conversation(self) -> Conversation:
        """The conversation.

        Raises:
            ValueError: If a message is not as the benchmark writes it.
            Unusable: If calls and results do not belong together.
        """
        conversation = Conversation()
        if self.policy is not None:
            conversation.say("system", self.policy)
        self.add_messages(conversation, self.raw_messages, self.where)
        return conversation


def read_recordings(file: Path, reference: Reference) -> Iterator[Recording]:
    """The conversations of a result file or a file of trajectories; which one it is, its content tells.

    Raises:
        ValueError: If it is neither.
    """
    document = read_json(file)
    if isinstance(document, list):
        for number, record in enumerate(document):
            yield _trajectory(record, file, f"{file.name}[{number}]")
    else:
        yield from _simulations(as_object(document, file.name), file, reference)


def _trajectory(raw: object, file: Path, where: str) -> Recording:
    record = as_object(raw, where)
    task_id, trial = required(record, "task_id", (int, str), where), optional(record, "trial", int, where) or 0
    task = required(required(record, "info", dict, where), "task", dict, f"{where}.info")
    messages = required(record, "traj", list, where)
    customer = required(task, "user_id", str, f"{where}.info.task")
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    named = _POLICY.match(optional(first, "content", str, f"{where}.traj[0]") or "")
    domain = named[1].lower() if named else ""
    return Recording(
        domain=domain,
        id=f"tau2/{file.stem}/{task_id}/{trial}",
        # The tasks are older versions of τ²'s under other numbers; the customers are the same.
        group=f"{domain}/{min(customers_in(customer), default=customer)}",
        where=where,
        reward=required(record, "reward", (int, float), where),
        policy=None,
        raw_messages=messages,
        add_messages=add_openai_messages,
        metadata={"kind": "taubench_trajectory", "generator": file.stem, "task_id": task_id, "trial": trial},
    )


def _simulations(document: dict, file: Path, reference: Reference) -> Iterator[Recording]:
    info = required(document, "info", dict, file.name)
    environment = required(info, "environment_info", dict, f"{file.name}: info")
    where = f"{file.name}: info.environment_info"
    # The same domain with its policy in another wording has a name of its own.
    domain = required(environment, "domain_name", str, where).removesuffix("-workflow")
    policy = required(environment, "policy", str, where)
    agent = optional(info, "agent_info", dict, f"{file.name}: info") or {}
    model = optional(agent, "llm", str, f"{file.name}: info.agent_info")
    tasks: dict[str, Task] = {}
    for number, record in enumerate(required(document, "tasks", list, file.name)):
        task = task_of(record, domain, f"{file.name}: tasks[{number}]")
        tasks[task.id] = task
    for number, raw in enumerate(required(document, "simulations", list, file.name)):
        where = f"{file.name}: simulations[{number}]"
        record = as_object(raw, where)
        task_id = required(record, "task_id", str, where)
        if task_id not in tasks:
            raise ValueError(f"{where}: task_id {task_id[:40]!r} is none of the file's tasks. Add the task to them.")
        score = optional(record, "reward_info", dict, where)
        yield Recording(
            domain=domain,
            id=f"tau2/{domain}/{task_id}/{required(record, 'id', str, where)}",
            group=tasks[task_id].group,
            where=where,
            reward=None if score is None else required(score, "reward", (int, float), f"{where}.reward_info"),
            policy=policy,
            raw_messages=required(record, "messages", list, where),
            add_messages=add_tau2_messages,
            metadata={
                "kind": "tau2_result",
                "generator": model,
                "official_splits": reference.splits_of(domain, task_id),
                **{key: value for key, value in record.items() if key not in ("id", "messages", "reward_info")},
            },
        )
