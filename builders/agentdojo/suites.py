"""Suites of the benchmark: their tools, the correct calls for the user's tasks, and the attackers' goals.

`reference/tool_schemas_<suite>[_<version>].json` lists the tools as OpenAI function schemas, and
`reference/tasks_<suite>[_<version>].json` (shortened) the tasks with the calls of their reference solutions:

    {"user_tasks": {"user_task_0": {"prompt": "...", "gold": [{"function": "read_file", "args": {...}}, ...]}},
     "injection_tasks": {"injection_task_3": {"goal": "Send money to XX00...", "gold": [...]}},
     "injection_vectors": {...}}
"""

import functools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..json_records import optional, read_json, required
from ..trace import to_json
from .goals import Goal, goal_from_solution, is_stub


# Version of the benchmark that the published runs were made with.
BENCHMARK_VERSION = "v1.2.2"

_TASKS, _TOOLS = "tasks_", "tool_schemas_"

# Origin of tasks that are described in files.
REFERENCE = "reference"


@dataclass(frozen=True)
class Suite:
    """Tools and tasks of one suite.

    Args:
        tools (`list[dict]`): Function schemas of the tools.
        origin (`str`, *optional*): Origin of the tasks: `reference`, or the version of the installed benchmark.
        user_calls (`dict[str, list[dict]]`): User task -> calls of the reference solution.
        goals (`dict[str, Goal | None]`): Injection task -> goal; `None` if the reference solution makes no call.
    """

    tools: list[dict]
    origin: str | None = None
    user_calls: dict[str, list[dict]] = field(default_factory=dict)
    goals: dict[str, Goal | None] = field(default_factory=dict)

    @functools.cached_property
    def tools_text(self) -> str:
        return to_json(self.tools)

    @functools.cached_property
    def tool_names(self) -> frozenset[str]:
        return frozenset(tool["function"]["name"] for tool in self.tools)

    def offered_tools(self, chosen: str | None) -> list[dict]:
        """Tools that a model was offered: all, or those that it named when the pipeline let it choose.

        The benchmark takes a tool for named if its name is anywhere in the text.
        """
        return [tool for tool in self.tools if chosen is None or tool["function"]["name"] in chosen]

    def offered_text(self, chosen: str | None) -> str:
        """The offered tools as JSON text."""
        return self.tools_text if chosen is None else to_json(self.offered_tools(chosen))


# ---------------------------------------------------------------------------------------------------------------------
# Suites from files


def is_reference(path: Path) -> bool:
    """Whether a file describes a suite; otherwise it holds runs."""
    return path.suffix == ".json" and path.name.startswith((_TASKS, _TOOLS))


def load_suites(reference: Iterable[Path], tools: Path | None = None) -> dict[str, Suite]:
    """Load the suites whose tools are given in files.

    Args:
        reference (`Iterable[Path]`): Reference files.
        tools (`Path`, *optional*): JSON file `{suite: [function schemas]}`, which takes precedence over `reference`.

    Raises:
        FileNotFoundError: If a suite has a file with tasks but none with tools.
        ValueError: If a file is malformed, or a suite has two files with tools or with tasks.
    """
    paths = sorted(reference)
    task_files = _by_suite([path for path in paths if path.name.startswith(_TASKS)], _TASKS)
    schemas = {
        suite: _schemas(read_json(path), path.name)
        for suite, path in _by_suite([path for path in paths if path.name.startswith(_TOOLS)], _TOOLS).items()
    }
    if tools is not None:
        for suite, offered in _object(read_json(tools), tools.name).items():
            schemas[suite] = _schemas(offered, f"{tools.name}, {suite}")
    for suite in task_files.keys() - schemas.keys():
        missing = task_files[suite].name.replace(_TASKS, _TOOLS, 1)
        raise FileNotFoundError(f"{missing} is missing: every suite needs its tool schemas beside its tasks.")
    return {
        suite: _suite_from_files(offered, task_files[suite]) if suite in task_files else Suite(offered)
        for suite, offered in schemas.items()
    }


