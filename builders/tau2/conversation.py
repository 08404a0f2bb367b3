"""Recorded conversations of τ² and τ-bench -> the messages of a trace.

τ² has messages of its own (in result files and in the history that a task may begin with):

    {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "name": "get_line", "arguments": {"id": "L1"},
        "requestor": "assistant"}]}
    {"role": "tool", "id": "c1", "content": "{...}", "requestor": "assistant", "error": false}
    {"role": "tool", "tool_messages": [{"role": "tool", "id": "c1", ...}, ...]}    # results of parallel calls

τ-bench has OpenAI's. In both, calls are numbered afresh (`call_0`, `call_1`, ...): recorded ids are empty or repeated.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from ..json_records import optional, parse_object, required
from ..trace import message, tool_call


# What the simulated user says to the benchmark, not to the assistant.
_CONTROL = re.compile(r"###(?:STOP|TRANSFER|OUT-OF-SCOPE)###")


class Unusable(Exception):
    """A record that cannot become a trace; its text is the name of the reason."""


@dataclass
class Conversation:
    """The messages of a trace, put together turn by turn.

    Args:
        messages (`list[dict]`): The messages so far.
        failed_calls (`list[int]`): Index of every message whose call was answered with an error.
        control_tokens (`list[str]`): What was cut out of the user's messages.
        greeting (`str`, *optional*): What the assistant said before anybody else. It is left out of the messages: the
            benchmark says it in the assistant's place, and chat templates want the user to begin.
        user_calls (`int`): Calls that the user made on their own device; they are not shown.
    """

    messages: list[dict] = field(default_factory=list)
    failed_calls: list[int] = field(default_factory=list)
    control_tokens: list[str] = field(default_factory=list)
    greeting: str | None = None
    user_calls: int = 0
    _waiting: list[tuple[str, dict]] = field(default_factory=list)  # the source's id of a call, and the call
    _calls: int = 0

    @property
    def tools_called(self) -> set[str]:
        return {call["function"]["name"] for turn in self.messages for call in turn["tool_calls"]}

    def say(self, role: str, content: str | None) -> None:
        """Add what the system, the user or the assistant says.

        Raises:
            Unusable: If a call is still unanswered.
        """
        self._end_turn()
        if role == "user" and content is not None and (tokens := _CONTROL.findall(content)):
            self.control_tokens += tokens
            content = _CONTROL.sub("", content).strip()
            if not content:
                return
        if role == "assistant" and all(turn["role"] == "system" for turn in self.messages):
            self.greeting = content
            return
        self.messages.append(message(role, content))

    def call(self, content: str | None, calls: list[tuple[str, str, dict | str]]) -> None:
        """Add a turn of the assistant with calls, given as `(id, name, arguments)`.

        Raises:
            Unusable: If an earlier call is still unanswered.
        """
        self._end_turn()
        for id, name, arguments in calls:
            self._waiting.append((id, tool_call(name, arguments, id=f"call_{self._calls}")))
            self._calls += 1
        self.messages.append(message("assistant", content, [call for _, call in self._waiting]))

    def answer(self, id: str, content: str | None, failed: bool = False) -> None:
        """Add the result of a call of the last turn; of two calls with one id, of the first.

        Raises:
            Unusable: If no call with this id is unanswered.
        """
        place = next((place for place, (waiting, _) in enumerate(self._waiting) if waiting == id), None)
        if place is None:
            raise Unusable("unpaired_result")
        _, call = self._waiting.pop(place)
        if failed:
            turn = max(index for index, each in enumerate(self.messages) if each["role"] == "assistant")
            self.failed_calls.append(turn)
        name = call["function"]["name"]
        self.messages.append(message("tool", content, tool_call_id=call["id"], name=name))

    def _end_turn(self) -> None:
        if self._waiting:
            raise Unusable("unpaired_result")


def add_tau2_messages(conversation: Conversation, raw_messages: list, where: str) -> None:
    """Add messages of τ².

    What the user does on their device (calls of requestor `user`, and their results) is counted and left out: they
    are no calls of the assistant, and it sees only what the user says about them.

    Raises:
        ValueError: If a message is not as the benchmark writes it.
        Unusable: If calls and results do not belong together.
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
                    conversation.say("user", content)
            elif calls:
                conversation.call(content, calls)
            else:
                conversation.say("assistant", content)
        elif role == "system":
            conversation.say("system", optional(raw, "content", str, at))
        else:
            raise ValueError(f"{at}: unknown role {role[:40]!r}. Correct it.")


def _tau2_call(raw: Any, at: str) -> tuple[str, str, dict | str]:
    call = as_object(raw, at)
    return optional(call, "id", str, at) or "", required(call, "name", str, at), required(call, "arguments", dict, at)


def _add_tau2_result(conversation: Conversation, raw: dict, at: str) -> None:
    id, content = optional(raw, "id", str, at) or "", optional(raw, "content", str, at)
    if optional(raw, "requestor", str, at) != "user":
        conversation.answer(id, content, failed=bool(optional(raw, "error", bool, at)))


def add_openai_messages(conversation: Conversation, raw_messages: list, where: str) -> None:
    """Add messages of τ-bench.

    Raises:
        ValueError: If a message is not as the benchmark writes it.
        Unusable: If calls and results do not belong together.
    """
    for number, raw in enumerate(raw_messages):
        at = f"{where}.traj[{number}]"
        role = required(as_object(raw, at), "role", str, at)
        content = optional(raw, "content", str, at)
        calls = [_openai_call(each, at) for each in optional(raw, "tool_calls", list, at) or []]
        if role == "tool":
            failed = content is not None and content.startswith("Error")
            conversation.answer(optional(raw, "tool_call_id", str, at) or "", content, failed)
        elif role == "assistant" and calls:
            conversation.call(content, calls)
        elif role in ("system", "user", "assistant"):
            conversation.say(role, content)
        else:
            raise ValueError(f"{at}: unknown role {role[:40]!r}. Correct it.")


def _openai_call(raw: Any, at: str) -> tuple[str, str, dict | str]:
    call = as_object(raw, at)
    function = required(call, "function", dict, at)
    arguments = required(function, "arguments", str, at)
    try:
        parse_object(arguments)
    except ValueError as error:
        raise ValueError(f"{at}: the arguments of a call are no JSON object ({error}). Correct them.") from None
    return optional(call, "id", str, at) or "", required(function, "name", str, at), arguments


def as_object(value: Any, at: str) -> dict:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{at}: expected an object, got {type(value).__name__}. Correct it.")
    return value
