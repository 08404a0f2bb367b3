"""Message logs that others write, read as lines of a trace.

    {"conversations": [{"from": "human", "value": "Hello!"}, ...]}
        -> {"id": "chats.jsonl:1", "verdict": "benign_success", "messages": [{"role": "user", ...}, ...]}

A layout is a module with two functions: `matches(record)` recognises a record by its keys, `read(record, left_out)`
gives the line and counts what a trace has no place for, such as reasoning. The line says so in `metadata.left_out`.

A log says nothing about attacks, so its verdict is never guessed: the line states it, or the user does for all lines.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ...json_records import numbered_lines, read_json
from . import anthropic, inspect_log, langsmith, openai, sharegpt, xlam
from .common import Unusable, is_trace, with_metadata


__all__ = ["LAYOUTS", "LOG_VERDICTS", "Unusable", "read_line", "read_records"]


class Layout(NamedTuple):
    """How a record of a layout is recognised, and read as the line of a trace."""

    matches: Callable[[dict], bool]
    read: Callable[[dict, Counter[str]], dict]


# `auto` takes the first that matches. The last is the most general: the lines of a trace are of it too.
LAYOUTS = {
    "inspect": Layout(inspect_log.matches, inspect_log.read),
    "langsmith": Layout(langsmith.matches, langsmith.read),
    "sharegpt": Layout(sharegpt.matches, sharegpt.read),
    "xlam": Layout(xlam.matches, xlam.read),
    "anthropic": Layout(anthropic.matches, anthropic.read),
    "openai": Layout(openai.matches, openai.read),
}

# Keys of an object that is nothing but a list of records.
_WRAPPERS = ("runs", "data")

# The verdicts that hold for a whole file: all others need fields that no log has.
LOG_VERDICTS = ("benign_success", "benign_failure")


def read_records(path: Path) -> Iterator[tuple[str, dict | bytes | ValueError]]:
    """Yield `("file.jsonl:12", record)` for the records of a file: JSON lines, a JSON list, or a log of Inspect.

    An error in a record does not end the file: a JSON line is not parsed yet, and in place of another broken record
    stands its error.

    Raises:
        ValueError: If the file cannot be read, or holds no records.
    """
    if path.suffix == ".eval":
        yield from inspect_log.read_archive(path)
    elif path.suffix != ".json":
        yield from numbered_lines(path)
    elif inspect_log.is_log(document := read_json(path, keep_surrogates=True, nan_is_null=True)):
        yield from inspect_log.samples_of(document, path.name)
    else:
        document = read_json(path, keep_surrogates=True)  # only Inspect writes NaN
        # LangSmith's API wraps the list.
        wrapped = (
            next((document[name] for name in _WRAPPERS if name in document), None)
            if isinstance(document, dict)
            else None
        )
        records = wrapped if isinstance(wrapped, list) else document
        for index, record in enumerate(records if isinstance(records, list) else [records]):
            where = f"{path.name}[{index}]" if isinstance(records, list) else path.name
            if isinstance(record, dict):
                yield where, record
            else:
                fault = f"{where}: not a JSON object. Give a list of objects, or one object per line."
                yield where, ValueError(fault)


def read_line(record: dict, where: str, layout: str, verdict: str | None, left_out: Counter[str]) -> dict:
    """The line of a trace that a record becomes.

    Args:
        record (`dict`): The record.
        where (`str`): File and line: the id of a log without one.
        layout (`str`): A key of `LAYOUTS`, or `auto`.
        verdict (`str`, *optional*): Verdict of a log that states none.
        left_out (`Counter[str]`): Counts what is left out.

    Raises:
        ValueError: If the record is of no layout, or something is missing; without file and line.
        Unusable: If the record cannot become a trace.
    """
    if "pipeline_name" in record and "suite_name" in record:
        raise ValueError(
            "this is a run of AgentDojo. Read it with `ingest agentdojo`, which judges what the attack did."
        )
    if "assistant_raw" in record and not is_trace(record):
        raise ValueError("this is a sample, not a trace. Read it with `cb-datasets import`.")
    if layout == "auto":
        layout = next((name for name, known in LAYOUTS.items() if known.matches(record)), "openai")
    here: Counter[str] = Counter()
    line = LAYOUTS[layout].read(record, here)
    if +here:
        left_out.update(dict.fromkeys(+here, 1))
        line = with_metadata(line, {"left_out": dict(+here)})
    if is_trace(line):
        # A log in the metadata of which a verdict is stated has no id of its own either.
        return line if is_trace(record) else {"id": where, **line}
    if verdict is None:
        raise ValueError(
            "verdict is missing, and a log does not say whether anything was attacked. Add it, or state that of all "
            "lines without one: --verdict benign_success if nothing was attacked and all were solved."
        )
    return {"id": where, "verdict": verdict, **line}
