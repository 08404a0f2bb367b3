"""The agent that AgentDojo's benchmark runs: a served model, queried over OpenAI's chat API.

AgentDojo's own agent for that API is made for OpenAI's models. It sends the system prompt as `developer`, a role that
templates of open models do not know; it leaves out a temperature of 0, so that the server samples at its default; and
it sends parallel calls in one turn, which some templates reject. Therefore the LLM element of the pipeline is
defined here. Tasks, tools, attacks and verdicts are the benchmark's.

The module imports AgentDojo: import it inside `agentdojo_yaml()`.
"""

import json
from collections.abc import Sequence
from threading import Event
from typing import Any

import openai
from agentdojo.agent_pipeline import AgentPipeline, BasePipelineElement, PipelineConfig
from agentdojo.agent_pipeline.agent_pipeline import load_system_message
from agentdojo.functions_runtime import EmptyEnv, Env, FunctionCall, FunctionsRuntime
from agentdojo.types import ChatAssistantMessage, ChatMessage, text_content_block_from_string

from builders.agentdojo.layouts import wire_messages
from builders.agentdojo.suites import tool_schema
from builders.trace import to_json

from ..chat import DATE_STRING
from ..control_tokens import ControlTokens
from ..formats import ToolCallFormat
from ..template_form import template_messages
from .side_effects import RecordSideEffects


# Seconds until a request times out.
_REQUEST_TIMEOUT = 1800


class ServedModel(BasePipelineElement):
    """Pipeline element that generates assistant turns with a served model, greedily.

    Args:
        url (`str`): Base URL of the API.
        model (`str`): Served model name.
        max_new_tokens (`int`): Maximum number of tokens of a turn.
        end_ids (`list[int]`): Tokens that end a turn.
        tool_format ([`ToolCallFormat`]): How the model writes calls.
        control ([`ControlTokens`], *optional*): Those of a server that encodes text by itself: they are broken in what
            it gets. Not for a server with our renderer, which reads them as plain text.
    """

    def __init__(
        self,
        url: str,
        model: str,
        max_new_tokens: int,
        end_ids: list[int],
        tool_format: ToolCallFormat,
        control: ControlTokens | None = None,
    ) -> None:
        self.name = model
        self.stopped = Event()  # once set, no further turn is generated
        # The server runs on this machine: proxy settings of the environment must not apply.
        http = openai.DefaultHttpxClient(trust_env=False, timeout=_REQUEST_TIMEOUT)
        self._client = openai.OpenAI(base_url=url, api_key="none", http_client=http)
        self._format = tool_format
        self._control = control
        self._options: dict[str, Any] = {
            "model": model,
            "temperature": 0.0,
            "max_tokens": max_new_tokens,
            "extra_body": {"stop_token_ids": end_ids, "chat_template_kwargs": {"date_string": DATE_STRING}},
        }

    def query(
        self,
        query: str,
        runtime: FunctionsRuntime,
        env: Env = EmptyEnv(),  # noqa: B008  # default of the base class
        messages: Sequence[ChatMessage] = (),
        extra_args: dict | None = None,
    ) -> tuple[str, FunctionsRuntime, Env, Sequence[ChatMessage], dict]:
        """Append one assistant turn to the messages.

        Raises:
            openai.BadRequestError: If the context is too long; the benchmark then continues with the next run.
            ConnectionError: If the server fails, or rejects the request for another reason; if the model was stopped.
        """
        if self.stopped.is_set():
            raise ConnectionError("The benchmark was stopped. Finished runs are kept; rerun the same command.")
        request: dict[str, Any] = {"messages": request_messages(messages, self._format, self._control)}
        if runtime.functions:
            tools = [tool_schema(tool) for tool in runtime.functions.values()]
            request["tools"] = tools if self._control is None else self._control.break_in(tools)
        try:
            response = self._client.chat.completions.create(**request, **self._options)
        except openai.APIError as error:
            if isinstance(error, openai.BadRequestError) and "maximum context length" in str(error):
                error.code = "context_length_exceeded"  # the code that the benchmark checks for
                raise
            raise ConnectionError(
                f"The request to the server failed ({error}). Finished runs are kept; rerun the same command."
            ) from error
        return query, runtime, env, [*messages, assistant_turn(response.choices[0].message)], extra_args or {}


def request_messages(
    messages: Sequence[ChatMessage], tool_format: ToolCallFormat, control: ControlTokens | None = None
) -> list[dict]:
    """Convert a run's messages to the `messages` of a chat request.

    They pass through the functions that later render the run's trace, so that the model sees the same prompt, apart
    from the breaks in control tokens.
    """
    plain = [json.loads(json.dumps(message, default=lambda call: call.model_dump())) for message in messages]
    turns = template_messages(wire_messages(plain, "the run"), tool_format)
    if control is not None:
        turns = control.break_in(turns)
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = to_json(call["function"]["arguments"])
    return turns


def assistant_turn(message: Any) -> ChatAssistantMessage:
    """Convert the message of a chat completion to AgentDojo's assistant turn.

    A call whose arguments are not a JSON object cannot be executed: such a turn becomes plain text.
    """
    calls = []
    for call in message.tool_calls or []:
        arguments = _object_in(call.function.arguments)
        if arguments is None:
            text = f"{message.content or ''}{call.function.name} {call.function.arguments}"
            return ChatAssistantMessage(
                role="assistant", content=[text_content_block_from_string(text)], tool_calls=None
            )
        calls.append(FunctionCall(function=call.function.name, args=arguments, id=call.id))
    content = None if message.content is None else [text_content_block_from_string(message.content)]
    return ChatAssistantMessage(role="assistant", content=content, tool_calls=calls or None)


def _object_in(text: str) -> dict | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def make_agent(
    name: str,
    model: BasePipelineElement,
    system_message: str | None = None,
    max_steps: int = 15,
    defense: str | None = None,
) -> AgentPipeline:
    """AgentDojo's default pipeline around a model. Attacks address the model by its name.

    Args:
        name (`str`): Name of the pipeline, and of the folder of its runs.
        model (`BasePipelineElement`): Element that generates a turn.
        system_message (`str`, *optional*): Instead of AgentDojo's own.
        max_steps (`int`, *optional*, defaults to `15`): Maximum number of turns with calls; then the run ends.
        defense (`str`, *optional*): One of [`DEFENSES`].
    """
    system_message = system_message or load_system_message(None)
    config = PipelineConfig(
        llm=model, model_id=None, defense=defense, system_message_name=None, system_message=system_message
    )
    pipeline = AgentPipeline.from_config(config)
    *first, loop = pipeline.elements
    loop.max_iters = max_steps
    pipeline.elements = [RecordSideEffects(), *first, loop]
    pipeline.name = name
    return pipeline
