"""Conversion of the messages of τ² and τ-bench to the messages of a trace.

τ² has its own message format (in result files, and in the message history of some tasks):

    {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "name": "get_line", "arguments": {"id": "L1"},
        "requestor": "assistant"}]}
    {"role": "tool", "id": "c1", "content": "{...}", "requestor": "assistant", "error": false}
    {"role": "tool", "tool_messages": [{"role": "tool", "id": "c1", ...}, ...]}    # results of parallel calls

τ-bench uses OpenAI's format. In both, calls are renumbered (`call_0`, `call_1`, ...), since recorded ids may be empty
or repeated.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from ..json_records import optional, parse_object, required
from ..trace import Dropped, message, tool_call


# Tokens by which the simulated user controls the benchmark; they are not meant for the assistant.
_CONTROL = re.compile(r"###(?:STOP|TRANSFER|OUT-OF-SCOPE)###")


class Unusable(Exception):
    """Raised for a record that cannot become a trace.

    Args:
        reason (`str`): The drop reason.
        source (`str`, *optional*): The report that says why such records are dropped.
    """

    def __init__(self, reason: str, source: str | None = None):
        super().__init__(reason)
        self.source = source

    def dropped(self, where: str) -> Dropped:
        """The drop of a record; its place is followed by the source."""
        return Dropped(str(self), where if self.source is None else f"{where} ({self.source})")


@dataclass
class Conversation:
    """The messages of a trace, built turn by turn.

    Args:
        messages (`list[dict]`): The messages so far.
        failed_calls (`list[int]`): Indices of the messages with a call that returned an error.
        control_tokens (`list[str]`): Control tokens that were cut out of the user's messages.
        greeting (`str`, *optional*): Text of the assistant before the first user message. It is not among the
            messages: the benchmark writes it, not the model, and chat templates require the user to begin.
        user_calls (`int`): Number of calls that the user made on their own device; they are not among the messages.
    """

    messages: list[dict] = field(default_factory=list)
    failed_calls: list[int] = field(default_factory=list)
    control_tokens: list[str] = field(default_factory=list)
    greeting: str | None = None
    user_calls: int = 0
    _unanswered: list[tuple[str, dict]] = field(default_factory=list)  # (recorded id, call) of the last turn's calls
    _num_calls: int = 0

    @property
    def tools_called(self) -> set[str]:
        return {call["function"]["name"] for turn in self.messages for call in turn["tool_calls"]}

    def add_text(self, role: str, content: str | None) -> None:
        """Add a text message of the system, the user or the assistant.

        Raises:
            Unusable: If a call is still unanswered.
        """
        self._check_answered()
        if role == "user" and content is not None and (tokens := _CONTROL.findall(content)):
            self.control_tokens += tokens
            content = _CONTROL.sub("", content).strip()
            if not content:
                return
        # Before the first user message there can only be system messages, or the greeting.
        if role == "assistant" and all(turn["role"] == "system" for turn in self.messages):
            self.greeting = content
            return
        self.messages.append(message(role, content))

    def add_calls(self, content: str | None, calls: list[tuple[str, str, dict | str]]) -> None:
        """Add an assistant turn with calls, given as `(id, name, arguments)`.

        Raises:
            Unusable: If an earlier call is still unanswered.
        """
        self._check_answered()
        for id, name, arguments in calls:
            self._unanswered.append((id, tool_call(name, arguments, id=f"call_{self._num_calls}")))
            self._num_calls += 1
        self.messages.append(message("assistant", content, [call for _, call in self._unanswered]))

    def add_result(self, id: str, content: str | None, failed: bool = False) -> None:
        """Add the result of a call of the last turn; if several calls have the same id, of the first unanswered one.

        Raises:
            Unusable: If no unanswered call has this id.
        """
        position = next((i for i, (call_id, _) in enumerate(self._unanswered) if call_id == id), None)
        if position is None:
            raise Unusable("unpaired_result")
        _, call = self._unanswered.pop(position)
        if failed:
            turn = max(index for index, each in enumerate(self.messages) if each["role"] == "assistant")
            self.failed_calls.append(turn)
        name = call["function"]["name"]
        self.messages.append(message("tool", content, tool_call_id=call["id"], name=name))

    def _check_answered(self) -> None:
        if self._unanswered:
            raise Unusable("unpaired_result")


def add_tau2_messages(conversation: Conversation, raw_messages: list, where: str) -> None:
    """Add messages in the format of τ².

    The user's own calls (requestor `user`) and their results are counted and left out: the assistant sees neither,
    only what the user writes about them.

    Raises:
        ValueError: If a message does not have the benchmark's format.
        Unusable: If calls and results cannot be matched.
    """
    for number, raw in enumerate(raw_messages):
        at = f"{where}.messages[{number}]"
        role = required(as_object(raw, at), "role", str, at)
        if role == "tool":
            for result in [raw] if raw.get("tool_messages") is None else required(raw, "tool_messages", list, at):
                _add_tau2_result(conversation, as_object(result, at), at)
        elif role in ("assistant", "user"):
            content = optional(raw, "content", str, at)
            calls = [_tau2_call(each, at) for each in optional(raw, "tool_calls", list, at) or []]
            if role == "user":
                conversation.user_calls += len(calls)
                if content or not calls:
                    conversation.add_text("user", content)
            elif calls:
                conversation.add_calls(content, calls)
            else:
                conversation.add_text("assistant", content)
        elif role == "system":
            conversation.add_text("system", optional(raw, "content", str, at))
        else:
            raise ValueError(f"{at}: unknown role {role[:40]!r}. Correct it.")


def _tau2_call(raw: Any, at: str) -> tuple[str, str, dict | str]:
    call = as_object(raw, at)
    return optional(call, "id", str, at) or "", required(call, "name", str, at), required(call, "arguments", dict, at)


def _add_tau2_result(conversation: Conversation, raw: dict, at: str) -> None:
    id, content = optional(raw, "id", str, at) or "", optional(raw, "content", str, at)
    if optional(raw, "requestor", str, at) != "user":
        conversation.add_result(id, content, failed=bool(optional(raw, "error", bool, at)))


def add_openai_messages(conversation: Conversation, raw_messages: list, where: str) -> None:
    """Add messages of τ-bench, which are in OpenAI's format.

    Raises:
        ValueError: If a message does not have that format.
        Unusable: If calls and results cannot be matched.
    """
    for number, raw in enumerate(raw_messages):
        at = f"{where}.traj[{number}]"
        role = required(as_object(raw, at), "role", str, at)
        content = optional(raw, "content", str, at)
        calls = [_openai_call(each, at) for each in optional(raw, "tool_calls", list, at) or []]
        if role == "tool":
            failed = content is not None and content.startswith("Error")  # τ-bench has no error flag
            conversation.add_result(optional(raw, "tool_call_id", str, at) or "", content, failed)
        elif role == "assistant" and calls:
            conversation.add_calls(content, calls)
        elif role in ("system", "user", "assistant"):
            conversation.add_text(role, content)
        else:
            raise ValueError(f"{at}: unknown role {role[:40]!r}. Correct it.")


def _openai_call(raw: Any, at: str) -> tuple[str, str, dict | str]:
    call = as_object(raw, at)
    function = required(call, "function", dict, at)
    arguments = required(function, "arguments", str, at)
    try:
        parse_object(arguments)
    except ValueError as error:
        raise ValueError(f"{at}: the arguments of a call are not a JSON object ({error}). Correct them.") from None
    return optional(call, "id", str, at) or "", required(function, "name", str, at), arguments


def as_object(value: Any, at: str) -> dict:
    """Return the value if it is a JSON object, or raise a `ValueError`."""
    if not isinstance(value, dict):
        raise ValueError(f"{at}: expected an object, got {type(value).__name__}. Correct it.")
    return value
