"""What is mended in a line by rule before it is read. The names of the rules that changed it stand in the trace's
`metadata.repaired`, and the report of a source counts them.

    surrogates       "\\ud83d" without its other half           ->  U+FFFD, one for each
    filled_ids       calls without an id, or with an empty one ->  "call_1_0": of messages[1] the first call
    renamed_ids      two calls of one turn under the id "c0"   ->  "c0" and "c0_1"
    types            {"type": "dict"} in the schema of a tool  ->  {"type": "object"}

Results follow their calls: the second result under an id answers the second call under it, and a result without an id
answers the next call without one; if it names its tool, the next of that tool.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..json_records import parse_json
from ..json_schema import standard_types
from ..trace import to_json
from .layouts.common import dicts_in


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SURROGATE = re.compile("[\ud800-\udfff]")


def repair_line(line: dict) -> tuple[dict, list[str]]:
    """A line as it is read, and the names of the rules that changed it. What is no trace at all is left as it is.

    Raises:
        ValueError: If two keys of an object are one without their surrogates.
    """
    mended = _without_surrogates(line)
    _mend_json_text(mended)
    rules = ["surrogates"] if mended != line else []
    messages, tools = mended.get("messages"), _with_standard_types(mended.get("tools"))
    if _has_ids_of_text(messages):
        mended["messages"], of_ids = _with_unique_ids(messages)
        rules += of_ids
    if tools is not None:
        mended["tools"] = tools
        rules.append("types")
    return mended, rules


def note_repairs(trace: dict, repaired: list[str]) -> dict:
    """The trace with what was mended in its metadata, beside what an earlier reading has noted there."""
    if not repaired:
        return trace
    metadata = json.loads(trace["metadata"])
    earlier = metadata.get("repaired", [])
    noted = [*(earlier if isinstance(earlier, list) else [earlier]), *repaired]
    return trace | {"metadata": to_json(metadata | {"repaired": list(dict.fromkeys(noted))})}


def _without_surrogates(value: Any) -> Any:
    """A copy of a JSON value, mended. One character stands for each, so spans keep their places."""
    if isinstance(value, str):
        return _SURROGATE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    if not isinstance(value, dict):
        return value
    mended = {_without_surrogates(key): _without_surrogates(each) for key, each in value.items()}
    if len(mended) < len(value):
        raise ValueError("two keys of one object differ by unpaired surrogates only. Rename one")
    return mended


def _mend_json_text(line: dict) -> None:
    r"""Mend the fields that are JSON text, where `\ud83d` is a surrogate; in all other text it is six characters."""
    attack = line.get("attack")
    places = [(line, "tools"), (line, "metadata"), (attack, "expected_calls"), (attack, "goal_calls")]
    for message in dicts_in(line.get("messages")):
        places += [(call.get("function"), "arguments") for call in _calls(message)]
    for part, field in places:
        if isinstance(part, dict) and isinstance(text := part.get(field), str) and "\\ud" in text.lower():
            part[field] = _text_without_surrogates(text)


def _text_without_surrogates(text: str) -> str:
    try:
        value = parse_json(text, keep_surrogates=True)
    except ValueError:  # for the reader of the field to refuse
        return text
    mended = _without_surrogates(value)
    return text if mended == value else to_json(mended)


def _has_ids_of_text(messages: Any) -> bool:
    """Whether these are messages whose ids are text or missing; others are for the schema of a line to refuse."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return False
    ids = [call.get("id") for message in messages for call in _calls(message)]
    ids += [message.get("tool_call_id") for message in messages]
    return all(isinstance(id, str | None) for id in ids)


def _with_unique_ids(messages: list[dict]) -> tuple[list[dict], list[str]]:
    """Messages whose calls have ids that no other call of the same turn has, and their results with them."""
    taken = {call["id"] for message in messages for call in _calls(message) if call.get("id")}
    out: list[dict] = []
    rules: list[str] = []
    waiting: dict[str | None, list[dict]] = {}  # the last turn's calls without a result yet, by their old id
    for index, message in enumerate(messages):
        if message.get("role") == "tool":
            out.append(_answering(message, waiting.get(_id_or_none(message.get("tool_call_id")), [])))
            continue
        waiting, calls = {}, []
        for call, id in zip(_calls(message), _new_ids(index, _calls(message), taken), strict=True):
            old = _id_or_none(call.get("id"))
            if id != old:
                rules.append("filled_ids" if old is None else "renamed_ids")
            calls.append(call | {"id": id})
            waiting.setdefault(old, []).append(calls[-1])
        out.append(message | {"tool_calls": calls} if calls else message)
    return out, sorted(set(rules))


def _answering(result: dict, calls: list[dict]) -> dict:
    """A result with the id of the call that it answers, which is taken from these; as it is if there is none."""
    name = result.get("name") or None
    for call in calls:
        if name is None or not isinstance(call.get("function"), dict) or call["function"].get("name") == name:
            calls.remove(call)
            return result | {"tool_call_id": call["id"]}
    return result


def _new_ids(index: int, calls: list[dict], taken: set[str]) -> Iterator[str]:
    """An id for each call of `messages[index]`: its own, unless it has none or shares it with a call before it."""
    seen: Counter[str] = Counter()
    for number, call in enumerate(calls):
        id = _id_or_none(call.get("id"))
        new = f"call_{index}_{number}" if id is None else id if not seen[id] else f"{id}_{seen[id]}"
        if new != id:
            while new in taken:
                new += "_"
            taken.add(new)
        if id is not None:
            seen[id] += 1
        yield new


def _calls(message: dict) -> list[dict]:
    """The calls of a message; none where they are no calls, which the schema of a line refuses."""
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) and all(isinstance(call, dict) for call in calls) else []


def _id_or_none(id: str | None) -> str | None:
    """The id, `None` for an empty one."""
    return id if id and id.strip() else None


def _with_standard_types(tools: Any) -> Any:
    """Tools with JSON Schema's names of types, `None` if they have them or are none."""
    value = tools
    if isinstance(tools, str):
        try:
            value = parse_json(tools)
        except ValueError:
            return None
    if not isinstance(value, list):
        return None
    mended = [_with_standard_parameters(tool) for tool in value]
    return None if mended == value else mended


def _with_standard_parameters(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or "parameters" not in function:
        return tool
    return tool | {"function": function | {"parameters": standard_types(function["parameters"])}}
