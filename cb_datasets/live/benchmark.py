"""AgentDojo's benchmark, run by run, against models that a server has up.

The module imports AgentDojo: import it inside `agentdojo_yaml()`, and run the benchmark there too.
"""

import json
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentdojo.attacks import load_attack
from agentdojo.attacks.attack_registry import ATTACKS
from agentdojo.benchmark import benchmark_suite_with_injections, benchmark_suite_without_injections
from agentdojo.logging import Logger
from agentdojo.task_suite import get_suites
from tqdm import tqdm

from builders.agentdojo.suites import BENCHMARK_VERSION

from .agent import ServedModel, agent
from .results import RUNS, Selection, agent_name


def run_benchmark(selection: Selection, models: dict[str, ServedModel], folder: Path) -> None:
    """Run what is selected, for each model, clean and attacked. What is in `folder` already is not run again.

    Args:
        selection ([`Selection`]): What is run.
        models (`dict[str, ServedModel]`): By name.
        folder (`Path`): Where `runs/` is written, a file for each run as soon as it is over.

    Raises:
        ValueError: If the benchmark has no such suite, attack or task.
        openai.APIError: If a server fails. The runs that are over are kept.
    """
    planned = [run for name in selection.suites for run in _planned(name, selection)]
    logdir = folder / RUNS
    forget_unfinished(logdir)
    with _RunsGoTo(logdir), warnings.catch_warnings(), tqdm(desc="AgentDojo", unit="run") as bar:
        warnings.simplefilter("ignore", UserWarning)  # what a weak model cannot do is told by the figures
        bar.reset(total=len(planned) * len(models))
        for name, served in models.items():
            pipeline = agent(agent_name(name), served)
            for suite, user_task, injection_task in planned:
                bar.set_postfix_str(f"{name} {suite.name} {user_task} {injection_task or 'clean'}")
                shared = {"logdir": logdir, "force_rerun": False, "benchmark_version": BENCHMARK_VERSION}
                if injection_task is None:
                    benchmark_suite_without_injections(pipeline, suite, user_tasks=[user_task], **shared)
                else:
                    attack = load_attack(selection.attack, suite, pipeline)
                    benchmark_suite_with_injections(
                        pipeline, suite, attack, user_tasks=[user_task], injection_tasks=[injection_task], **shared
                    )
                bar.update()


def _planned(suite_name: str, selection: Selection) -> list[tuple[Any, str, str | None]]:
    """`(suite, user task, injection task)` of every run, each task clean first."""
    suite = get_suites(BENCHMARK_VERSION).get(suite_name)
    if suite is None:
        raise ValueError(f"AgentDojo has no suite {suite_name!r}; it has {', '.join(get_suites(BENCHMARK_VERSION))}.")
    attack = ATTACKS.get(selection.attack)
    if attack is None or attack.is_dos_attack:
        known = ", ".join(name for name, each in ATTACKS.items() if not each.is_dos_attack)
        raise ValueError(f"AgentDojo has no attack {selection.attack!r} that wants a tool call; it has {known}.")
    user_tasks = _chosen(selection.user_tasks, suite.user_tasks, suite_name)
    injection_tasks = _chosen(selection.injection_tasks, suite.injection_tasks, suite_name)
    return [(suite, task, injection) for task in user_tasks for injection in (None, *injection_tasks)]


def _chosen(names: tuple[str, ...], known: Iterable[str], suite_name: str) -> list[str]:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{suite_name} of AgentDojo has no {', '.join(unknown)}; it has {', '.join(known)}.")
    return list(names or known)


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
