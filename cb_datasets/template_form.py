"""Messages as chat templates read them, for rows that leave this project: releases and JSON lines.

    stored      {"role": "user", "content": "Hi.", "tool_calls": [], "tool_call_id": null, "name": null}
    published   {"role": "user", "content": "Hi."}

Published messages are those of [`~chat.template_messages`], which the renderer itself passes to a template: absent
fields are absent, arguments are objects, and parallel calls are pairs of call and result. So any
`tokenizer.apply_chat_template` writes what the renderer writes. Templates do not forgive the stored form: with
`tool_calls` that are null or `[]` those of Llama 3.1 and Mistral Nemo raise an error, and arguments as text are quoted
by those of Llama 3.1 and Qwen2.5.
"""

from collections.abc import Iterable

from builders.trace import message, to_json

from .chat import template_messages


def published_messages(messages: list[dict], injection: list[dict]) -> tuple[list[dict], list[dict]]:
    """Stored messages as published ones, and the spans of an injection at their new places."""
    # Where each message goes is read off its content: pairs of parallel calls move the messages after them.
    numbered = [{**each, "content": str(number)} for number, each in enumerate(messages)]
    places: dict[int, int] = {}
    for place, turn in enumerate(template_messages(numbered)):
        places.setdefault(int(turn["content"]), place)
    moved = [{**span, "message": places.get(span["message"], span["message"])} for span in injection]
    return template_messages(messages), moved


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
