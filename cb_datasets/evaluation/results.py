"""`results.json`: all that an evaluation found, in the shape of `results.schema.json`."""

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import read_json, write_json
from .compare import BASE, CompletionsByModel
from .scored_completions import ScoredCompletion


if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

SCHEMA_FILE = Path(__file__).with_name("results.schema.json")

# Keys that stand beside the models' in the results of further tests, `adaptive.json` and `agentdojo.json`.
ADAPTIVE_KEYS = (
    *("settings", "steps", "transfer", "outcomes", "errors"),
    *("prompts", "task", "available", "left_out"),
)
LIVE_KEYS = ("settings", "verdicts", "failures", "suites", "attacks")

# Columns of a case that its record in the results has.
_COLUMNS = ("id", "pair", "group", "task", "source", "family", "category", "subtype", "depth")


def results(settings: dict, found: dict, prompts: Iterable[dict], answers: CompletionsByModel) -> dict:
    """The results of an evaluation.

    Args:
        settings (`dict`): How it was made: `model`, `revision`, `adapters` (revision by name), ...
        found (`dict`): The comparison, `coherence` and `gates`.
        prompts (`Iterable[dict]`): The rows that were asked, of `PROMPT_FEATURES`.
        answers (`dict[str, list[ScoredCompletion]]`): Greedy answers by model, in the order of the prompts.
    """
    by_prompt = zip(*answers.values(), strict=True)
    records = [
        _record(prompt, dict(zip(answers, given, strict=True)))
        for prompt, given in zip(prompts, by_prompt, strict=True)
    ]
    return {"schema_version": 1, "settings": settings, **found, "prompts": records}


def _record(prompt: dict, answers: dict[str, ScoredCompletion]) -> dict:
    [case] = {answer.case for answer in answers.values()}
    return {
        **{name: getattr(case, name) for name in _COLUMNS},
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


def is_evaluated(adapters: Mapping[str, str], name: str, revision: str) -> bool:
    """Whether an adapter of this name and these weights was evaluated.

    Args:
        adapters (`Mapping[str, str]`): Revisions of the evaluated adapters by name, `<base>+<adapter>`; those of a
            served model may be anything else, and are taken on trust.
        name, revision (`str`): The adapter's name, and the hash of its weights.
    """
    _, joined, evaluated = adapters.get(name, "").rpartition("+")
    return name in adapters and (not joined or evaluated == revision)


def reserved_names() -> list[str]:
    """Keys of the results, and of those of further tests, that are taken, and so no names for further models."""
    return list(dict.fromkeys([*_validator().schema["properties"], *ADAPTIVE_KEYS, *LIVE_KEYS]))


def named_adapters(adapter: str, also: Iterable[str]) -> dict[str, str]:
    """Adapters by name: `breaker`, and further ones.

    Args:
        adapter (`str`): Folder of the breaker's.
        also (`Iterable[str]`): The further ones, as `NAME=PATH`.

    Raises:
        ValueError: If one is not written so, or has the name of something else.
    """
    taken = reserved_names()
    adapters = {"breaker": adapter}
    for text in also:
        name, _, path = text.partition("=")
        if not name or not path or name in taken or name in adapters:
            raise ValueError(f"--also {text!r}: not NAME=PATH with a name of its own (taken: {', '.join(taken)}).")
        adapters[name] = path
    return adapters


def write_results(found: dict, path: Path) -> None:
    """Write results in one move.

    Raises:
        ValueError: If they are not of the schema.
    """
    _check(found, path)
    write_json(path, found)


def read_results(path: Path) -> dict:
    """Read results that [`write_results`] wrote.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are not of the schema.
    """
    found = read_json(path)
    _check(found, path)
    return found


def _check(found: dict, path: Path) -> None:
    from jsonschema.exceptions import best_match

    if error := best_match(_validator().iter_errors(found)):
        raise ValueError(f"{path}: {error.json_path}: {error.message[:200]}. Run `make evaluate` with this version.")


@lru_cache(maxsize=1)
def _validator() -> "Draft202012Validator":
    from jsonschema import Draft202012Validator

    return Draft202012Validator(read_json(SCHEMA_FILE))


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
