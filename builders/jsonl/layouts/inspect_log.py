"""Samples of an Inspect log, a `.json` or `.eval` file; [`samples_of`] gives them one by one.

    {"eval": {"task": "pool", "model": "..."}, "id": 1, "epoch": 1,
     "messages": [{"role": "user", "content": "What does the notice say?", "source": "input"},
                  {"role": "assistant", "content": "", "tool_calls": [
                       {"id": "c1", "function": "read_file", "arguments": {"path": "notice.txt"}}]},
                  {"role": "tool", "tool_call_id": "c1", "function": "read_file", "content": "",
                   "error": {"type": "file_not_found", "message": "..."}}],
     "events": [{"event": "model", "tools": [{"name": "read_file", "parameters": {...}}], ...}, ...],
     "scores": {"match": {"value": "C"}}, "metadata": {...}, "attachments": {...}}

A score says whether the task was solved, not what an attack did: a sample that was not solved is a `benign_failure`,
and the verdict of the others is stated in the sample's metadata, or for all of them. A sample that was not scored has
`NaN`.
"""

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...json_records import parse_json
from .common import Unusable, call_of, dicts_in, labels_in, line_of, object_in, text_of, without_nulls


# References to texts and images that a log stores once: `tc://` is that of older versions.
_ATTACHED = ("attachment://", "tc://")
_UNSOLVED = ("I", "N", "P")


def matches(record: dict) -> bool:
    """Whether a record is of this layout."""
    return "epoch" in record and "input" in record


def is_log(document: Any) -> bool:
    """Whether a JSON document is a log of Inspect."""
    return isinstance(document, dict) and isinstance(document.get("eval"), dict) and "version" in document


def samples_of(document: dict, name: str) -> Iterator[tuple[str, dict | ValueError]]:
    """Yield `("log.json:samples[0]", sample)` for every sample of a log that is one JSON document.

    Of a broken sample, the error is yielded: the others can be read.

    Raises:
        ValueError: If the log has no samples.
    """
    samples = document.get("samples")
    if not isinstance(samples, list) or not samples:
        raise ValueError(
            f"{name}: samples is missing, so this log has no messages. Log them: `inspect eval --log-samples`."
        )
    for index, sample in enumerate(samples):
        where = f"{name}:samples[{index}]"
        yield where, _record(sample, document["eval"], where)


def _record(sample: Any, evaluation: dict, where: str) -> dict | ValueError:
    """A sample with the task and the model of its log, or the error if it is no object."""
    if not isinstance(sample, dict):
        return ValueError(f"{where}: not a JSON object. Correct it.")
    return {**sample, "eval": {name: evaluation.get(name) for name in ("task", "model")}}


def read_archive(path: Path) -> Iterator[tuple[str, dict | ValueError]]:
    """Yield the samples of an `.eval` file, which is a ZIP archive with one JSON document per sample.

    Of a broken sample, the error is yielded, as by [`samples_of`].

    Raises:
        ValueError: If the file cannot be read, or has no samples.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.startswith("samples/"))
            header = parse_json(archive.read("header.json").decode(), nan_is_null=True)
            if not names:
                raise ValueError("it has no samples")
            for name in names:
                where = f"{path.name}:{name}"
                yield where, _archived(archive, name, header["eval"], where)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError, TypeError, ValueError) as error:
        # Python reads no archive with a compression that it does not know.
        remedy = "Convert it with `inspect log convert --to json`."
        raise ValueError(f"{path.name}: not a readable log of Inspect ({error}). {remedy}") from None


def _archived(archive: zipfile.ZipFile, name: str, evaluation: dict, where: str) -> dict | ValueError:
    """A sample of an archive, or the error if its bytes are damaged or no JSON.

    An unknown compression is no fault of one sample: it is raised.
    """
    try:
        sample = parse_json(archive.read(name).decode(), keep_surrogates=True, nan_is_null=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        return ValueError(f"{where}: not a readable sample of Inspect ({error}). Repair or delete it.")
    return _record(sample, evaluation, where)


def read(record: dict, left_out: Counter[str]) -> dict:
    """The line of a trace.

    Raises:
        Unusable: If the sample ended with an error, or a call could not be parsed.
    """
    if not isinstance(record.get("messages"), list):
        raise ValueError("messages is missing: an Inspect log needs its samples with their messages. Log them.")
    if record.get("error") is not None:
        raise Unusable("aborted")
    transcript = object_in(record, "transcript")
    attached = {
        **object_in(transcript, "content"),
        **object_in(transcript, "attachments"),
        **object_in(record, "attachments"),
    }
    messages = [
        (index, _message(_filled(raw, attached), f"messages[{index}]", left_out))
        for index, raw in enumerate(record["messages"])
    ]
    evaluation, metadata = object_in(record, "eval"), object_in(record, "metadata")
    scores = {
        name: score.get("value") for name, score in object_in(record, "scores").items() if isinstance(score, dict)
    }
    generator = object_in(record, "output").get("model") or evaluation.get("model")
    # A folder may hold many logs of one task, so none of these names a trace.
    sample = {"inspect_task": evaluation.get("task"), "sample": record.get("id"), "epoch": record.get("epoch")}
    kept = {"generator": generator, **sample, "scores": scores or None, **metadata}
    labels = labels_in(metadata) or ({"verdict": "benign_failure"} if any(map(_is_unsolved, scores.values())) else {})
    return {**line_of({}, messages, _tools(record, transcript, attached), (), kept), **labels}


def _is_unsolved(value: Any) -> bool:
    # False is 0. Scores between 0 and 1 have no threshold that is known here.
    return value in _UNSOLVED if isinstance(value, str) else isinstance(value, int | float) and value == 0


def _message(raw: Any, where: str, left_out: Counter[str]) -> Any:
    if not isinstance(raw, dict):
        return raw
    content = text_of(raw.get("content"), where, left_out)
    if raw.get("role") == "tool":
        # A model reads the error of a call in place of its result.
        error = object_in(raw, "error").get("message")
        fields = {"tool_call_id": raw.get("tool_call_id"), "name": raw.get("function")}
        return without_nulls({"role": "tool", "content": error or content, **fields})
    calls = list(dicts_in(raw.get("tool_calls")))
    if any(call.get("parse_error") for call in calls):
        raise Unusable("invalid_call")
    calls = [call_of({name: call.get(name) for name in ("id", "function", "arguments")}) for call in calls]
    return without_nulls({"role": raw.get("role"), "content": content, "tool_calls": calls or None})


def _tools(record: dict, transcript: dict, attached: dict) -> list | None:
    """The tools that the model was offered, by the events in which it was called."""
    offered = {}
    for event in dicts_in(record.get("events") or transcript.get("events")):
        for tool in dicts_in(event.get("tools")) if event.get("event") == "model" else ():
            tool = _filled(tool, attached)
            offered[json.dumps(tool.get("name"))] = {
                name: tool.get(name) for name in ("name", "description", "parameters")
            }
    return list(offered.values()) or None


def _filled(value: Any, attached: dict) -> Any:
    """A value with the texts that the log stores apart."""
    if isinstance(value, dict):
        return {key: _filled(each, attached) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, attached) for each in value]
    if isinstance(value, str) and value.startswith(_ATTACHED):
        return attached.get(value.partition("://")[2], value)
    return value
