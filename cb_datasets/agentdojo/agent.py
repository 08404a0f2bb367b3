"""The agent that AgentDojo's benchmark puts to work: a served model, asked over OpenAI's chat API.

AgentDojo's own agent for that API is for OpenAI's models. It sends the system prompt as `developer`, which templates
of open models do not know; it leaves out a temperature of 0, so that a server samples at one of its own; and it sends
parallel calls in one turn, which Llama 3.1's template refuses. So the agent is ours. Tasks, tools, attacks and
verdicts are the benchmark's.

The module imports AgentDojo: import it inside `agentdojo_yaml()`.
"""

import json
from collections.abc import Sequence
from typing import Any

import openai
from agentdojo.agent_pipeline import (
    AgentPipeline,
    BasePipelineElement,
    InitQuery,
    SystemMessage,
    ToolsExecutionLoop,
    ToolsExecutor,
)
from agentdojo.agent_pipeline.agent_pipeline import load_system_message
from agentdojo.functions_runtime import EmptyEnv, Env, FunctionCall, FunctionsRuntime
from agentdojo.types import ChatAssistantMessage, ChatMessage, text_content_block_from_string

from builders.agentdojo.layouts import wire_messages
from builders.agentdojo.suites import tool_schema
from builders.trace import to_json

from ..chat import DATE_STRING, template_messages


# Seconds that one answer may take.
_ANSWER_TIMEOUT = 1800


class ServedModel(BasePipelineElement):
    """Asks a model of a chat server, greedily.

    Args:
        url (`str`): Address of the API.
        model (`str`): The name that it is served under.
        max_new_tokens (`int`): Most tokens of a turn.
        end_ids (`list[int]`): Tokens that end a turn.
    """

    def __init__(self, url: str, model: str, max_new_tokens: int, end_ids: list[int]) -> None:
        # The server is on this machine: no proxy is on the way to it.
        http = openai.DefaultHttpxClient(trust_env=False, timeout=_ANSWER_TIMEOUT)
        self._client = openai.OpenAI(base_url=url, api_key="none", http_client=http)
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
        env: Env = EmptyEnv(),  # noqa: B008  # the interface's own default
        messages: Sequence[ChatMessage] = (),
        extra_args: dict | None = None,
    ) -> tuple[str, FunctionsRuntime, Env, Sequence[ChatMessage], dict]:
        """One turn of the assistant.

        Raises:
            openai.BadRequestError: If the context is too long: the benchmark goes on with the next run then.
            ConnectionError: If the server fails, or refuses the request for another reason.
        """
        request: dict[str, Any] = {"messages": request_messages(messages)}
        if runtime.functions:
            request["tools"] = [tool_schema(tool) for tool in runtime.functions.values()]
        try:
            answer = self._client.chat.completions.create(**request, **self._options)
        except openai.APIError as error:
            if isinstance(error, openai.BadRequestError) and "maximum context length" in str(error):
                error.code = "context_length_exceeded"  # what the benchmark knows it by
                raise
            raise ConnectionError(
                f"The server gave no answer ({error}). Runs that are over are kept; run the same command again."
            ) from error
        return query, runtime, env, [*messages, assistant_turn(answer.choices[0].message)], extra_args or {}


def request_messages(messages: Sequence[ChatMessage]) -> list[dict]:
    """A run's messages as a request for a chat completion has them: as the trace of the run will be rendered."""
    plain = [json.loads(json.dumps(message, default=lambda call: call.model_dump())) for message in messages]
    turns = template_messages(wire_messages(plain, "the run"))
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = to_json(call["function"]["arguments"])
    return turns


def assistant_turn(message: Any) -> ChatAssistantMessage:
    """The turn of a chat completion, as the benchmark has it.

    Arguments that are no object make no call that a tool could take: such a turn is what it says, in words.
    """
    calls = []
    for call in message.tool_calls or []:
        arguments = json.loads(call.function.arguments)
        if not isinstance(arguments, dict):
            said = f"{message.content or ''}{call.function.name} {call.function.arguments}"
            return ChatAssistantMessage(
                role="assistant", content=[text_content_block_from_string(said)], tool_calls=None
            )
        calls.append(FunctionCall(function=call.function.name, args=arguments, id=call.id))
    content = None if message.content is None else [text_content_block_from_string(message.content)]
    return ChatAssistantMessage(role="assistant", content=content, tool_calls=calls or None)


def agent(name: str, model: BasePipelineElement) -> AgentPipeline:
    """AgentDojo's plain agent, without a defence, around a model. Attacks take from its name what to call it."""
    loop = ToolsExecutionLoop([ToolsExecutor(), model])
    pipeline = AgentPipeline([SystemMessage(load_system_message(None)), InitQuery(), model, loop])
    pipeline.name = name
    return pipeline
