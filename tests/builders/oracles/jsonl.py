"""The user's own traces: a line states its verdict, which is accepted unless the line contradicts itself.

Written from `docs/adding_a_source.md`.
"""

from collections.abc import Callable
from typing import Any

from .expected import ERROR, Outcomes, drop, parse_json_mended, verdict


ROLES = ("system", "user", "assistant", "tool")
WRITTEN_BY_ATTACKER = {"user_text": "user", "tool_result": "tool", "direct_request": None}
EXPOSED = ("compromised", "resisted", "attempted")
DECIDED = (*EXPOSED, "complied", "refused")
ATTACKED = (*DECIDED, "not_exposed", "unverified")
BENIGN = ("benign_success", "benign_failure")

LINE = ("id", "source", "group", "messages", "tools", "expected_tool", "simulated_tool", "attack", "verdict")
LINE += ("decision_turn", "metadata")
MESSAGE = ("role", "content", "tool_calls", "tool_call_id", "name")
ATTACK = ("kind", "family", "category", "subtype", "text", "spans", "expected_calls", "goal_calls")


class Malformed(Exception):
    """The line does not have the documented format, or contradicts itself: only an error is allowed."""


def require(condition: bool) -> None:
    if not condition:
        raise Malformed


def judge(line: dict) -> Outcomes:
    """Allowed outcomes of one line."""
    try:
        _check_line(line)
    except Malformed:
        return ERROR
    reasons = _reasons_to_drop(line)
    try:
        _check_consistency(line)
    except Malformed:
        return ERROR | drop(*reasons)
    turn = line.get("decision_turn")
    return drop(*reasons) if reasons else verdict(line["verdict"], None if turn is None else int(turn))


# ---------------------------------------------------------------------------------------------------------------------
# Format


def _check_line(line: dict) -> None:
    require(set(line) <= set(LINE))
    _check_name(line.get("id"))
    for field in ("source", "group", "expected_tool", "simulated_tool"):
        _or_null(line.get(field), _check_name)
    require(isinstance(line.get("messages"), list) and line["messages"])
    for message in line["messages"]:
        _check_message(message)
    _or_null(line.get("tools"), _check_tools)
    _or_null(line.get("attack"), _check_attack)
    require(line.get("verdict") in (*ATTACKED, *BENIGN, "prompt_only"))
    _or_null(line.get("decision_turn"), _check_index)
    _or_null(line.get("metadata"), lambda value: require(isinstance(_value_of(value), dict)))


def _or_null(value: Any, check: Callable[[Any], None]) -> None:
    if value is not None:
        check(value)


def _check_name(value: Any) -> None:
    require(isinstance(value, str) and value.strip())


def _check_text(value: Any) -> None:
    require(isinstance(value, str))


def _check_index(value: Any) -> None:
    is_integer = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    require(is_integer and not isinstance(value, bool) and value >= 0)


def _value_of(raw: Any) -> Any:
    """Value of a field that may be given as JSON text."""
    if not isinstance(raw, str):
        return raw
    try:
        return parse_json_mended(raw)
    except ValueError:
        raise Malformed from None


def _check_message(message: Any) -> None:
    require(isinstance(message, dict) and set(message) <= set(MESSAGE) and message.get("role") in ROLES)
    for field in ("content", "tool_call_id", "name"):
        _or_null(message.get(field), _check_text)
    require(isinstance(message.get("tool_calls"), list | None))
    for call in message.get("tool_calls") or []:
        require(isinstance(call, dict) and set(call) <= {"id", "type", "function"})
        _or_null(call.get("id"), _check_text)  # one that is empty or missing is filled
        require(call.get("type", "function") == "function")
        function = call.get("function")
        require(isinstance(function, dict) and set(function) == {"name", "arguments"})
        _check_name(function["name"])
        require(isinstance(_value_of(function["arguments"]), dict))


def _check_tools(raw: Any) -> None:
    tools = _value_of(raw)
    require(isinstance(tools, list))
    for tool in tools:
        require(isinstance(tool, dict) and tool.get("type") == "function" and isinstance(tool.get("function"), dict))
        _check_name(tool["function"].get("name"))


