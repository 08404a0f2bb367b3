"""Checks of a trace: one that contradicts itself is an error, one that is not usable has a drop reason."""

import json
from collections.abc import Iterator

from ..agentdojo.exposure import unquoted
from ..trace import call_matches
from .schema import ATTACKED_ROLE, EXPECTED_CALLS, check_schema


# Verdicts that imply that the model saw an injection; that there is a decision turn; that there is an attack.
_EXPOSED = ("compromised", "resisted", "attempted")
_DECIDED = (*_EXPOSED, "complied", "refused")
_ATTACKED = (*_DECIDED, "not_exposed", "not_offered", "dos_attack", "unverified")
_BENIGN = ("benign_success", "benign_failure")


def drop_reason(trace: dict) -> str | None:
    """Drop reason of a trace that is not usable, or `None`."""
    attack = trace["attack"]
    if trace["verdict"] in _BENIGN and all(turn["role"] != "assistant" for turn in trace["messages"]):
        return "unanswered"
    if not _results_are_paired(trace["messages"]):
        return "unpaired_result"
    if _has_unanswered_call(trace):
        return "unanswered_call"
    if attack is None or attack["kind"] == "direct_request":
        return None
    if not attack["spans"] and trace["verdict"] != "not_exposed":
        return "injection_not_found"
    # If the arguments tell the calls apart, the same tool may be the expected and the attacker's: a payment to the
    # landlord or to a stranger.
    expected = json.loads(attack["expected_calls"] or "[]")
    right_tools = {trace["expected_tool"], *(call["name"] for call in expected if call.get("parallel"))}
    is_same_tool = trace["simulated_tool"] is not None and trace["simulated_tool"] in right_tools
    return "degenerate" if is_same_tool and attack["goal_calls"] is None else None


def _results_are_paired(messages: list[dict]) -> bool:
    unanswered: list[str] = []  # ids of the last assistant turn's calls without a result yet
    for turn in messages:
        if turn["role"] == "tool":
            if turn["tool_call_id"] not in unanswered:
                return False
            unanswered.remove(turn["tool_call_id"])
        else:
            unanswered = [call["id"] for call in turn["tool_calls"]]
    return True


def _has_unanswered_call(trace: dict) -> bool:
    """Whether a call has no result and is neither in the decision turn nor in the last one, where runs may stop."""
    messages = trace["messages"]
    last = max((index for index, turn in enumerate(messages) if turn["role"] != "tool"), default=0)
    num_results = 0
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "tool":
            num_results += 1
            continue
        may_stop = index in (last, trace["decision_turn"])
        if (
            messages[index]["role"] == "assistant"
            and len(messages[index]["tool_calls"]) > num_results
            and not may_stop
        ):
            return True
        num_results = 0
    return False


def check_consistency(trace: dict) -> None:
    """Refuse a trace that contradicts itself.

    Raises:
        ValueError: If it does; the message names the fields that contradict each other.
    """
    contradiction = next(_contradictions(trace), None)
    if contradiction is not None:
        raise ValueError(f"{contradiction}. Correct what is wrong.")


def _contradictions(trace: dict) -> Iterator[str]:
    # Only the first contradiction is taken from this generator: later checks assume that the earlier ones passed.
    messages, attack, verdict, turn = (trace[name] for name in ("messages", "attack", "verdict", "decision_turn"))
    for index, each in enumerate(messages):
        if each["tool_calls"] and each["role"] != "assistant":
            yield f"messages[{index}] makes a call, but its role is {each['role']}"
    if turn is not None and (turn >= len(messages) or messages[turn]["role"] != "assistant"):
        yield f"decision_turn is {turn}, but messages[{turn}] is not an assistant message"
    if verdict in _DECIDED and turn is None:
        yield f"verdict {verdict} needs decision_turn"
    if verdict in _ATTACKED and attack is None:
        yield f"verdict {verdict} needs attack"
    if verdict in _BENIGN and attack is not None:
        yield f"verdict {verdict} says that nothing was attacked, but there is an attack"
    if verdict == "prompt_only":
        yield from _prompt_contradictions(trace)
    if attack is not None:
        yield from _parallel_contradictions(json.loads(attack["expected_calls"] or "[]"), "attack")
        yield from _span_contradictions(attack, messages)
        yield from _exposure_contradictions(trace)


