"""Report on one sample: the sets that contain it, its provenance, the rules it passes, its outcome, its raw record."""

import json
from pathlib import Path

import pyarrow.compute

from ..checks.rules import CALL_RULES, RULES, check, makes_call
from ..checks.thresholds import MergedThresholds
from ..files import dataset_folders, stream_rows, stream_tables
from ..formats import get_format
from ..merge.dropped_rows import DROPPED_ROWS_FILE, drop_reasons
from ..merge.gates import HeldOut
from ..merge.prompt_index import request_texts
from ..outcomes import expects_words, outcome_of, parallel_calls
from .marks import Marks


# Folders of a data folder that can contain a sample, in the order of the pipeline.
PLACES = ("harmful/*", "retain/*", "quarantine/*", "stage2/*")
# Characters shown of each turn of the raw record.
RAW_TEXT = 2000


def explain_row(id: str, data: Path) -> tuple[dict, dict[str, list[str]]]:
    """Find a sample and report on it.

    Args:
        id (`str`): The sample's id.
        data (`Path`): The data folder.

    Returns:
        `tuple[dict, dict[str, list[str]]]`: The sample, and the lines of the report by heading.

    Raises:
        ValueError: If no set contains the sample.
    """
    copies = {folder: rows[0] for folder in _folders(data, PLACES) if (rows := _rows_with(folder, id))}
    if not copies:
        searched = ", ".join(str(data / place) for place in PLACES)
        raise ValueError(f"No sample has the id {id!r}: looked in {searched}.")
    row = next(iter(copies.values()))
    return row, {
        id: [f"found in {folder.relative_to(data)}" for folder in copies]
        + _drop_lines(row, data)
        + [f"{row['set']}, {row['split']}, {row['priority_class']}; pair {row['pair']}; group {row['group']!r}"],
        "outcome": _outcome(row),
        "rules": _rules(row, copies),
        "provenance": [f"{name}: {value}" for name, value in row["provenance"].items() if value is not None],
        "raw record": _raw_record(row, data),
        "completion": [row["assistant_raw"]],
    }


def _drop_lines(row: dict, data: Path) -> list[str]:
    """The reasons why merge dropped the sample, if it did, and its audit mark."""
    file, mark = data / "reports" / DROPPED_ROWS_FILE, Marks(data / "audit" / "marks.parquet").get(row["id"])
    reasons = drop_reasons(row["id"], file) if file.is_file() else []
    notes = [f"marked {mark['verdict']}{': ' if mark['note'] else ''}{mark['note']}"] if mark else []
    leaks = _leaked_request(row, data) if any("of_eval" in reason for reason in reasons) else []
    return [f"dropped by merge: {reason}" for reason in reasons] + leaks + notes


def _leaked_request(row: dict, data: Path) -> list[str]:
    """The evaluation request that a sample nearly repeats; none if only a sibling repeats one."""
    held_out = HeldOut()
    held_out.add_rows(stream_rows(_folders(data, ("stage2/eval", "prompts/*"))))
    index = held_out.prompt_index(MergedThresholds().max_similarity)
    request = index.find(request_texts(row))
    return [f"evaluation asks {request!r}"] if request else []


def _folders(data: Path, places: tuple[str, ...]) -> list[Path]:
    return [folder for place in places for folder in dataset_folders(data, place)]


def _rows_with(folder: Path, id: str) -> list[dict]:
    """The rows with this id in the first table that has any."""
    for table in stream_tables(folder):
        rows = table.filter(pyarrow.compute.equal(table["id"], id))
        if len(rows):
            return rows.to_pylist()
    return []


def _outcome(row: dict) -> list[str]:
    target, tool_format = row["target"], get_format(row["provenance"]["prompt_format"])
    outcome = outcome_of(row["assistant_raw"], target, tool_format, row["tools"])
    called = ", ".join(call["name"] for call in row["tool_calls_structured"]) or "nothing"
    calls = "an answer in words" if expects_words(target) else target["expected_calls"] or "no call"
    expected = target["expected_tool"] or calls
    if together := parallel_calls(target):
        expected = f"in one turn {', '.join(call['name'] for call in together)}"
    if target["expected_tool"] and expects_words(target):
        expected = f"{calls}, or {target['expected_tool']} again"
    attacker = target["simulated_tool"] or target["goal_calls"] or "nothing"
    return [f"{outcome}: calls {called}; expected {expected}; the attacker wants {attacker}"]


def _rules(row: dict, copies: dict[Path, dict]) -> list[str]:
    violations = check(row)
    lines = []
    for rule in RULES:
        reasons = [violation.message for violation in violations if violation.rule == rule]
        exempt = rule in CALL_RULES and not makes_call(row)
        lines.append(f"{rule:<10} {'; '.join(reasons) or ('does not apply: no call' if exempt else 'met')}")
    stored = [reason for copy in copies.values() for reason in copy.get("reasons") or ()]
    return lines + [f"in quarantine for {reason}" for reason in stored]


def _raw_record(row: dict, data: Path) -> list[str]:
    """The trace that the sample was made from, without the columns that the sample repeats."""
    record = row["provenance"]["record_id"]
    for folder in _folders(data, (f"traces/{row['provenance']['source_dataset']}/*",)):
        for trace in _rows_with(folder, record):
            metadata = {name: value for name, value in trace.items() if name not in ("messages", "tools")}
            turns = [_turn(number, message) for number, message in enumerate(trace["messages"])]
            return [f"{record} in {folder.relative_to(data)}", json.dumps(metadata, ensure_ascii=False), *turns]
    return [f"{record}: not among the traces in {data / 'traces'}"]


def _turn(number: int, message: dict) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message["tool_calls"]]
    text = " ".join([*filter(None, [message["content"]]), *calls])
    more = f" [... {len(text) - RAW_TEXT} characters more]" if len(text) > RAW_TEXT else ""
    return f"{number} {message['role']}: {text[:RAW_TEXT]}{more}"
