"""Tasks of τ² and what can be told from them without running anything: who is asked for what, and the reference path.

A task (of `domains/retail/tasks.json`, shortened):

    {"id": "17", "description": {...}, "ticket": null,
     "user_scenario": {"persona": null, "instructions": {"domain": "retail",
         "reason_for_call": "You want your money back ...", "known_info": "You are Ada Osei, ada_osei_1234.",
         "unknown_info": null, "task_instructions": "You are calm."}},
     "initial_state": {"initialization_data": null, "initialization_actions": [...], "message_history": [...]},
     "evaluation_criteria": {"actions": [{"action_id": "17_0", "name": "get_order_details",
         "arguments": {"order_id": "#W1"}, "requestor": "assistant"}], "reward_basis": ["DB"], ...}}
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..fujitsu import normalize_query
from ..json_records import optional, read_json, required
from .conversation import Unusable, as_object


# How a task names its customer: ada_osei_1234, or "Your name is Ada Osei".
_CUSTOMER_ID = re.compile(r"\b([a-z]+_[a-z]+)_\d{4}\b")
_CUSTOMER_NAME = re.compile(r"\bYou(?:'re| are|r? name is) ([A-Z][a-z]+) ([A-Z][a-z]+)\b")

# The parts of a scenario, in the order in which a customer comes to them.
_SCENARIO = ("reason_for_call", "known_info", "unknown_info", "task_instructions")


@dataclass(frozen=True)
class Action:
    """One step of the reference path; `requestor` is `assistant` or `user`."""

    name: str
    arguments: dict
    requestor: str


@dataclass(frozen=True)
class Task:
    """One task; `record` is all of it as read."""

    domain: str
    id: str
    where: str
    record: dict
    actions: tuple[Action, ...]

    @property
    def group(self) -> str:
        """What the task shares with its variants: its ticket, or else its customer.

        Tickets are whole prompts. Tasks about one customer are often the same request in another wording, with the
        same orders and reservations in every result.
        """
        ticket = normalize_query(self.record.get("ticket") or "")
        return f"{self.domain}/{ticket or self._customer or self.id}"

    @property
    def _customer(self) -> str | None:
        scenario = self.record.get("user_scenario") or {}
        by_id = customers_in(json.dumps([scenario, [action.arguments for action in self.actions]]))
        if len(by_id) == 1:
            return by_id.pop()
        instructions = scenario.get("instructions")
        known = instructions.get("known_info") if isinstance(instructions, dict) else None
        names = {"_".join(name).lower() for name in _CUSTOMER_NAME.findall(known or "")}
        return names.pop() if len(names) == 1 else None

    @property
    def user_turn(self) -> tuple[str, str]:
        """What the user says, and what it was made of: the `ticket`, or else the `scenario`.

        A scenario tells a simulated user in the second person what to want and how to behave. It is no prompt that
        anybody wrote for an agent; all of it is given, since the reference path relies on all of it.

        Raises:
            Unusable: If there is neither.
        """
        ticket = self.record.get("ticket") or ""
        if ticket.strip():
            return ticket, "ticket"
        instructions = (self.record.get("user_scenario") or {}).get("instructions") or ""
        if isinstance(instructions, dict):
            instructions = "\n\n".join(instructions[part] for part in _SCENARIO if instructions.get(part))
        if not instructions.strip():
            raise Unusable("no_user_turn")
        return instructions, "scenario"


def customers_in(text: str) -> set[str]:
    """The customers whose ids are in a text, by name: `ada_osei_1234` is `ada_osei`."""
    return set(_CUSTOMER_ID.findall(text))


def read_tasks(file: Path) -> Iterator[Task]:
    """The tasks of `domains/<domain>/tasks*.json`.

    Raises:
        ValueError: If the file is not a list of tasks.
    """
    domain = file.parent.name
    name = f"{domain}/{file.name}"
    records = read_json(file, name)
    if not isinstance(records, list):
        raise ValueError(f"{name}: expected a list of tasks, got {type(records).__name__}. Fetch the file again.")
    for number, record in enumerate(records):
        yield task_of(record, domain, f"{name}[{number}]")


def task_of(record: object, domain: str, where: str) -> Task:
    """The task in a record.

    Raises:
        ValueError: If a field is missing or of another type.
    """
    task = as_object(record, where)
    optional(task, "ticket", str, where)
    scenario = optional(task, "user_scenario", dict, where) or {}
    instructions = optional(scenario, "instructions", (dict, str), f"{where}.user_scenario")
    if isinstance(instructions, dict):
        for part in _SCENARIO:
            optional(instructions, part, str, f"{where}.user_scenario.instructions")
    criteria = optional(task, "evaluation_criteria", dict, where) or {}
    actions = optional(criteria, "actions", list, f"{where}.evaluation_criteria") or []
    return Task(
        domain=domain,
        id=required(task, "id", str, where),
        where=where,
        record=task,
        actions=tuple(
            _action_of(action, f"{where}.evaluation_criteria.actions[{number}]")
            for number, action in enumerate(actions)
        ),
    )


def _action_of(raw: object, at: str) -> Action:
    action = as_object(raw, at)
    requestor = optional(action, "requestor", str, at) or "assistant"  # files written before users had tools
    if requestor not in ("assistant", "user"):
        raise ValueError(f"{at}: field 'requestor' must be assistant or user, got {requestor[:40]!r}. Correct it.")
    return Action(required(action, "name", str, at), required(action, "arguments", dict, at), requestor)
