"""AgentDojo's benchmark, run by run, against served models.

The module imports AgentDojo: import it inside `agentdojo_yaml()`, and run the benchmark there too.
"""

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentdojo.attacks import load_attack
from agentdojo.attacks.attack_registry import ATTACKS
from agentdojo.benchmark import benchmark_suite_with_injections, benchmark_suite_without_injections
from agentdojo.logging import Logger
from agentdojo.task_suite import TaskSuite, get_suites
from tqdm import tqdm

from builders.agentdojo.suites import BENCHMARK_VERSION

from .agent import ServedModel, make_agent
from .results import RUNS, BenchmarkSelection, agent_name


@dataclass(frozen=True)
class PlannedRun:
    """One run: a user task, clean (`injection_task` is `None`) or with an injection task."""

    suite: TaskSuite
    user_task: str
    injection_task: str | None


def planned_runs(selection: BenchmarkSelection) -> list[PlannedRun]:
    """All selected runs; for each user task, the clean run comes first.

    Raises:
        ValueError: If the benchmark has no such suite, attack or task.
    """
    attack = ATTACKS.get(selection.attack)
    # Denial-of-service attacks aim at no tool call, so that there is no call to measure.
    if attack is None or attack.is_dos_attack:
        known = ", ".join(name for name, each in ATTACKS.items() if not each.is_dos_attack)
        raise ValueError(f"AgentDojo has no attack {selection.attack!r} that aims at a tool call; it has {known}.")
    suites = get_suites(BENCHMARK_VERSION)
    return [
        PlannedRun(suites[name], user_task, injection_task)
        for name in _select_names(selection.suites, suites, "AgentDojo")
        for user_task in _select_names(selection.user_tasks, suites[name].user_tasks, f"{name} of AgentDojo")
        for injection_task in (
            None,
            *_select_names(selection.injection_tasks, suites[name].injection_tasks, f"{name} of AgentDojo"),
        )
    ]


def _select_names(chosen: tuple[str, ...], known: Iterable[str], owner: str) -> list[str]:
    """The chosen names, or all known ones if none is chosen."""
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"{owner} has no {', '.join(unknown)}; it has {', '.join(known)}.")
    return list(chosen or known)


def run_benchmark(runs: list[PlannedRun], attack: str, models: dict[str, ServedModel], folder: Path) -> None:
    """Run the benchmark against each model. Runs that are finished in `folder` are skipped.

    Args:
        runs (`list[PlannedRun]`): Runs to make against each model.
        attack (`str`): Name of the attack.
        models (`dict[str, ServedModel]`): Models by name.
        folder (`Path`): Parent of `runs/`, where each run is written as soon as it finishes.

    Raises:
        ConnectionError: If the server fails. Finished runs are kept.
    """
    logdir = folder / RUNS
    remove_unfinished_runs(logdir)
    shared: dict[str, Any] = {"logdir": logdir, "force_rerun": False, "benchmark_version": BENCHMARK_VERSION}
    with _QuietLogger(logdir), warnings.catch_warnings(), tqdm(total=len(runs) * len(models), unit="run") as bar:
        # AgentDojo warns when the model fails a task or writes nothing; here these are results.
        warnings.simplefilter("ignore", UserWarning)
        for name, served in models.items():
            pipeline = make_agent(agent_name(name), served)
            for run in runs:
                bar.set_description(f"{name}, {run.suite.name} {run.user_task} {run.injection_task or 'clean'}")
                if run.injection_task is None:
                    benchmark_suite_without_injections(pipeline, run.suite, user_tasks=[run.user_task], **shared)
                else:
                    benchmark_suite_with_injections(
                        pipeline,
                        run.suite,
                        load_attack(attack, run.suite, pipeline),
                        user_tasks=[run.user_task],
                        injection_tasks=[run.injection_task],
                        **shared,
                    )
                bar.update()


def remove_unfinished_runs(logdir: Path) -> None:
    """Remove the files of interrupted runs: the benchmark would fail on a truncated file."""
    for path in logdir.glob("*/*/*/*/*.json"):
        try:
            finished = "utility" in json.loads(path.read_bytes())
        except ValueError:
            finished = False
        if not finished:
            path.unlink()


class _QuietLogger(Logger):
    """Tells the benchmark its log directory, and prints nothing."""

    def __init__(self, logdir: Path) -> None:
        self.logdir = str(logdir)
        self.messages: list = []

    def log(self, *arguments: Any, **options: Any) -> None:
        pass

    def log_error(self, message: str) -> None:
        pass