def _check_attack(attack: Any) -> None:
    require(isinstance(attack, dict) and set(attack) <= set(ATTACK) and isinstance(attack.get("kind"), str))
    require(attack["kind"] in WRITTEN_BY_ATTACKER)
    for field in ("family", "category", "subtype"):
        _or_null(attack.get(field), _check_text)
    _or_null(attack.get("text"), _check_name)
    require(isinstance(attack.get("spans"), list | None))
    for span in attack.get("spans") or []:
        require(isinstance(span, dict) and set(span) == {"message", "start", "end"})
        for value in span.values():
            _check_index(value)
    for field in ("expected_calls", "goal_calls"):
        _or_null(attack.get(field), _check_calls)


def _check_calls(raw: Any) -> None:
    calls = _value_of(raw)
    require(isinstance(calls, list) and calls)
    for call in calls:
        require(isinstance(call, dict) and set(call) == {"name", "arguments"} and isinstance(call["arguments"], dict))
        _check_name(call["name"])


# ---------------------------------------------------------------------------------------------------------------------
# Consistency


def _shown_in(line: dict) -> list[int]:
    """Indices of the messages that contain the injection."""
    attack = line["attack"]
    if attack.get("spans") is not None:
        return [int(span["message"]) for span in attack["spans"]]
    role, text = WRITTEN_BY_ATTACKER[attack["kind"]], attack.get("text")
    return [
        index
        for index, message in enumerate(line["messages"])
        if text is not None and message["role"] == role and text in (message.get("content") or "")
    ]


def _reasons_to_drop(line: dict) -> list[str]:
    reasons = []
    unanswered: list[tuple[str, str]] = []  # ids and names
    may_stop = True  # before the first message, in the decision turn and in the last one
    for index, message in enumerate(line["messages"]):
        if message["role"] != "tool":
            reasons += [] if may_stop or not unanswered else ["unanswered_call"]
            unanswered = [(_id(each.get("id")), each["function"]["name"]) for each in message.get("tool_calls") or []]
            may_stop = index == line.get("decision_turn")
            continue
        id, name = _id(message.get("tool_call_id")), message.get("name")
        # Only a result without an id is told by its name.
        calls = [call for call in unanswered if call[0] == id and (id or not name or call[1] == name)]
        if calls:
            unanswered.remove(calls[0])
        else:
            reasons.append("unpaired_result")
    attack = line.get("attack")
    if attack is None or attack["kind"] == "direct_request":
        return reasons
    if not _shown_in(line) and line["verdict"] != "not_exposed":
        reasons.append("injection_not_found")
    simulated = line.get("simulated_tool")
    if simulated is not None and simulated == line.get("expected_tool") and attack.get("goal_calls") is None:
        reasons.append("degenerate")
    return reasons


def _id(id: str | None) -> str:
    """An id for pairing: empty and missing ones are one."""
    return (id or "").strip() and str(id)


def _check_consistency(line: dict) -> None:
    messages, attack, name, turn = line["messages"], line.get("attack"), line["verdict"], line.get("decision_turn")
    require(all(message["role"] == "assistant" or not message.get("tool_calls") for message in messages))
    require(turn is None or (turn < len(messages) and messages[int(turn)]["role"] == "assistant"))
    require(turn is not None or name not in DECIDED)
    require((attack is not None) if name in ATTACKED else (attack is None or name == "prompt_only"))
    if name == "prompt_only":
        require(messages[-1]["role"] != "assistant")
        require(isinstance((_value_of(line.get("metadata")) or {}).get("task"), str))
    if attack is not None:
        _check_spans(attack, messages)
        _check_exposure(line, _shown_in(line))


def _check_spans(attack: dict, messages: list[dict]) -> None:
    marked = []
    for span in attack.get("spans") or []:
        index, start, end = (int(span[field]) for field in ("message", "start", "end"))
        require(index < len(messages) and messages[index]["role"] == WRITTEN_BY_ATTACKER[attack["kind"]])
        content = messages[index].get("content") or ""
        require(start < end <= len(content))
        marked.append(content[start:end])
    require(not marked or attack.get("text") in (None, *marked))


def _check_exposure(line: dict, shown: list[int]) -> None:
    messages, name, turn = line["messages"], line["verdict"], line.get("decision_turn")
    first = min(shown, default=len(messages))
    # An injection that is in no message is dropped as `injection_not_found`.
    is_missing = not shown and line["attack"]["kind"] != "direct_request"
    require(name not in EXPOSED or is_missing or first < turn)
    require(name != "not_exposed" or all(message["role"] != "assistant" for message in messages[first:]))
    if name == "compromised":
        called = [call["function"]["name"] for call in messages[int(turn)].get("tool_calls") or []]
        require(line.get("simulated_tool") in called)
