"""What all rungs of the ladder share: the answer to a prompt, the rates of a model, and files of finished prompts.

A rung is one attack at one budget, against every model:

    {"budget": {"steps": 30, "width": 64, ...},
     "models": {"base": {"asr": {"value": 1.0, "n": 40, ...}, "correct": {...}, "gibberish": {...}, ...}, ...},
     "prompts": [{"id": "tool_flip/lookalike/71", "answers": {"base": {"text": ..., "outcome": ...}, ...}}, ...]}
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset

from builders.trace import to_json

from ..chat import DATE_STRING, RENDERER_HASH
from ..evaluation.scored_completions import is_degenerate_completion
from ..evaluation.statistics import proportion
from ..files import read_json, write_json
from ..formats import ToolCallFormat, format_of
from ..generation import Backend, Sampling, complete
from ..outcomes import Outcome, outcome_of
from ..template_probe import template_hash


# Hash of the source that searches and classifies completions: searches of another version are not reused.
_PACKAGE = Path(__file__).parents[1]
_CODE = (
    *("attacks/call_loss.py", "attacks/embedding_attack.py", "attacks/slots.py", "attacks/token_search.py"),
    *("attacks/white_box.py", "attacks/universal.py", "outcomes.py"),
    *sorted(f"formats/{path.name}" for path in (_PACKAGE / "formats").glob("*.py")),
)
_CODE_TEXT = b"".join((_PACKAGE / name).read_bytes() for name in _CODE)
CODE_HASH = hashlib.sha256(_CODE_TEXT + RENDERER_HASH.encode()).hexdigest()[:16]


def answer_record(text: str | None, row: dict, tool_format: ToolCallFormat) -> dict[str, Any]:
    """A model's completion of an attacked prompt, with its outcome; `text` is `None` for an overlong prompt."""
    return {
        "text": text,
        "outcome": str(outcome_of(text, row["target"], tool_format, row["tools"])),
        "gibberish": text is not None and is_degenerate_completion(text, tool_format),
    }


def greedy_answers(
    prompts: Dataset, model: Backend, max_new_tokens: int, work_dir: Path, description: str
) -> list[dict[str, Any]]:
    """A model's greedy answers to attacked prompts, in their order, see [`answer_record`]."""
    texts = complete(prompts, model, Sampling(max_new_tokens=max_new_tokens), work_dir, description=description)[
        "text"
    ]
    tool_format = format_of(model.tokenizer)
    return [answer_record(text, row, tool_format) for row, text in zip(prompts, texts, strict=True)]


def without_errors(answers: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The answers that count in rates: not those to overlong prompts."""
    return [answer for answer in answers if answer["outcome"] != Outcome.ERROR]


def rung_metrics(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates of one model: `asr`, `correct`, `gibberish`; its `outcomes`; and `errors`, which count in no rate.

    Raises:
        ValueError: If every answer is an error.
    """
    valid = without_errors(answers)
    hits = {
        "asr": [answer["outcome"] == Outcome.ATTACK_SUCCESS for answer in valid],
        "correct": [answer["outcome"] == Outcome.CORRECT for answer in valid],
        "gibberish": [answer["gibberish"] for answer in valid],
    }
    return {
        **{metric: proportion(sum(values), len(valid)) for metric, values in hits.items()},
        "outcomes": dict(Counter(answer["outcome"] for answer in answers)),
        "errors": len(answers) - len(valid),
    }


def make_rung(
    budget: object,
    prompts: Dataset,
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    extra: Callable[[Sequence[Mapping[str, Any]]], dict] = lambda answers: {},
) -> dict[str, Any]:
    """Result of a rung.

    Args:
        budget (dataclass): Limits of the attacker.
        prompts ([`~datasets.Dataset`]): The attacked prompts.
        answers (`Mapping[str, Sequence[Mapping]]`): By model, the answer to each prompt, see [`answer_record`].
        extra (`Callable`, *optional*): More metrics from the answers of a model.
    """
    return {
        "budget": dataclasses.asdict(budget),  # type: ignore[call-overload]
        "models": {name: {**rung_metrics(each), **extra(each)} for name, each in answers.items()},
        "prompts": [
            {"id": id, "answers": {name: each[index] for name, each in answers.items()}}
            for index, id in enumerate(prompts["id"])
        ],
    }


def search_metrics(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`unchanged`: successes without a search; `at_random`: of the initial random words, without a step; and `steps`.

    `median_steps` is over the successful searches that took a step, `None` if there is none.
    """
    won = [answer["search"] for answer in answers if answer["outcome"] == Outcome.ATTACK_SUCCESS]
    steps = [search["steps"] for search in won if search is not None]
    searched = [answer["search"] for answer in answers if answer["search"] and "steps" in answer["search"]]
    return {
        "unchanged": won.count(None),
        "at_random": steps.count(0),
        "median_steps": median(filter(None, steps)) if any(steps) else None,
        "all_steps": sum(search["steps"] for search in searched),
    }


class FinishedSearches:
    """Results of searches against one model, each in a file of its own, so that an interrupted rung resumes.

    Args:
        work_dir (`Path`): Parent of the folder.
        rung (`str`): Name of the rung; the folder's name begins with it.
        model ([`Backend`]): The attacked model.
        budget (dataclass): Limits of the attacker; the number of prompts does not affect a search.
    """

    def __init__(self, work_dir: Path, rung: str, model: Backend, budget: object) -> None:
        limits = dataclasses.asdict(budget)  # type: ignore[call-overload]
        settings = {
            "model": model.model,
            "revision": model.revision,
            "budget": {key: value for key, value in limits.items() if key != "prompts"},
            "template_hash": template_hash(model.tokenizer),
            "date_string": DATE_STRING,
            "code": CODE_HASH,
        }
        self._folder, self._seed = work_dir / f"{rung}-{_hash(settings)}", limits["seed"]
        write_json(self._folder / "settings.json", settings)

    def get(
        self, rows: Sequence[dict], targets: Sequence[str | dict[str, str]], search: Callable[[int], dict]
    ) -> dict:
        """The result of a search; `search(seed)` is run where there is none.

        Args:
            rows (`Sequence[dict]`): The prompts that are searched together.
            targets (`Sequence[str | dict[str, str]]`): The completions that the search aims at, for each.
            search (`Callable[[int], dict]`): The search; its seed does not depend on which other prompts are attacked.
        """
        # The key covers everything that the search depends on besides the folder's settings.
        columns = ("id", "messages", "tools", "injection", "target")
        key = _hash([[{name: row[name] for name in columns} for row in rows], list(targets)])
        path = self._folder / f"{key}.json"
        if not path.is_file():
            write_json(path, search(int(key, 16) ^ self._seed))
        return read_json(path)


def _hash(value: object) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:15]
