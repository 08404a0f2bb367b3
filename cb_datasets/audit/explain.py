"""All that is known of one sample: where it stands and came from, the rules it met, its outcome, its record."""

import json
from pathlib import Path

import pyarrow.compute

from ..checks.rules import CALL_RULES, RULES, check, makes_call
from ..checks.thresholds import MergedThresholds
from ..files import ROWS_FILE, stream_rows, stream_tables
from ..formats import get_format
from ..merge.dropped_rows import DROPPED_ROWS_FILE, drop_reasons
from ..merge.gates import HeldOut
from ..merge.near_duplicates import request_text
from ..outcomes import outcome_of
from .marks import Marks


# Where in a data folder a sample can stand, in the order of the pipeline.
PLACES = ("harmful/*", "retain/*", "quarantine/*", "stage2/*")
RAW_TEXT = 2000


def explain_row(id: str, data: Path) -> tuple[dict, dict[str, list[str]]]:
    """A sample, and what there is to say about it, by heading.

    Args:
        id (`str`): The sample's id.
        data (`Path`): The data folder.

    Raises:
        ValueError: If no set holds the sample.
    """
    found = {folder: rows[0] for folder in _folders(data, PLACES) if (rows := _rows_with(folder, id))}
    if not found:
        looked = ", ".join(str(data / place) for place in PLACES)
        raise ValueError(f"No sample has the id {id!r}: looked in {looked}.")
    row = next(iter(found.values()))
    return row, {
        id: [f"stands in {folder.relative_to(data)}" for folder in found]
        + _left_out(row, data)
        + [f"{row['set']}, {row['split']}, {row['priority_class']}; pair {row['pair']}; group {row['group']!r}"],
        "outcome": _outcome(row),
        "rules": _rules(row, found),
        "provenance": [f"{name}: {value}" for name, value in row["provenance"].items() if value is not None],
        "raw record": _raw_record(row, data),
        "completion": [row["assistant_raw"]],
    }


def _left_out(row: dict, data: Path) -> list[str]:
    """Why merge left the sample out, where it did; with the note of whoever marked it."""
    file, mark = data / "reports" / DROPPED_ROWS_FILE, Marks(data / "audit" / "marks.parquet").get(row["id"])
    reasons = drop_reasons(row["id"], file) if file.is_file() else []
    notes = [f"marked {mark['verdict']}{': ' if mark['note'] else ''}{mark['note']}"] if mark else []
    asked = _asked_by_evaluation(row, data) if any("of_eval" in reason for reason in reasons) else []
    return [f"was left out by merge: {reason}" for reason in reasons] + asked + notes


def _asked_by_evaluation(row: dict, data: Path) -> list[str]:
    """The request of the eval side that a sample asks nearly so; none if only a sibling does."""
    held_out = HeldOut()
    held_out.add(stream_rows(_folders(data, ("stage2/eval", "prompts/*"))))
    found = held_out.index(MergedThresholds().max_similarity).find(request_text(row))
    return [f"evaluation asks {found!r}"] if found else []


def _folders(data: Path, places: tuple[str, ...]) -> list[Path]:
    return [file.parent for place in places for file in sorted(data.glob(f"{place}/{ROWS_FILE}"))]


def _rows_with(folder: Path, id: str) -> list[dict]:
    """The rows with this id; their other columns are read only if there are any."""
    for table in stream_tables(folder):
        rows = table.filter(pyarrow.compute.equal(table["id"], id))
        if len(rows):
            return rows.to_pylist()
    return []


def _outcome(row: dict) -> list[str]:
    target, tool_format = row["target"], get_format(row["provenance"]["prompt_format"])
    outcome = outcome_of(row["assistant_raw"], target, tool_format)
    called = ", ".join(call["name"] for call in row["tool_calls_structured"]) or "nothing"
    wanted = target["expected_tool"] or target["expected_calls"] or "no call"
    attacker = target["simulated_tool"] or target["goal_calls"] or "nothing"
    return [f"{outcome}: calls {called}; expected {wanted}; the attacker wants {attacker}"]


def _rules(row: dict, found: dict[Path, dict]) -> list[str]:
    broken = check(row)
    lines = []
    for rule in RULES:
        reasons = [violation.message for violation in broken if violation.rule == rule]
        exempt = rule in CALL_RULES and not makes_call(row)
        lines.append(f"{rule:<10} {'; '.join(reasons) or ('does not apply: no call' if exempt else 'met')}")
    stored = [reason for copy in found.values() for reason in copy.get("reasons") or ()]
    return lines + [f"in quarantine for {reason}" for reason in stored]


def _raw_record(row: dict, data: Path) -> list[str]:
    """The trace that the sample was made of, without what the sample shows anyway."""
    record = row["provenance"]["record_id"]
    for folder in _folders(data, (f"traces/{row['provenance']['source_dataset']}/*",)):
        for trace in _rows_with(folder, record):
            told = {name: value for name, value in trace.items() if name not in ("messages", "tools")}
            turns = [_turn(number, message) for number, message in enumerate(trace["messages"])]
            return [f"{record} in {folder.relative_to(data)}", json.dumps(told, ensure_ascii=False), *turns]
    return [f"{record}: not among the traces in {data / 'traces'}"]


def _turn(number: int, message: dict) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message["tool_calls"]]
    said = " ".join([*filter(None, [message["content"]]), *calls])
    more = f" [... {len(said) - RAW_TEXT} characters more]" if len(said) > RAW_TEXT else ""
    return f"{number} {message['role']}: {said[:RAW_TEXT]}{more}"
