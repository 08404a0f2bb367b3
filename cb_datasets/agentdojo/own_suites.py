"""Suites that are not AgentDojo's: a module that registers them, and a description beside their runs.

The `agentdojo` builder needs the tools and the reference solutions of a run's suite. Those of suites of one's own are
written to `reference/` beside `runs/`, so that the runs can be read where the module is not at hand.

The module imports AgentDojo: import it inside `agentdojo_yaml()`.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agentdojo.base_tasks import BaseInjectionTask, BaseUserTask
from agentdojo.functions_runtime import TaskEnvironment
from agentdojo.task_suite import TaskSuite, get_suites

from builders.agentdojo.suites import BENCHMARK_VERSION, tool_schema
from builders.trace import to_json

from ..files import write_json


REFERENCE = "reference"


def import_suites(module: str) -> list[str]:
    """Import a module, and return the names of the suites that it registers.

    Args:
        module (`str`): Name of the module, e.g. `demo.office`. It is also looked for in the working directory.

    Raises:
        ValueError: If there is no such module, it cannot be imported, or it registers no suite.
    """
    known = set(get_suites(BENCHMARK_VERSION))
    sys.path.insert(0, os.getcwd())
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or module):
            raise ValueError(
                f"There is no module {module}, neither installed nor in {os.getcwd()}. Correct --suite-module."
            ) from error
        raise ValueError(f"{module} cannot be imported ({type(error).__name__}: {error}). Mend the module.") from error
    finally:
        sys.path.pop(0)
    suites = get_suites(BENCHMARK_VERSION)
    own = [name for name, suite in suites.items() if name not in known or _is_defined_in(suite, module)]
    if not own:
        raise ValueError(
            f"{imported.__name__} registers no suite: it must call agentdojo's register_suite(suite, "
            f"{BENCHMARK_VERSION!r}) when it is imported."
        )
    return own


def _is_defined_in(suite: TaskSuite, module: str) -> bool:
    """Whether a suite or its tasks are made of classes of a module: it may have been imported before."""
    made_of = {base for each in (suite, *suite.user_tasks.values()) for base in type(each).__mro__}
    return any(f"{base.__module__}.".startswith(f"{module}.") for base in made_of)


def write_reference(suites: Iterable[TaskSuite], folder: Path) -> None:
    """Write tools, tasks and the calls of their reference solutions, as the `agentdojo` builder reads them.

    Args:
        suites (`Iterable[TaskSuite]`): Suites to describe.
        folder (`Path`): Folder to write to.

    Raises:
        ValueError: If no injection task of a suite has a solution with calls, so that no verdict is possible; if the
            folder describes another version of a suite.
    """
    for suite in suites:
        environment = suite.load_and_inject_default_environment({})
        injection_tasks = {name: _gold(task, environment) for name, task in suite.injection_tasks.items()}
        if not any(injection_tasks.values()):
            raise ValueError(
                f"{suite.name} has no injection task whose ground_truth makes a call: there is no goal to judge "
                "attacks by. Add ground_truth to its injection tasks."
            )
        tasks = {
            "user_tasks": {
                name: {"prompt": task.PROMPT, "gold": _gold(task, environment)}
                for name, task in suite.user_tasks.items()
            },
            "injection_tasks": {
                name: {"goal": task.GOAL, "gold": injection_tasks[name]}
                for name, task in suite.injection_tasks.items()
            },
        }
        _write_same(folder / f"tasks_{suite.name}.json", tasks)
        _write_same(folder / f"tool_schemas_{suite.name}.json", [tool_schema(tool) for tool in suite.tools])


def _write_same(path: Path, value: Any) -> None:
    # Finished runs are judged by what stands here.
    if path.is_file() and json.loads(path.read_bytes()) != json.loads(to_json(value)):
        raise ValueError(f"{path.parent.parent} holds runs of another version of {path.stem}. Pass another --output.")
    write_json(path, value)


def _gold(task: BaseUserTask | BaseInjectionTask, environment: TaskEnvironment) -> list[dict]:
    # A reference solution may read and change the environment, so each gets its own copy.
    calls = task.ground_truth(environment.model_copy(deep=True))
    return [{"function": call.function, "args": dict(call.args)} for call in calls]
