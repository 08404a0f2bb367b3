"""`results.json`: the results of an evaluation, validated by `results.schema.json`.

{"schema_version": 1, "settings": {"model": ..., "adapters": {"breaker": "4c1f+9a07"}, ...},
 "base": {"asr": {"value": 0.97, "n": 400, ...}, ...}, "breaker": {...}, "changed": {...}, ..., "prompts": [...]}
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json, write_json
from ..outcomes import Outcome
from .compare import BASE, CompletionsByModel
from .scored_completions import EvalPrompt, ScoredCompletion, SecondStep


if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

# Names of adapters. AgentDojo joins them with "+" to those of defences, and folders of runs have them.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)

SCHEMA_FILE = Path(__file__).with_name("results.schema.json")

# Keys of `adaptive.json`, `tampering.json` and `agentdojo.json` that are no model names.
ADAPTIVE_KEYS = ("settings", "rungs", "task", "available", "left_out")
TAMPERING_KEYS = ("settings", "curves", "task", "data")
LIVE_KEYS = (
    "settings",
    "changed",
    "slices",
    "verdicts",
    "failures",
    "failed_pairs",
    "spell_control_tokens",
    "turns",
    "seconds",
    "defenses",
    "suites",
    "attacks",
    "runs",
)


def make_results(settings: dict, summary: dict, prompts: Iterable[dict], completions: CompletionsByModel) -> dict:
    """Put the results of an evaluation together.

    Args:
        settings (`dict`): Settings of the evaluation: `model`, `revision`, `adapters` (revision by name), ...
        summary (`dict`): The comparison, `coherence` and `gates`.
        prompts (`Iterable[dict]`): The evaluated rows, of `PROMPT_FEATURES`.
        completions (`dict[str, list[ScoredCompletion]]`): Greedy completions by model, in the order of the prompts.
    """
    by_prompt = zip(*completions.values(), strict=True)
    records = [
        _record(row, dict(zip(completions, scored, strict=True)))
        for row, scored in zip(prompts, by_prompt, strict=True)
    ]
    return {"schema_version": 1, "settings": settings, **summary, "prompts": records}


def _record(row: dict, completions: dict[str, ScoredCompletion]) -> dict:
    # Fails if the models' completions are not all for the same prompt.
    [prompt] = {completion.prompt for completion in completions.values()}
    return {
        **asdict(prompt),
        **{name: row[name] for name in ("messages", "injection", "target")},
        "answers": {name: _answer(completion) for name, completion in completions.items()},
    }


def _answer(completion: ScoredCompletion) -> dict:
    second = completion.second_step
    return {
        "text": completion.text,
        "outcome": completion.outcome,
        "gibberish": completion.gibberish,
        "arguments_match": completion.arguments_match,
        "reported": completion.reported,
        **({"second_step": asdict(second)} if second else {}),
    }


def scored_completion(record: Mapping[str, Any], model: str) -> ScoredCompletion:
    """A model's completion of one of the `prompts` of results, as it was scored."""
    prompt = EvalPrompt(**{field.name: record[field.name] for field in fields(EvalPrompt)})
    answer = record["answers"][model]
    second = answer.get("second_step")
    return ScoredCompletion(
        prompt,
        answer["text"],
        Outcome(answer["outcome"]),
        answer["gibberish"],
        answer["arguments_match"],
        answer.get("reported"),
        SecondStep(second["text"], Outcome(second["outcome"])) if second else None,
    )


def model_names(results: dict) -> list[str]:
    """Names of the evaluated models, the base model first."""
    return [BASE, *results["settings"]["adapters"]]


def is_evaluated(adapters: Mapping[str, str], name: str, revision: str) -> bool:
    """Whether an adapter with this name and these weights was evaluated.

    Args:
        adapters (`Mapping[str, str]`): Revisions of the evaluated adapters by name, `<base>+<adapter>`. A revision
            without `+`, as a served model may have, cannot be compared and is taken to match.
        name, revision (`str`): The adapter's name, and the hash of its weights.
    """
    _, plus, evaluated = adapters.get(name, "").rpartition("+")
    return name in adapters and (not plus or evaluated == revision)


def reserved_names() -> list[str]:
    """Names that an extra adapter cannot have, because they are keys of the results of an evaluation or an attack."""
    return list(dict.fromkeys([*_validator().schema["properties"], *ADAPTIVE_KEYS, *LIVE_KEYS]))


def named_adapters(adapter: str | None, extra_adapters: Iterable[str]) -> dict[str, str]:
    """Folders of adapters by name: `breaker`, and any extra ones.

    Args:
        adapter (`str`, *optional*): Folder of the breaker's adapter; none for the base model alone.
        extra_adapters (`Iterable[str]`): Extra adapters, as `NAME=PATH`.

    Raises:
        ValueError: If an extra adapter is not of the form `NAME=PATH`, its name is in use, or it is none of letters,
            digits, `_`, `-` and `.`: names become those of folders and columns.
    """
    taken = reserved_names()
    adapters = {"breaker": adapter} if adapter is not None else {}
    for text in extra_adapters:
        name, _, path = text.partition("=")
        if not path or not _NAME.fullmatch(name) or name in taken or name in adapters:
            raise ValueError(
                f"--also {text!r}: must be NAME=PATH with a name of its own, of letters, digits, _, - and . (taken: "
                f"{', '.join(taken)})."
            )
        adapters[name] = path
    return adapters


def write_results(results: dict, path: Path) -> None:
    """Write results atomically.

    Raises:
        ValueError: If they do not match the schema.
    """
    _validate(results, path)
    write_json(path, results)


def read_results(path: Path) -> dict:
    """Read results that [`write_results`] wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its content does not match the schema.
    """
    results = read_json(path)
    _validate(results, path)
    return results


def _validate(results: dict, path: Path) -> None:
    from jsonschema.exceptions import best_match

    if error := best_match(_validator().iter_errors(results)):
        raise ValueError(f"{path}: {error.json_path}: {error.message[:200]}. Run `make evaluate` with this version.")


@lru_cache(maxsize=1)
def _validator() -> "Draft202012Validator":
    from jsonschema import Draft202012Validator

    return Draft202012Validator(read_json(SCHEMA_FILE))


def run_names(paths: list[Path]) -> list[str]:
    """Names of evaluations, from the folders in which the paths of their results differ.

        a/run-1/results.json, a/run-2/results.json                 ->  run-1, run-2
        a/run-1/report/results.json, a/run-2/report/results.json   ->  run-1, run-2

    Raises:
        ValueError: If two paths are in the same folder.
    """
    folders = [path.resolve().parent for path in paths]
    if len(set(folders)) < len(folders):
        raise ValueError(f"Results are named by their folders, and two are in one: {', '.join(map(str, paths))}.")
    common = Path(os.path.commonpath(folders)) if len(folders) > 1 else folders[0].parent
    parts = [folder.relative_to(common).parts for folder in folders]
    # Drop trailing folders that all paths share, such as `report`.
    while len({part[-1:] for part in parts}) == 1 and len(parts) > 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) or "." for part in parts]
