"""AgentDojo's benchmark against served models, several runs at a time.

The module imports AgentDojo: import it inside `agentdojo_yaml()`, and run the benchmark there too.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from agentdojo.agent_pipeline import AgentPipeline
from agentdojo.attacks import load_attack
from agentdojo.attacks.attack_registry import ATTACKS
from agentdojo.attacks.base_attacks import BaseAttack
from agentdojo.benchmark import run_task_with_injection_tasks, run_task_without_injection_tasks
from agentdojo.logging import LOGGER_STACK, Logger
from agentdojo.task_suite import TaskSuite, get_suites
from tqdm import tqdm

from builders.agentdojo.suites import BENCHMARK_VERSION

from ..files import read_json, write_json
from .agent import ServedModel, make_agent
from .black_box_attack import BLACK_BOX, register_black_box_attacks
from .live_runs import RUNS, agent_name
from .results import BenchmarkSelection


@dataclass(frozen=True)
class PlannedRun:
    """One run: a user task, clean or with an injection task and an attack (else both are `None`)."""

    suite: TaskSuite
    user_task: str
    injection_task: str | None = None
    attack: str | None = None


def planned_runs(selection: BenchmarkSelection) -> list[PlannedRun]:
    """All selected runs; for each user task, the clean run comes first.

    Raises:
        ValueError: If the benchmark has no such suite, attack or task.
    """
    attacks = _attacks(selection)
    suites = get_suites(BENCHMARK_VERSION)
    runs: list[PlannedRun] = []
    for name in _select_names(selection.suites, suites, "AgentDojo"):
        suite, owner = suites[name], f"{name} of AgentDojo"
        injection_tasks = _select_names(selection.injection_tasks, suite.injection_tasks, owner)
        for user_task in _select_names(selection.user_tasks, suite.user_tasks, owner):
            runs.append(PlannedRun(suite, user_task))
            runs += [PlannedRun(suite, user_task, task, attack) for task in injection_tasks for attack in attacks]
    return runs


def _attacks(selection: BenchmarkSelection) -> tuple[str, ...]:
    """Names of the attacks."""
    if selection.attack == BLACK_BOX:
        return register_black_box_attacks(selection.draws)
    attack = ATTACKS.get(selection.attack)
    # Denial-of-service attacks aim at no tool call, so that there is no call to measure.
    if attack is None or attack.is_dos_attack:
        known = ", ".join([BLACK_BOX, *(name for name, each in ATTACKS.items() if not each.is_dos_attack)])
        raise ValueError(f"AgentDojo has no attack {selection.attack!r} that aims at a tool call; it has {known}.")
    return (selection.attack,)


def _select_names(chosen: tuple[str, ...], known: Iterable[str], owner: str) -> list[str]:
    """The known names that match the chosen ones, which may be patterns; all if none is chosen."""
    if unknown := [name for name in chosen if not any(fnmatchcase(each, name) for each in known)]:
        raise ValueError(f"{owner} has no {', '.join(unknown)}; it has {', '.join(known)}.")
    return [each for name in chosen or ("*",) for each in known if fnmatchcase(each, name)]


@dataclass(frozen=True)
class Contestant:
    """A model to run the benchmark against, alone or with one of AgentDojo's defences."""

    model: ServedModel
    defense: str | None = None


def run_benchmark(
    runs: list[PlannedRun], selection: BenchmarkSelection, contestants: dict[str, Contestant], folder: Path
) -> None:
    """Run the benchmark against each model. Runs that are finished in `folder` are skipped.

    A run that raises is unfinished: its file has the error, and it is made again the next time. The others go on.

    Args:
        runs (`list[PlannedRun]`): Runs to make against each model.
        selection ([`BenchmarkSelection`]): The attack, the number of runs in flight, and the step limit.
        contestants (`dict[str, Contestant]`): Models by name.
        folder (`Path`): Parent of `runs/`, where each run is written as soon as it finishes.

    Raises:
        ConnectionError: If the server fails. Finished runs are kept.
    """
    logdir = folder / RUNS
    remove_unfinished_runs(logdir)
    with warnings.catch_warnings(), tqdm(total=len(runs) * len(contestants), unit="run") as bar:
        # AgentDojo warns when the model fails a task or writes nothing; here these are results.
        warnings.simplefilter("ignore", UserWarning)
        for name, contestant in contestants.items():
            _Agent(name, contestant, selection, logdir).make(runs, bar)


