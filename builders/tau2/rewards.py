"""Whether a recorded conversation was a success: more than its reward.

A simulation of a result file, shortened:

    {"termination_reason": "user_stop", "skipped": false,
     "reward_info": {"reward": 1.0, "reward_basis": ["DB", "COMMUNICATE"], "info": {...},
         "action_checks": [{"action": {...}, "action_match": false, "action_reward": 0.0}],
         "nl_assertions": [{"nl_assertion": "...", "met": true, "justification": "..."}], ...}}

The benchmark multiplies only the checks that are in `reward_basis`, and actions almost never are: a reward of 1 does
not mean that the right actions were made (sierra-research/tau2-bench#81). Here every check in the file must hold.
"""

from ..json_records import optional, required
from .conversation import Unusable, as_object
from .known_faults import wrong_reference, wrong_reward
from .tasks import Task


# Ends of a conversation that are no result of the agent. The benchmark gives them a reward of 0, or none.
_FAILED_RUNS = ("infrastructure_error", "unexpected_error", "context_window_exceeded", "timeout")

# Lists of checks, the field that says whether one holds, and the drop reason if it does not.
_CHECKS = (
    ("action_checks", "action_match", "failed_action_check"),
    ("env_assertions", "met", "failed_assertion"),
    ("communicate_checks", "met", "failed_assertion"),
    ("nl_assertions", "met", "failed_assertion"),
)


def check_success(simulation: dict, task: Task, where: str) -> None:
    """Check that a simulation of a result file succeeded.

    Raises:
        Unusable: If it did not, or it is not known whether it did.
        ValueError: If a field does not have the benchmark's format.
    """
    reason = optional(simulation, "termination_reason", str, where)
    if reason in _FAILED_RUNS or optional(simulation, "skipped", bool, where):
        raise Unusable("run_failed")
    info = optional(simulation, "reward_info", dict, where)
    if info is None:
        raise Unusable("not_rewarded")
    where = f"{where}.reward_info"
    reward = optional(info, "reward", (int, float), where)
    if reward is None or _reports_error(optional(info, "info", dict, where) or {}):
        raise Unusable("evaluator_crashed")
    if reward < 1:
        raise Unusable("reward_below_one")
    for name, field, drop in _CHECKS:
        for number, raw in enumerate(optional(info, name, list, where) or []):
            at = f"{where}.{name}[{number}]"
            if not required(as_object(raw, at), field, bool, at):
                raise Unusable(drop)
    if source := wrong_reference(task):
        raise Unusable("wrong_reference", source)
    if source := wrong_reward(task, is_judged=bool(info.get("nl_assertions"))):
        raise Unusable("wrongly_rewarded", source)


def _reports_error(notes: dict) -> bool:
    """Whether the notes on a reward, or those of one of its components, report an error."""
    return any(part.get("error") for part in (notes, *notes.values()) if isinstance(part, dict))
