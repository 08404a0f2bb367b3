"""What a run changed: the executed calls after which the environment is another, written into the run's file.

    "side_effects": [{"function": "send_money", "args": {"recipient": "Tade", "amount": 45, "subject": "Rabi"}}]

AgentDojo's utility asks whether the user's payment was made, and does not see a second one.

The module imports AgentDojo: import it inside `agentdojo_yaml()`.
"""

from collections.abc import Sequence
from typing import Any

from agentdojo.agent_pipeline import BasePipelineElement
from agentdojo.functions_runtime import EmptyEnv, Env, FunctionReturnType, FunctionsRuntime, TaskEnvironment
from agentdojo.logging import Logger, TraceLogger
from agentdojo.types import ChatMessage


SIDE_EFFECTS = "side_effects"


class RecordSideEffects(BasePipelineElement):
    """Pipeline element that records the side effects of all later elements."""

    def query(
        self,
        query: str,
        runtime: FunctionsRuntime,
        env: Env = EmptyEnv(),  # noqa: B008  # default of the base class
        messages: Sequence[ChatMessage] = (),
        extra_args: dict | None = None,
    ) -> tuple[str, FunctionsRuntime, Env, Sequence[ChatMessage], dict]:
        """Replace the runtime by one that records."""
        return query, _RecordingRuntime(runtime), env, messages, extra_args or {}


class _RecordingRuntime(FunctionsRuntime):
    def __init__(self, runtime: FunctionsRuntime) -> None:
        super().__init__()
        self.functions = runtime.functions
        self._logger = Logger.get()
        self._note(None)

    def run_function(
        self, env: TaskEnvironment | None, function: str, kwargs: Any, raise_on_error: bool = False
    ) -> tuple[FunctionReturnType, str | None]:
        before = env.model_dump_json() if env is not None else None
        result = super().run_function(env, function, kwargs, raise_on_error)
        if env is not None and env.model_dump_json() != before:
            self._note({"function": function, "args": dict(kwargs)})
        return result

    def _note(self, call: dict | None) -> None:
        if isinstance(self._logger, TraceLogger):  # the run is saved
            # AgentDojo asks up to three times for a run without last words, in the same environment.
            earlier = self._logger.context.get(SIDE_EFFECTS, [])
            self._logger.set_contextarg(SIDE_EFFECTS, [*earlier, call] if call else earlier)
