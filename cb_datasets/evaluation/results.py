"""`results.json`: all that an evaluation found, in the shape of `results.schema.json`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import read_json
from .answers import Answer
from .compare import BASE, Answers


SCHEMA_VERSION = 1

# Keys of the results that hold no model's figures, and names of models that are given: further ones have other names.
RESERVED = (
    *("schema_version", "settings", "sampled", "changed", "slices", "outcomes", "errors", "coherence", "gates"),
    *("prompts", BASE, "breaker"),
)


def results(settings: dict, comparison: dict, prompts: Iterable[dict], answers: Answers) -> dict:
    """The results of an evaluation.

    Args:
        settings (`dict`): How it was made: `model`, `revision`, `adapters` (revision by name), ...
        comparison (`dict`): What [`~compare.compare`] found.
        prompts (`Iterable[dict]`): The rows that were asked, of `PROMPT_FEATURES`.
        answers (`dict[str, list[Answer]]`): Greedy answers by model, in the order of the prompts.
    """
    by_prompt = zip(*answers.values(), strict=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": settings,
        **comparison,
        "gates": [],
        "prompts": [
            _record(prompt, dict(zip(answers, given, strict=True)))
            for prompt, given in zip(prompts, by_prompt, strict=True)
        ],
    }


def _record(prompt: dict, answers: dict[str, Answer]) -> dict[str, Any]:
    [case] = {answer.case for answer in answers.values()}
    return {
        "id": case.id,
        **{name: getattr(case, name) for name in ("pair", "group", "task", "source", "family", "category")},
        **{name: getattr(case, name) for name in ("subtype", "depth")},
        **{name: prompt[name] for name in ("messages", "injection", "target")},
        "answers": {
            name: {
                "text": answer.text,
                "outcome": answer.outcome,
                "gibberish": answer.gibberish,
                "arguments_match": answer.arguments_match,
            }
            for name, answer in answers.items()
        },
    }


def model_names(found: dict) -> list[str]:
    """The models of an evaluation, the base first."""
    return [BASE, *found["settings"]["adapters"]]


def named_adapters(adapter: str, also: Iterable[str]) -> dict[str, str]:
    """Adapters by name: `breaker`, and further ones.

    Args:
        adapter (`str`): Folder of the breaker's.
        also (`Iterable[str]`): The further ones, as `NAME=PATH`.

    Raises:
        ValueError: If one is not written so, or has the name of something else.
    """
    adapters = {"breaker": adapter}
    for text in also:
        name, _, path = text.partition("=")
        if not name or not path or name in RESERVED or name in adapters:
            raise ValueError(f"--also {text!r}: not NAME=PATH with a name of its own (taken: {', '.join(RESERVED)}).")
        adapters[name] = path
    return adapters


def read_results(path: Path) -> dict:
    """The results of an evaluation.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or results of another version.
    """
    found = read_json(path)
    if found.get("schema_version") != SCHEMA_VERSION or "prompts" not in found:
        raise ValueError(f"{path}: no results of an evaluation by this version; run `cb-datasets evaluate` again.")
    return found


def run_names(paths: list[Path]) -> list[str]:
    """Names for evaluations, from what tells the paths of their results apart: `a/run-1/results.json` is `run-1`."""
    folders = [path.resolve().parent for path in paths]
    if len(set(folders)) < len(folders):
        raise ValueError(f"The same results twice: {', '.join(map(str, paths))}.")
    common = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0].parent
    parts = [folder.relative_to(common).parts for folder in folders]
    while len({part[-1:] for part in parts}) == 1 and len(parts) > 1:  # all are called `report`
        parts = [part[:-1] for part in parts]
    return ["/".join(part) or "." for part in parts]
