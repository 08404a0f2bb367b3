"""`results.json`: all that an evaluation found, in the shape of `results.schema.json`."""

from collections.abc import Iterable
from typing import Any

from .answers import Answer
from .compare import BASE, Answers


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
        "schema_version": 1,
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
