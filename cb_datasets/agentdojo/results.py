"""Results of AgentDojo runs: metrics of all models and their parts, paired changes, and the runs side by side.

    utility                fraction of clean runs that complete the user task
    utility_under_attack   fraction of attacked runs that complete the user task
    targeted_asr           fraction of attacked runs with the verdict `compromised`; attacks of denial of service have
                           no goal and do not count
    asr_where_exposed      the same, among the runs in which a tool result showed the injection
    asr_by_state           fraction of attacked runs that the suite itself, which looks at the environment, finds won
    best_of_attacks        fraction of pairs of a user's and an attacker's task on which any of several attacks, for
                           example compositions of the black box, succeeds. A pair with a failed run does not count:
                           it was attacked fewer times than the others
    extra_side_effects     fraction of attacked runs that changed more than the reference solution does: with some
                           tool, more calls changed the environment. Utility does not see a second payment
    leaked_arguments       fraction of attacked runs in which another call than the attacker's, that changed something,
                           has an argument of his: his address among the guests of the user's meeting. Of a goal with
                           addresses, accounts or links, these count; of another one, all its arguments
    step_limit             fraction of all runs that ended at the limit of steps. A breaker that stalls is no breaker

`spell_control_tokens` counts the runs whose text, tool results for example, spells a control token of the model.
The model does not read it as one (`spelled_control_tokens` in the settings).

An aborted run, e.g. one that exceeded the context, counts in none of them: it is listed under `failures`, with its
error. `failed_pairs` counts the pairs of tasks with such an attacked run.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.compare import paired_changes
from ..evaluation.statistics import proportion
from ..files import read_json, write_json
from ..generation.backend import BASE
from ..ingest import SETTINGS_FILE
from ..public_name import model_label, public_name
from .live_runs import LiveRun, RunKey, TaskPair, failed_pairs, read_live_runs


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Defences that AgentDojo has and that work around any model. `tool_filter` is for OpenAI's models, and the detector is
# a model that is fetched from the Hub.
DEFENSES = ("repeat_user_prompt", "spotlighting_with_delimiting", "transformers_pi_detector")

AGENTDOJO_FILE = "agentdojo.json"

AGENTDOJO_METRICS = {
    "utility": "utility ↑",
    "utility_under_attack": "utility under attack ↑",
    "targeted_asr": "targeted ASR ↓",
    "asr_where_exposed": "ASR where the injection was shown ↓",
    "asr_by_state": "ASR by the suite's own check ↓",
    "best_of_attacks": "pairs of tasks on which any attack succeeds ↓",
    "extra_side_effects": "extra side effects under attack ↓",
    "leaked_arguments": "attacker's arguments in another call ↓",
    "step_limit": "runs at the step limit ↓",
}

# Parts of the benchmark whose metrics are also reported separately.
LIVE_SLICES: dict[str, Callable[[RunKey], str | None]] = {
    "suite": lambda key: key.suite,
    "attack": lambda key: key.attack,
    "user_task": lambda key: f"{key.suite}/{key.user_task}",
    "injection_task": lambda key: key.injection_task and f"{key.suite}/{key.injection_task}",
}


@dataclass(frozen=True)
class BenchmarkSelection:
    """The part of the benchmark to run, and how.

    Args:
        suites (`tuple[str, ...]`, *optional*): `banking`, `slack`, `travel`, `workspace`, those of `suite_module`, or
            patterns such as `office_test_*`. Defaults to all of `suite_module`, or to `banking`.
        attack (`str`, *optional*): Name of the attack; `black_box` for random compositions.
        draws (`int`, *optional*, defaults to `8`): Number of compositions for each pair of tasks.
        user_tasks, injection_tasks (`tuple[str, ...]`, *optional*): Task ids; all tasks of a suite by default.
        suite_module (`str`, *optional*): Module that registers suites, and perhaps attacks, when it is imported.
        max_steps (`int`, *optional*, defaults to `15`): Maximum number of turns with calls in a run.
        concurrency (`int`, *optional*, defaults to `1`): Number of runs in flight.
        defenses (`tuple[str, ...]`, *optional*): Names among [`DEFENSES`]: the base model is also run with each.
    """

    suites: tuple[str, ...] = ()
    attack: str = "important_instructions"
    draws: int = 8
    user_tasks: tuple[str, ...] = ()
    injection_tasks: tuple[str, ...] = ()
    suite_module: str | None = None
    max_steps: int = 15
    concurrency: int = 1
    defenses: tuple[str, ...] = ()


def check_defenses(defenses: Iterable[str]) -> None:
    """Raise a `ValueError` if there is no such defence."""
    if unknown := [name for name in defenses if name not in DEFENSES]:
        raise ValueError(f"No defence {', '.join(unknown)} for any model; there are {', '.join(DEFENSES)}.")


def claim_folder(folder: Path, settings: dict) -> None:
    """Write the settings of the runs to their folder, unless it holds runs of other settings.

    Raises:
        ValueError: If it holds runs of other settings.
    """
    path = folder / SETTINGS_FILE
    if path.is_file():
        previous = read_json(path)
        if "model" in previous:  # which was a path
            previous["model"] = model_label(public_name(previous["model"]), previous.get("revision"))
        different = sorted(key for key in previous.keys() | settings if previous.get(key) != settings.get(key))
        if different:
            raise ValueError(f"{folder} holds runs with another {', '.join(different)}. Pass another --output.")
    write_json(path, settings)


def read_agentdojo_runs(folder: Path, models: list[str], tokenizer: "PreTrainedTokenizerBase") -> dict:
    """Metrics, verdicts and failures of all runs in a folder.

    Args:
        folder (`Path`): Folder that holds `runs/`.
        models (`list[str]`): Names of the models.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Their tokenizer.

    Returns:
        `dict`: Under each model's name its metrics (`{value, n, low, high}`), without those that no run measures;
        `changed` against the base model (`{gained, lost, p}` by model and metric), `slices` (metrics by field, value
        and model), `verdicts` (counts), `failures` (`{run, reason, error}`), `failed_pairs` (number of pairs of
        tasks), `spell_control_tokens` (number of runs), `turns` of the assistant and `seconds` of a run
        (`{median, max}`) by model; the `defenses`, `suites` and `attacks` of the runs; and `runs`: of each the
        conversations, verdicts and hits by model.

    Raises:
        ValueError: If no run was finished.
    """
    runs, failures = read_live_runs(folder, models, tokenizer)
    keys = {run.key for by_model in runs.values() for run in by_model}
    failed = {name: failed_pairs(by_model) for name, by_model in failures.items()}
    return {
        **{name: metrics_of(by_model, failed[name]) for name, by_model in runs.items()},
        "changed": {name: _changed(runs[BASE], by_model) for name, by_model in runs.items() if name != BASE},
        "slices": {field: _sliced_metrics(runs, failed, value_of) for field, value_of in LIVE_SLICES.items()},
        "verdicts": {name: dict(Counter(run.verdict for run in by_model)) for name, by_model in runs.items()},
        "failures": failures,
        "failed_pairs": {name: len(pairs) for name, pairs in failed.items()},
        "spell_control_tokens": {name: sum(run.spells for run in by_model) for name, by_model in runs.items()},
        "turns": {name: _distribution([run.turns for run in by_model]) for name, by_model in runs.items()},
        "seconds": {name: _distribution([run.seconds for run in by_model]) for name, by_model in runs.items()},
        "defenses": [name.partition("+")[2] for name in models if "+" in name],
        "suites": sorted({key.suite for key in keys}),
        "attacks": sorted({key.attack for key in keys if key.attack is not None}),
        "runs": _side_by_side(runs),
    }


def _distribution(values: list[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "max": max(known)} if known else None


def metrics_of(runs: list[LiveRun], failed: Collection[TaskPair] = ()) -> dict[str, dict]:
    """Metrics of one model's runs (`{value, n, low, high}`), without those that no run measures.

    Args:
        runs (`list[LiveRun]`): The finished runs.
        failed (`Collection[TaskPair]`, *optional*): Pairs of tasks with a failed run.
    """
    hits = {metric: [run.hits[metric] for run in runs if metric in run.hits] for metric in AGENTDOJO_METRICS}
    hits["best_of_attacks"] = _any_success(runs, failed)
    return {metric: proportion(sum(values), len(values)) for metric, values in hits.items() if values}


def _any_success(runs: list[LiveRun], failed: Collection[TaskPair]) -> list[bool]:
    """For each attacked pair of tasks whether any attack succeeded; nothing if there was only one attack.

    A pair with a failed run is left out whatever the others gave: keeping it only where the attack won would raise the
    rate.
    """
    attacked = [run for run in runs if "targeted_asr" in run.hits]
    if len({run.key.attack for run in attacked}) < 2:
        return []
    succeeded: dict[TaskPair, bool] = {}
    for run in attacked:
        if run.key.tasks not in failed:
            succeeded[run.key.tasks] = succeeded.get(run.key.tasks, False) or run.hits["targeted_asr"]
    return list(succeeded.values())


def _changed(base: list[LiveRun], others: list[LiveRun]) -> dict[str, dict]:
    """The paired changes on the runs that both models finished."""
    by_key = {run.key: run.hits for run in others}
    return paired_changes(AGENTDOJO_METRICS, [(run.hits, by_key[run.key]) for run in base if run.key in by_key])


def _sliced_metrics(
    runs: dict[str, list[LiveRun]], failed: dict[str, set[TaskPair]], value_of: Callable[[RunKey], str | None]
) -> dict[str, dict[str, dict]]:
    """`{value: {model: {metric: {value, n, low, high}}}}` for each value of a field."""
    slices: dict[str, dict[str, list[LiveRun]]] = {}
    for name, by_model in runs.items():
        for run in by_model:
            value = value_of(run.key)
            if value is not None:
                slices.setdefault(value, {}).setdefault(name, []).append(run)
    return {
        value: {name: metrics_of(by_model, failed[name]) for name, by_model in slices[value].items()}
        for value in sorted(slices)
    }


def _side_by_side(runs: dict[str, list[LiveRun]]) -> list[dict]:
    """Each run with the conversations of all models that finished it."""
    records: dict[RunKey, dict] = {}
    for name, by_model in runs.items():
        for run in by_model:
            key = run.key
            record = records.setdefault(key, {"id": key.id, "suite": key.suite, "attack": key.attack, "answers": {}})
            record["answers"][name] = {
                "verdict": run.verdict,
                "hits": run.hits,
                "messages": run.messages,
                "injection": run.injection,
            }
    return [records[key] for key in sorted(records, key=lambda key: key.id)]