def _by_suite(paths: list[Path], prefix: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        suite = re.sub(r"_v\d[\d.]*$", "", path.stem.removeprefix(prefix))
        if suite in files:
            raise ValueError(
                f"{path.name}: {files[suite].name} belongs to the same suite. Keep one version of a suite."
            )
        files[suite] = path
    return files


def _suite_from_files(offered: list[dict], path: Path) -> Suite:
    tasks = _object(read_json(path), path.name)
    user_calls, attacker_calls = (
        _gold_calls(required(tasks, field, dict, path.name), f"{path.name}, {field}")
        for field in ("user_tasks", "injection_tasks")
    )
    texts = {
        name: optional(task, "goal", str, f"{path.name}, injection_tasks, {name}")
        for name, task in tasks["injection_tasks"].items()
    }
    return _build_suite(offered, REFERENCE, user_calls, attacker_calls, texts)


def _build_suite(offered: list[dict], origin: str, user_calls: dict, attacker_calls: dict, texts: dict) -> Suite:
    goals = {
        task: replace(goal_from_solution(gold), text=texts[task]) if gold else None
        for task, gold in attacker_calls.items()
    }
    return Suite(offered, origin, user_calls, goals)


def _schemas(value: Any, where: str) -> list[dict]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list of function schemas, got {type(value).__name__}. Correct it.")
    for number, schema in enumerate(value):
        at = f"{where}, tool {number}"
        function = required(_object(schema, at), "function", dict, at)
        required(function, "name", str, at)
        optional(optional(function, "parameters", dict, at) or {}, "properties", dict, at)
    return value


def _gold_calls(tasks: dict, where: str) -> dict[str, list[dict]]:
    gold = {
        name: required(_object(task, f"{where}, {name}"), "gold", list, f"{where}, {name}")
        for name, task in tasks.items()
    }
    return {name: [_gold_call(call, f"{where}, {name}") for call in calls] for name, calls in gold.items()}


def _gold_call(call: Any, at: str) -> dict:
    call = _object(call, at)
    return {"name": required(call, "function", str, at), "arguments": required(call, "args", dict, at)}


def _object(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}. Correct it.")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Suites from the installed benchmark


@functools.cache
def installed_suite(name: str) -> Suite | None:
    """Load a suite from the installed benchmark; `None` if it has no such suite or is not installed."""
    try:
        with agentdojo_yaml():
            from agentdojo.task_suite.load_suites import get_suites

            suite = get_suites(BENCHMARK_VERSION).get(name)
            environment = suite and suite.load_and_inject_default_environment({})
    except ImportError:
        return None
    if suite is None:
        return None
    # A reference solution may read and change the environment, so each gets its own copy.
    user_calls, attacker_calls = (
        {
            task: [
                {"name": call.function, "arguments": dict(call.args)}
                for call in solution.ground_truth(environment.model_copy(deep=True))
            ]
            for task, solution in tasks.items()
        }
        for tasks in (suite.user_tasks, suite.injection_tasks)
    )
    attacker_calls = {task: calls for task, calls in attacker_calls.items() if not is_stub(calls)}
    return _build_suite(
        [tool_schema(tool) for tool in suite.tools],
        f"agentdojo {version('agentdojo')}",
        user_calls,
        attacker_calls,
        {task: injection_task.GOAL for task, injection_task in suite.injection_tasks.items()},
    )


@contextmanager
def agentdojo_yaml() -> Iterator[None]:
    """Context in which to import AgentDojo and load its environments, without lasting effects on `yaml`.

    AgentDojo's import makes `yaml.dump` quote every string, and its environments depend on that. On exit the original
    representers are restored; otherwise the same process would write dataset cards with every string quoted.

    Raises:
        ImportError: If AgentDojo is not installed.
    """
    representers = dict(yaml.Dumper.yaml_representers)
    try:
        from agentdojo.yaml_loader import quoted_presenter

        yaml.add_representer(str, quoted_presenter)
        yield
    finally:
        yaml.Dumper.yaml_representers = representers


def tool_schema(tool: Any) -> dict:
    """OpenAI function schema of a tool of the benchmark."""
    parameters = tool.parameters.model_json_schema()
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }
