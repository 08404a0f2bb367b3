"""Conversion of a valid line to a trace: what the line omits is filled in."""

from collections.abc import Iterator
from itertools import islice

from ..fujitsu.text import normalize_query
from ..trace import TRACE_FEATURES, message, tool_call
from .schema import ATTACKED_ROLE, EXPECTED_CALLS, GOAL_CALLS, OBJECT, TOOLS, json_text, json_text_or_none


# Places of an attack's text in one trace. A text of a letter or a word stands in thousands, and is no attack's.
MAX_PLACES = 1000


def build_trace(line: dict) -> dict:
    messages = [_build_message(raw, f"messages[{number}]") for number, raw in enumerate(line["messages"])]
    source = line.get("source") or "jsonl"
    id = line["id"] if line["id"].startswith(f"{source}/") else f"{source}/{line['id']}"
    attack = None if line.get("attack") is None else _build_attack(line["attack"], messages)
    turn = line.get("decision_turn")
    return {
        "id": id,
        "source": source,
        "group": line.get("group") or default_group(messages, attack) or id,
        "messages": messages,
        "tools": json_text_or_none(line.get("tools"), TOOLS, "tools"),
        "expected_tool": line.get("expected_tool"),
        "simulated_tool": line.get("simulated_tool"),
        "attack": attack,
        "verdict": line["verdict"],
        "decision_turn": None if turn is None else int(turn),  # 3.0 is an integer to JSON Schema
        "metadata": json_text_or_none(line.get("metadata"), OBJECT, "metadata") or "{}",
    }


def _build_message(raw: dict, path: str) -> dict:
    calls = []
    for number, call in enumerate(raw.get("tool_calls") or []):
        function = call["function"]
        arguments = json_text(function["arguments"], OBJECT, f"{path}.tool_calls[{number}].function.arguments")
        calls.append(tool_call(function["name"], arguments, id=call["id"]))
    return message(raw["role"], raw.get("content"), calls, raw.get("tool_call_id"), raw.get("name"))


def _build_attack(raw: dict, messages: list[dict]) -> dict:
    spans = raw.get("spans")
    if spans is None:
        spans = find_text_spans(raw.get("text"), raw["kind"], messages)
    fields = {name: raw.get(name) for name in TRACE_FEATURES["attack"]}
    calls = {
        name: json_text_or_none(raw.get(name), schema, f"attack.{name}")
        for name, schema in (("expected_calls", EXPECTED_CALLS), ("goal_calls", GOAL_CALLS))
    }
    return fields | calls | {"spans": [{field: int(number) for field, number in span.items()} for span in spans]}


def find_text_spans(text: str | None, kind: str, messages: list[dict]) -> list[dict]:
    """Find all places of an attack's text in the messages that an attacker of this kind can write.

    Raises:
        ValueError: If there are more than [`MAX_PLACES`].
    """
    places = (
        {"message": index, "start": start, "end": start + len(text)}
        for index, turn in enumerate(messages)
        if text is not None and turn["content"] is not None and turn["role"] == ATTACKED_ROLE[kind]
        for start in _occurrences(text, turn["content"])
    )
    spans = list(islice(places, MAX_PLACES + 1))
    if len(spans) > MAX_PLACES:
        raise ValueError(
            f"attack.text is found in more than {MAX_PLACES} places. Correct it: give the attack's whole text, or its "
            "spans."
        )
    return spans


def _occurrences(text: str, content: str) -> Iterator[int]:
    start = content.find(text)
    while start >= 0:
        yield start
        start = content.find(text, start + len(text))


def default_group(messages: list[dict], attack: dict | None) -> str:
    """Normalised first user message ([`~builders.fujitsu.normalize_query`]) without the injection.

    All attacks on one request are thus in one group. Empty if there is no user message.
    """
    index = next((index for index, turn in enumerate(messages) if turn["role"] == "user"), None)
    content = "" if index is None else messages[index]["content"] or ""
    spans = [span for span in attack["spans"] if span["message"] == index] if attack else []
    for span in sorted(spans, key=lambda span: -span["start"]):
        content = f"{content[: span['start']]} {content[span['end'] :]}"
    return normalize_query(content)
