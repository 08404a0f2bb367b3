"""Samples as JSON lines with decoded calls and tools, and back without loss."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow

from builders.json_records import read_json_lines
from builders.json_schema import DRAFT, object_schema, schema_of
from builders.trace import to_json

from .files import ROWS_FILE, STREAM_ROWS, in_one_move, parquet_writer
from .sample import PRIORITY_WEIGHTS, SAMPLE_FEATURES


def json_schema() -> dict:
    """JSON Schema of one exported sample, in which calls carry `arguments` as objects."""
    properties = {name: schema_of(feature) for name, feature in SAMPLE_FEATURES.items()}
    properties["tools"] = {"type": ["array", "null"], "items": {"type": "object"}}
    properties["tool_calls_structured"]["items"]["properties"]["arguments"] = {"type": "object"}
    function = properties["messages"]["items"]["properties"]["tool_calls"]["items"]["properties"]["function"]
    function["properties"]["arguments"] = {"type": "object"}
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
    """A sample with its JSON text decoded: the record shape of the JSONL export."""
    calls = [{**call, "arguments": json.loads(call["arguments"])} for call in sample["tool_calls_structured"]]
    target = dict(sample["target"])
    for key in ("expected_calls", "goal_calls"):
        target[key] = json.loads(target[key]) if target[key] else None
    return {
        **sample,
        "messages": [{**message, "tool_calls": _decoded(message["tool_calls"])} for message in sample["messages"]],
        "tools": json.loads(sample["tools"]) if sample["tools"] else None,
        "tool_calls_structured": calls,
        "target": target,
    }


def _decoded(tool_calls: list[dict] | None) -> list[dict]:
    return [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in tool_calls or []
    ]


def export_jsonl(samples: Iterable[dict], path: Path) -> None:
    """Write samples as JSON lines, each valid against [`json_schema`]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_move(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(to_json(export_row(sample)) + "\n" for sample in samples)


def import_row(record: dict) -> dict:
    """The sample of a record, the inverse of [`export_row`]."""
    target = dict(record["target"])
    for key in ("expected_calls", "goal_calls"):
        target[key] = None if target[key] is None else to_json(target[key])
    return {
        **record,
        "messages": [{**turn, "tool_calls": _encoded(turn["tool_calls"])} for turn in record["messages"]],
        "tools": None if record["tools"] is None else to_json(record["tools"]),
        "tool_calls_structured": [
            {**call, "arguments": to_json(call["arguments"])} for call in record["tool_calls_structured"]
        ],
        "target": target,
    }


def _encoded(tool_calls: list[dict]) -> list[dict]:
    return [
        {**call, "function": {**call["function"], "arguments": to_json(call["function"]["arguments"])}}
        for call in tool_calls
    ]


def import_jsonl(file: Path, folder: Path) -> int:
    """Read samples from JSON lines into a dataset folder and return their number.

    Raises:
        ValueError: If a line is not valid against [`json_schema`]; it names file and line.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    validator, lines, rows = Draft202012Validator(json_schema()), read_json_lines(file), 0
    with parquet_writer(folder / ROWS_FILE, SAMPLE_FEATURES) as write:
        while batch := list(islice(lines, STREAM_ROWS)):
            for where, record in batch:
                if error := best_match(validator.iter_errors(record)):
                    raise ValueError(f"{where}: {error.json_path}: {error.message[:200]}. Correct it.")
            samples = [import_row(record) for _, record in batch]
            write(pyarrow.Table.from_pylist(samples, schema=SAMPLE_FEATURES.arrow_schema))
            rows += len(samples)
    return rows
