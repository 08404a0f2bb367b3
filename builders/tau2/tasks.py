"""Tasks of τ²: user turn, customer and reference actions, read without running the benchmark.

A task (from `domains/retail/tasks.json`, shortened):

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
from .user_words import SCENARIO, user_words


# Forms in which a task names its customer: ada_osei_1234, or "Your name is Ada Osei".
_CUSTOMER_ID = re.compile(r"\b([a-z]+_[a-z]+)_\d{4}\b")
_CUSTOMER_NAME = re.compile(r"\bYou(?:'re| are|r? name is) ([A-Z][a-z]+) ([A-Z][a-z]+)\b")


@dataclass(frozen=True)
class Action:
    """One reference action; `requestor` is `assistant` or `user`."""

    name: str
    arguments: dict
    requestor: str


@dataclass(frozen=True)
class Task:
    """One task; `record` holds all of its fields as read."""

    domain: str
    id: str
    where: str
    record: dict
    actions: tuple[Action, ...]

    @property
    def task_id(self) -> str:
        return self.id

    @property
    def group(self) -> str:
        """Group that the task shares with its variants: by ticket, or otherwise by customer.

        A ticket is a complete prompt. Tasks about one customer are often the same request in another wording, with the
        same orders and reservations in the results.
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
        """The user turn and its origin: the `ticket`, or otherwise the `rewritten_scenario`.

        Raises:
            Unusable: If the task has neither, or if its scenario only directs the simulated user.
        """
        ticket = self.record.get("ticket") or ""
        if ticket.strip():
            return ticket, "ticket"
        instructions = (self.record.get("user_scenario") or {}).get("instructions") or ""
        if isinstance(instructions, str):
            instructions = {SCENARIO[0]: instructions}
        if not any((instructions.get(field) or "").strip() for field in SCENARIO):
            raise Unusable("no_user_turn")
        words = user_words(instructions)
        if words is None:
            raise Unusable("scripted_user_turn")
        return words, "rewritten_scenario"


def customers_in(text: str) -> set[str]:
    """Names of the customers whose ids occur in a text: `ada_osei` for `ada_osei_1234`."""
    return set(_CUSTOMER_ID.findall(text))


def read_tasks(file: Path) -> Iterator[Task]:
    """Yield the tasks of `domains/<domain>/tasks*.json`.

    Raises:
        ValueError: If the file is not a list of tasks.
    """
    domain = file.parent.name
    name = f"{domain}/{file.name}"
    records = read_json(file, name)
    if not isinstance(records, list):
        raise ValueError(f"{name}: expected a list of tasks, got {type(records).__name__}. Fetch the file again.")
    for number, record in enumerate(records):
        yield parse_task(record, domain, f"{name}[{number}]")


def parse_task(record: object, domain: str, where: str) -> Task:
    """Check the fields of a record and return the task.

    Raises:
        ValueError: If a field is missing or has the wrong type.
    """
    task = as_object(record, where)
    optional(task, "ticket", str, where)
    scenario = optional(task, "user_scenario", dict, where) or {}
    instructions = optional(scenario, "instructions", (dict, str), f"{where}.user_scenario")
    if isinstance(instructions, dict):
        for field in SCENARIO:
            optional(instructions, field, str, f"{where}.user_scenario.instructions")
    criteria = optional(task, "evaluation_criteria", dict, where) or {}
    actions = optional(criteria, "actions", list, f"{where}.evaluation_criteria") or []
    return Task(
        domain=domain,
        id=required(task, "id", str, where),
        where=where,
        record=task,
        actions=tuple(
            _parse_action(action, f"{where}.evaluation_criteria.actions[{number}]")
            for number, action in enumerate(actions)
        ),
    )


def _parse_action(raw: object, at: str) -> Action:
    action = as_object(raw, at)
    requestor = optional(action, "requestor", str, at) or "assistant"  # older files have no requestor
    if requestor not in ("assistant", "user"):
        raise ValueError(f"{at}: field 'requestor' must be assistant or user, got {requestor[:40]!r}. Correct it.")
    return Action(required(action, "name", str, at), required(action, "arguments", dict, at), requestor)
