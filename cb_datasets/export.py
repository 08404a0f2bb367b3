"""Samples as JSON lines: with decoded calls and tools and back without loss, or in the layout of another trainer.

    samples    the record of a sample, valid against canonical_sample_schema.json; its messages as templates read them
    sft        {"prompt": [...], "completion": [turn], "tools": "[...]"}                     TRL's SFTTrainer
    dpo        {"prompt": [...], "chosen": [turn], "rejected": [turn], "tools": "[...]"}     TRL's DPOTrainer
    openai     {"messages": [..., turn], "tools": [...]}                                     OpenAI's fine-tuning API

A turn is the parsed completion, so that the template of any model writes it in its own format. Only `dpo` has the
completions of Ds, as those to move away from: the others leave them out, since they imitate what they are given.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pyarrow
from datasets import Features, Json, List, Value

from builders.json_records import read_json_lines
from builders.json_schema import DRAFT, object_schema, schema_of
from builders.trace import to_json

from .chat import DATE_STRING
from .files import in_one_move, set_writer
from .formats import CANONICAL, Diagnosis, Parsed, get_format
from .row_groups import STREAM_ROWS
from .sample import CIRCUIT_BREAKER, PRIORITY_WEIGHTS, PROMPT_FEATURES, SAMPLE_FEATURES
from .template_form import published_messages, stored_messages, template_messages


_TURNS = List(Json())
_FOR_TRL = {"id": Value("string"), "tools": Value("string"), "chat_template_kwargs": Json()}

# For `load_dataset("json", data_files=..., features=...)`. Without them the columns are guessed from the first rows.
TRL_FEATURES = {
    "sft": Features({**_FOR_TRL, "prompt": _TURNS, "completion": _TURNS}),
    "dpo": Features({**_FOR_TRL, "pair": Value("string"), "prompt": _TURNS, "chosen": _TURNS, "rejected": _TURNS}),
}


def json_schema() -> dict:
    """JSON Schema of one exported sample, in which calls carry `arguments` as objects."""
    properties = {name: schema_of(feature) for name, feature in SAMPLE_FEATURES.items()}
    properties["tools"] = {"type": ["array", "null"], "items": {"type": "object"}}
    properties["tool_calls_structured"]["items"]["properties"]["arguments"] = {"type": "object"}
    # Fields that a message does not have are absent; records of older versions have them as null or `[]`.
    messages = properties["messages"]["items"]
    messages["required"] = ["role"]
    messages["properties"]["tool_calls"]["items"]["properties"]["function"]["properties"]["arguments"] = {
        "type": "object"
    }
    for key in ("expected_calls", "goal_calls"):
        properties["target"]["properties"][key] = {"type": ["array", "null"], "items": {"type": "object"}}
    for name in ("id", "group", "split", "set", "assistant_raw", "outcome", "priority_class"):
        properties[name] = {"type": "string", "minLength": 1}
    properties["split"] = {"enum": ["train", "eval"]}
    properties["set"] = {"enum": ["circuit_breaker", "retain"]}
    properties["priority_class"] = {"enum": list(PRIORITY_WEIGHTS)}
    return {
        "$schema": DRAFT,
        "title": "Canonical circuit-breaker sample",
        **object_schema(properties),
    }


def export_row(sample: dict) -> dict:
    """A sample with its JSON text decoded and its messages published: the record shape of the JSONL export."""
    calls = [{**call, "arguments": json.loads(call["arguments"])} for call in sample["tool_calls_structured"]]
    target = dict(sample["target"])
    for key in ("expected_calls", "goal_calls"):
        target[key] = json.loads(target[key]) if target[key] else None
    messages, injection = published_messages(sample)
    return {
        **sample,
        "messages": messages,
        "injection": injection,
        "tools": json.loads(sample["tools"]) if sample["tools"] else None,
        "tool_calls_structured": calls,
        "target": target,
    }


def export_jsonl(samples: Iterable[dict], path: Path) -> None:
    """Write samples as JSON lines, each valid against [`json_schema`]."""
    write_jsonl(map(export_row, samples), path)


def export_prompts(prompts: Iterable[dict], path: Path) -> None:
    """Write evaluation prompts as JSON lines: the columns of a sample that say what a model is asked."""
    records = (export_row({**prompt, "tool_calls_structured": []}) for prompt in prompts)
    write_jsonl(({name: record[name] for name in PROMPT_FEATURES} for record in records), path)


def write_jsonl(rows: Iterable[dict], path: Path) -> None:
    """Write rows as JSON lines; all of them, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_move(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(to_json(row) + "\n" for row in rows)


def import_row(record: dict) -> dict:
    """The sample of a record, the inverse of [`export_row`]: exported again, it is the same record."""
    target = dict(record["target"])
    for key in ("expected_calls", "goal_calls"):
        target[key] = None if target[key] is None else to_json(target[key])
    return {
        **record,
        "messages": stored_messages(record["messages"]),
        "tools": None if record["tools"] is None else to_json(record["tools"]),
        "tool_calls_structured": [
            {**call, "arguments": to_json(call["arguments"])} for call in record["tool_calls_structured"]
        ],
        "target": target,
    }


def import_jsonl(file: Path, folder: Path, fill: Callable[[dict, str], dict] = lambda record, _: record) -> int:
    """Read samples from JSON lines into a dataset folder and return their number.

    Args:
        file (`Path`): The file.
        folder (`Path`): The folder.
        fill (`Callable[[dict, str], dict]`, *optional*): Completes a record before it is checked; the text says where
            it stands.

    Raises:
        ValueError: If a line is not valid against [`json_schema`], with file and line; or if there is none.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    validator, lines, rows = Draft202012Validator(json_schema()), read_json_lines(file), 0
    with set_writer(folder, SAMPLE_FEATURES) as write:
        while batch := list(islice(lines, STREAM_ROWS)):
            records = [(where, fill(record, where)) for where, record in batch]
            for where, record in records:
                if error := best_match(validator.iter_errors(record)):
                    raise ValueError(f"{where}: {error.json_path}: {error.message[:200]}. Correct it.")
            samples = [import_row(record) for _, record in records]
            write(pyarrow.Table.from_pylist(samples, schema=SAMPLE_FEATURES.arrow_schema))
            rows += len(samples)
        if rows == 0:
            raise ValueError(f"{file}: no record in it. Name a JSONL file with one sample a line.")
    return rows


def export_rows(read: Callable[[], Iterable[dict]], layout: str, drops: Counter[str]) -> Iterator[dict]:
    """Rows in the layout of another trainer.

    Args:
        read (`Callable`): Returns the samples; called a second time for `dpo`.
        layout (`str`): `sft`, `dpo` or `openai`.
        drops (`Counter[str]`): Counts the samples that give no row, by reason.
    """
    convert = _CONVERT[layout]
    chosen = _chosen_turns(read()) if layout == "dpo" else {}
    for sample in read():
        try:
            yield convert(sample, chosen)
        except _NotExported as reason:
            drops[str(reason)] += 1


def is_exact(row: dict) -> bool:
    """Whether `datasets` reads all numbers of a row as they were written, see `publish/folder.py`."""
    feature = Json()
    try:
        return to_json(feature.decode_example(to_json(row))) == to_json(row)
    except ValueError:  # an integer that is too large for the decoder
        return False


class _NotExported(ValueError):
    """Raised for a sample that gives no row; the message is the reason."""


def _sft_row(sample: dict, _: dict) -> dict:
    if sample["set"] == CIRCUIT_BREAKER:
        raise _NotExported("circuit_breaker")
    return {
        **_trl_columns(sample),
        "prompt": published_messages(sample)[0],
        "completion": [completion_turn(sample)],
    }


def _dpo_row(sample: dict, chosen: dict[tuple, dict]) -> dict:
    """The row of a sample of Ds: its completion is rejected, and that of its sibling in Dr is chosen."""
    if sample["set"] != CIRCUIT_BREAKER:
        raise _NotExported("retain")  # it may be the chosen turn of another row
    if sample["provenance"]["redacted"]:
        raise _NotExported("redacted")  # its prompt is not the one that was completed
    turn = chosen.get(_prompt_key(sample))
    if turn is None:
        raise _NotExported("no_sibling_with_this_prompt")
    columns = {**_trl_columns(sample), "pair": sample["pair"], "prompt": published_messages(sample)[0]}
    return {**columns, "chosen": [turn], "rejected": [completion_turn(sample)]}


def _openai_row(sample: dict, _: dict) -> dict:
    if sample["set"] == CIRCUIT_BREAKER:
        raise _NotExported("circuit_breaker")
    # One call a turn, as the rows ask the API for.
    turns = [*template_messages(sample["messages"], get_format(CANONICAL)), completion_turn(sample)]
    # The API trains on every assistant turn unless its weight is 0: here only on the completion.
    messages = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in _numbered(turns)]
    messages[-1]["weight"] = 1
    tools = json.loads(sample["tools"] or "[]")
    return {"messages": messages} | ({"tools": tools, "parallel_tool_calls": False} if tools else {})


_CONVERT: dict[str, Callable[[dict, dict[tuple, dict]], dict]] = {
    "sft": _sft_row,
    "dpo": _dpo_row,
    "openai": _openai_row,
}


def chat_template_kwargs(row: dict) -> dict:
    """Further arguments of the chat template that render the prompt of a row; TRL takes them from a column."""
    provenance = row["provenance"]
    settings = provenance["template_settings"]
    # Templates print today's date by default: the prompt would not be the one that was completed.
    return {"date_string": provenance["date_string"] or DATE_STRING} | (json.loads(settings) if settings else {})


def _trl_columns(sample: dict) -> dict:
    return {"id": sample["id"], "tools": sample["tools"], "chat_template_kwargs": chat_template_kwargs(sample)}


def completion_turn(sample: dict) -> dict:
    """The completion of a sample as a message."""
    parsed = get_format(sample["provenance"]["prompt_format"]).parse(sample["assistant_raw"], sample["tools"])
    if parsed.is_call:
        [call] = parsed.calls
        function = {"name": call.name, "arguments": call.arguments}
        text = {"content": parsed.text} if parsed.text else {}
        calls = [{"id": "call", "type": "function", "function": function}]
        return {"role": "assistant", "tool_calls": calls, **text, **_thought(parsed)}
    if parsed.diagnosis != Diagnosis.TEXT:
        raise _NotExported(f"malformed_completion ({parsed.diagnosis})")
    return {"role": "assistant", "content": parsed.text, **_thought(parsed)}


def _thought(parsed: Parsed) -> dict:
    """The thinking of a turn, under the name that templates and trainers have for it."""
    return {"reasoning_content": parsed.thinking} if parsed.thinking else {}


def _prompt_key(sample: dict) -> tuple:
    return sample["pair"], to_json(sample["messages"]), sample["tools"]


def _chosen_turns(samples: Iterable[dict]) -> dict[tuple, dict]:
    """For each pair and prompt the completion of its first sample in Dr."""
    chosen: dict[tuple, dict] = {}
    for sample in samples:
        if sample["pair"] is not None and sample["set"] != CIRCUIT_BREAKER and _prompt_key(sample) not in chosen:
            with suppress(_NotExported):
                chosen[_prompt_key(sample)] = completion_turn(sample)
    return chosen


def _numbered(turns: list[dict]) -> Iterator[dict]:
    """Turns with arguments as text, and with ids of our own, since recorded ones may be empty or repeated."""
    waiting: str | None = None
    for number, turn in enumerate(turns):
        if (turn["role"] == "tool") != (waiting is not None):
            raise _NotExported("unanswered_call" if waiting else "result_without_call")
        if turn["role"] == "tool":
            yield {"role": "tool", "tool_call_id": waiting, "content": turn["content"]}
            waiting = None
        elif "tool_calls" in turn:
            [call] = turn["tool_calls"]
            waiting = f"call_{number}"
            function = {**call["function"], "arguments": to_json(call["function"]["arguments"])}
            yield {**turn, "tool_calls": [{**call, "id": waiting, "function": function}]}
        else:
            yield turn