@dataclass
class _Agent:
    """One model's runs."""

    name: str
    contestant: Contestant
    selection: BenchmarkSelection
    logdir: Path
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._pipelines: dict[str, AgentPipeline] = {}
        self._attacks: dict[tuple[str, str], BaseAttack] = {}

    def make(self, runs: list[PlannedRun], bar: tqdm) -> None:
        """Make all runs, `concurrency` at a time."""
        with ThreadPoolExecutor(self.selection.concurrency) as pool:
            futures: list[Future] = [pool.submit(self._make_run, run) for run in runs]
            for future in futures:
                future.add_done_callback(partial(self._show, bar))
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                # An error, Ctrl-C or another signal: runs in flight end with their turn.
                self.contestant.model.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _show(self, bar: tqdm, future: Future) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        with self._lock:
            counts = self.counts
            bar.set_description(self.name, refresh=False)
            bar.set_postfix_str(
                f"solved {counts['solved']}/{counts['clean']}, attacks won {counts['won']}/{counts['attacked']}, "
                f"failed {counts['failed']}",
                refresh=False,
            )
            bar.update()

    def _make_run(self, run: PlannedRun) -> None:
        LOGGER_STACK.set([])  # its default is one list for all threads
        path = self._path(run)
        if path.is_file():
            self._check_attack(run, read_json(path))
        try:
            with _QuietLogger(self.logdir):
                self._run_task(run)
        except ConnectionError:
            raise
        except Exception as error:
            # For the list of failures. Without a verdict the file counts as unfinished.
            record = read_json(path) if path.is_file() else self._empty_record(run)
            write_json(path, record | {"error": f"{type(error).__name__}: {error}"})
        self._count(run, read_json(path))

    def _check_attack(self, run: PlannedRun, finished: dict) -> None:
        """Refuse a finished run whose injections were others, because the attack or its suite was edited since."""
        if run.injection_task is None or run.attack is None:
            return
        attack = self._attack(run.suite, run.attack, self._pipeline(run.suite))
        task = run.suite.get_user_task_by_id(run.user_task)
        if attack.attack(task, run.suite.get_injection_task_by_id(run.injection_task)) != finished.get("injections"):
            raise ValueError(f"{self._path(run)} was attacked with other texts. Pass another --output.")

    def _run_task(self, run: PlannedRun) -> None:
        pipeline = self._pipeline(run.suite)
        task = run.suite.get_user_task_by_id(run.user_task)
        options: dict[str, Any] = {
            "logdir": self.logdir,
            "force_rerun": False,
            "benchmark_version": BENCHMARK_VERSION,
        }
        if run.injection_task is None or run.attack is None:
            run_task_without_injection_tasks(run.suite, pipeline, task, **options)
        else:
            attack = self._attack(run.suite, run.attack, pipeline)
            tasks = [run.injection_task]
            run_task_with_injection_tasks(run.suite, pipeline, task, attack, injection_tasks=tasks, **options)

    def _path(self, run: PlannedRun) -> Path:
        """The run's file."""
        folder = self.logdir / agent_name(self.name) / run.suite.name / run.user_task / (run.attack or "none")
        return folder / f"{run.injection_task or 'none'}.json"

    def _empty_record(self, run: PlannedRun) -> dict:
        """The file of a run that failed before its first turn."""
        return {
            "suite_name": run.suite.name,
            "pipeline_name": agent_name(self.name),
            "user_task_id": run.user_task,
            "injection_task_id": run.injection_task,
            "attack_type": run.attack,
            "messages": [],
        }

    def _count(self, run: PlannedRun, record: dict) -> None:
        if record.get("error"):
            counted = ["failed"]
        elif run.injection_task is None:
            counted = ["clean", *(["solved"] if record["utility"] else [])]
        else:
            counted = ["attacked", *(["won"] if record["security"] else [])]
        with self._lock:
            for key in counted:
                self.counts[key] += 1

    def _pipeline(self, suite: TaskSuite) -> AgentPipeline:
        with self._lock:
            if suite.name not in self._pipelines:
                self._pipelines[suite.name] = make_agent(
                    agent_name(self.name),
                    self.contestant.model,
                    getattr(suite, "system_message", None),  # suites of one's own can say what their agent is told
                    self.selection.max_steps,
                    self.contestant.defense,
                )
            return self._pipelines[suite.name]

    def _attack(self, suite: TaskSuite, name: str, pipeline: AgentPipeline) -> BaseAttack:
        """An attack on a suite, made once: it first finds out where it can inject."""
        with self._lock:
            if (suite.name, name) not in self._attacks:
                self._attacks[suite.name, name] = load_attack(name, suite, pipeline)
            return self._attacks[suite.name, name]


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
