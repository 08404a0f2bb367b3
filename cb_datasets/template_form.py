"""Messages as chat templates read them, in the renderer and in rows that leave this project: releases, JSON lines.

    stored      {"role": "user", "content": "Hi.", "tool_calls": [], "tool_call_id": null, "name": null}
    published   {"role": "user", "content": "Hi."}

Published messages are those of [`template_messages`], which the renderer itself passes to a template: absent fields
are absent, arguments are objects, and parallel calls are written as the target's format wants them. So any
`tokenizer.apply_chat_template` writes what the renderer writes. Templates do not forgive the stored form: with
`tool_calls` that are null or `[]` those of Llama 3.1 and Mistral Nemo raise an error, and arguments as text are quoted
by those of Llama 3.1 and Qwen2.5.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import replace

from builders.trace import message, to_json

from .formats import CANONICAL, FORMATS, ToolCallFormat


def template_messages(messages: list[dict], tool_format: ToolCallFormat) -> list[dict]:
    """Messages as the chat templates of a format expect them.

    Absent fields are absent rather than null, and arguments are objects. Where templates refuse or lose all but the
    first call of a turn, as that of Llama 3.1 does, parallel calls are written as consecutive call/result pairs; where
    they refuse text beside a call, it is left out; and where they demand ids of a certain form, calls are numbered.
    Results are paired with calls by order: ids are empty or repeated in real traces.
    """
    out: list[dict] = []
    waiting: list[dict] = []  # for each call of the last assistant turn without a result yet, the turn that makes it
    in_pairs = not tool_format.parallel_calls
    numbers = itertools.count()
    for each in messages:
        if each["role"] == "tool":
            turn = waiting.pop(0) if waiting else None
            out += [turn] if turn and in_pairs else []
            out.append({"role": "tool", "content": each["content"] or "", **_named(each, turn, tool_format)})
            continue
        out += waiting if in_pairs else []
        waiting = [_call_turn(each, call, tool_format, next(numbers)) for call in each["tool_calls"] or ()]
        if not waiting:
            out.append({"role": each["role"], "content": each["content"] or ""})
        elif not in_pairs:
            out.append({**waiting[0], "tool_calls": [turn["tool_calls"][0] for turn in waiting]})
    return out + waiting if in_pairs else out


def _named(result: dict, turn: dict | None, tool_format: ToolCallFormat) -> dict:
    """Id and name of a tool result. `turn` makes its call."""
    named = {key: result[key] for key in ("tool_call_id", "name") if result[key]}
    if turn is not None and tool_format.call_id is not None:
        named["tool_call_id"] = turn["tool_calls"][0]["id"]
    return named


def _call_turn(made_by: dict, call: dict, tool_format: ToolCallFormat, number: int) -> dict:
    """The turn that makes one call of a message, the call of this number in the conversation."""
    function = {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
    call_id = call["id"] if tool_format.call_id is None else tool_format.call_id(number)
    turn = {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function", "function": function}]}
    if made_by["content"] and tool_format.text_before_call:
        turn["content"] = made_by["content"]
    return turn


def format_of_row(row: dict) -> ToolCallFormat:
    """The format that a row was made for. A prompt is made for none: it is written as for the canonical one, which
    all templates take. So is a row of an unknown format, about which the rules have a word.
    """
    return FORMATS.get(row["provenance"]["prompt_format"], FORMATS[CANONICAL])


def published_messages(row: dict) -> tuple[list[dict], list[dict]]:
    """Stored messages of a row as published ones, and the spans of its injection at their new places."""
    messages, injection, tool_format = row["messages"], row["injection"], format_of_row(row)
    # Where each message goes is read off its content: pairs of parallel calls move the messages after them.
    numbering = replace(tool_format, text_before_call=True)
    numbered = [{**each, "content": str(number)} for number, each in enumerate(messages)]
    places: dict[int, int] = {}
    for place, turn in enumerate(template_messages(numbered, numbering)):
        places.setdefault(int(turn["content"]), place)
    moved = [{**span, "message": places.get(span["message"], span["message"])} for span in injection]
    return template_messages(messages, tool_format), moved


def stored_messages(messages: Iterable[dict]) -> list[dict]:
    """Published messages as stored ones, the inverse of [`published_messages`]; null and empty fields are allowed."""
    return [
        message(
            turn["role"],
            turn.get("content"),
            [_stored_call(call) for call in turn.get("tool_calls") or ()],
            turn.get("tool_call_id"),
            turn.get("name"),
        )
        for turn in messages
    ]


def _stored_call(call: dict) -> dict:
    function = {"name": call["function"]["name"], "arguments": to_json(call["function"]["arguments"])}
    return {"id": call["id"], "type": call["type"], "function": function}
