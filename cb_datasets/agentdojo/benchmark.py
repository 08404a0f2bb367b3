"""AgentDojo's benchmark, run by run, against models that a server has up.

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

from .agent import ServedModel, agent
from .results import RUNS, Selection, agent_name


@dataclass(frozen=True)
class PlannedRun:
    """A run: a user's task, clean or with what an attacker wants."""

    suite: TaskSuite
    user_task: str
    injection_task: str | None


def planned_runs(selection: Selection) -> list[PlannedRun]:
    """Every run that is selected, each task clean first.

    Raises:
        ValueError: If the benchmark has no such suite, attack or task.
    """
    attack = ATTACKS.get(selection.attack)
    if attack is None or attack.is_dos_attack:
        known = ", ".join(name for name, each in ATTACKS.items() if not each.is_dos_attack)
        raise ValueError(f"AgentDojo has no attack {selection.attack!r} that wants a tool called; it has {known}.")
    suites = get_suites(BENCHMARK_VERSION)
    return [
        PlannedRun(suites[name], user_task, injection_task)
        for name in _known(selection.suites, suites, "AgentDojo")
        for user_task in _known(selection.user_tasks, suites[name].user_tasks, f"{name} of AgentDojo")
        for injection_task in (
            None,
            *_known(selection.injection_tasks, suites[name].injection_tasks, f"{name} of AgentDojo"),
        )
    ]


def _known(chosen: tuple[str, ...], known: Iterable[str], of: str) -> list[str]:
    """The chosen names, all if none is chosen."""
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"{of} has no {', '.join(unknown)}; it has {', '.join(known)}.")
    return list(chosen or known)


def run_benchmark(runs: list[PlannedRun], attack: str, models: dict[str, ServedModel], folder: Path) -> None:
    """Run the benchmark against each model. What is in `folder` already is not run again.

    Args:
        runs (`list[PlannedRun]`): What is run.
        attack (`str`): Name of the attack.
        models (`dict[str, ServedModel]`): By name.
        folder (`Path`): Where `runs/` is written, a file for each run as soon as it is over.

    Raises:
        ConnectionError: If the server fails. The runs that are over are kept.
    """
    logdir = folder / RUNS
    forget_unfinished(logdir)
    shared: dict[str, Any] = {"logdir": logdir, "force_rerun": False, "benchmark_version": BENCHMARK_VERSION}
    with _RunsGoTo(logdir), warnings.catch_warnings(), tqdm(total=len(runs) * len(models), unit="run") as bar:
        warnings.simplefilter("ignore", UserWarning)  # what a model cannot do, the figures tell
        for name, served in models.items():
            pipeline = agent(agent_name(name), served)
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


def forget_unfinished(logdir: Path) -> None:
    """Remove the files of runs that something cut off: the benchmark would stumble over half a file."""
    for path in logdir.glob("*/*/*/*/*.json"):
        try:
            finished = "utility" in json.loads(path.read_bytes())
        except ValueError:
            finished = False
        if not finished:
            path.unlink()


class _RunsGoTo(Logger):
    """Tells the benchmark where its files go, and the screen nothing."""

    def __init__(self, logdir: Path) -> None:
        self.logdir = str(logdir)
        self.messages: list = []

    def log(self, *arguments: Any, **options: Any) -> None:
        pass

    def log_error(self, message: str) -> None:
        pass