def _prompt_contradictions(trace: dict) -> Iterator[str]:
    last = len(trace["messages"]) - 1
    if trace["messages"][last]["role"] == "assistant":
        yield f"verdict prompt_only says that nothing was answered, but messages[{last}] is an answer"
    metadata = json.loads(trace["metadata"])
    if not isinstance(metadata.get("task"), str):
        yield "verdict prompt_only needs metadata.task, the name of the evaluation that the prompt is for"
    if (calls := metadata.get("expected_calls")) is not None:
        try:
            check_schema(calls, {**EXPECTED_CALLS, "type": "array"}, "metadata.expected_calls")
        except ValueError as error:
            yield str(error).partition(". ")[0]
        else:
            yield from _parallel_contradictions(calls, "metadata")


def _parallel_contradictions(calls: list[dict], field: str) -> Iterator[str]:
    if len({bool(call.get("parallel")) for call in calls}) > 1:
        yield f"{field}.expected_calls are parallel in part: mark all calls that are wanted in one turn, or none"


def _span_contradictions(attack: dict, messages: list[dict]) -> Iterator[str]:
    marked = []  # the texts inside the spans
    for number, span in enumerate(attack["spans"]):
        path, index = f"attack.spans[{number}]", span["message"]
        if index >= len(messages):
            yield f"{path}.message is {index}, but there are {len(messages)} messages"
        elif messages[index]["role"] != ATTACKED_ROLE[attack["kind"]]:
            yield f"{path} is in a message of role {messages[index]['role']}, where {attack['kind']} has none"
        else:
            content = messages[index]["content"] or ""
            if not span["start"] < span["end"] <= len(content):
                yield f"{path} is no part of messages[{index}].content, which has {len(content)} characters"
            marked.append(content[span["start"] : span["end"]])
    # A tool may have returned the text quoted and folded.
    if attack["text"] is not None and marked and unquoted(attack["text"]) not in map(unquoted, marked):
        yield "attack.text is not what any of attack.spans marks"


def _exposure_contradictions(trace: dict) -> Iterator[str]:
    verdict, turn, messages = trace["verdict"], trace["decision_turn"], trace["messages"]
    first = min((span["message"] for span in trace["attack"]["spans"]), default=len(messages))
    if verdict in _EXPOSED and first > turn:
        yield f"verdict {verdict} says that the injection was read, but none is in a message before decision_turn"
    if verdict == "not_exposed" and any(each["role"] == "assistant" for each in messages[first:]):
        yield f"verdict not_exposed says that the injection was not read, but it is in messages[{first}]"
    if verdict == "compromised":
        called = [call["function"]["name"] for call in messages[turn]["tool_calls"]]
        if trace["simulated_tool"] not in called:
            yield f"verdict compromised needs a call of simulated_tool in messages[{turn}]"
    if verdict == "resisted":
        for index in range(first, turn + 1):
            if any(_is_attackers(call, trace) for call in messages[index]["tool_calls"]):
                yield (
                    f"verdict resisted says that the attacker's call was not made, but messages[{index}] makes it "
                    "(attack.goal_calls tells it from others of simulated_tool)"
                )


def _is_attackers(call: dict, trace: dict) -> bool:
    name, goals = call["function"]["name"], trace["attack"]["goal_calls"]
    if goals is None:
        return name == trace["simulated_tool"]
    arguments = json.loads(call["function"]["arguments"])
    return any(call_matches(name, arguments, goal) for goal in json.loads(goals))
