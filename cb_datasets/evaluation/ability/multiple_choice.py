"""Multiple choice by log-likelihood, scored as lm-eval scores it, on a small set of our own.

    {"id": "tool_choice/2", "category": "tool_choice", "question": "An assistant has the tools create_event, ...",
     "choices": ["create_event", "get_balance", "translate_text", "book_flight"], "answer": 1}

The model reads `Question: <question>\\nAnswer:` as plain text, without its chat template, and each choice is scored by
the log-likelihood `ll` of ` <choice>` after it. The prediction is

    acc         argmax_c ll(c)
    acc_norm    argmax_c ll(c) / number of characters of c

and the first of equal scores. With 60 questions the set tells a broken model from an intact one, and no more: its 95 %
interval is up to 25 points wide. MMLU, through lm-eval, has 14,042 questions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..compare import BASE
from ..statistics import mcnemar, proportion
from .finished_parts import FinishedParts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...generation import Scorer

# Never edited in place: other questions are another version.
QUESTIONS_FILE = Path(__file__).with_name("assets") / "multiple_choice_v1.jsonl"

ACCURACIES = ("acc", "acc_norm")
# Questions per call of the model, which is one step of the progress bar.
_CHUNK = 15


@dataclass(frozen=True)
class Question:
    """A question with its choices; `answer` is the index of the right one."""

    id: str
    category: str
    question: str
    choices: list[str]
    answer: int

    @property
    def context(self) -> str:
        """The text that the model reads before a choice."""
        return f"Question: {self.question}\nAnswer:"


def read_questions(path: Path = QUESTIONS_FILE) -> list[Question]:
    """The questions in a file of JSON lines."""
    return [Question(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def score_choices(questions: Sequence[Question], model: "Scorer", name: str) -> list[list[float]]:
    """The log-likelihood of each choice of each question, in nats.

    Args:
        questions (`Sequence[Question]`): The questions.
        model ([`Scorer`]): The model.
        name (`str`): Its name, for the progress bar.
    """
    scores = []
    for start in tqdm(range(0, len(questions), _CHUNK), f"ability, multiple choice, {name}"):
        pairs = [
            encode_choice(model.tokenizer, question.context, choice)
            for question in questions[start : start + _CHUNK]
            for choice in question.choices
        ]
        scores += model.log_likelihoods(*(list(ids) for ids in zip(*pairs, strict=True)))
    remaining = iter(scores)
    return [[next(remaining) for _ in question.choices] for question in questions]


def encode_choice(tokenizer: "PreTrainedTokenizerBase", context: str, choice: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of ` <choice>` after it: encoded together, and cut where the context's tokens end.

    As in lm-eval, special tokens are added where the tokenizer adds them to plain text, such as Llama's BOS.
    """
    context_ids, all_ids = (tokenizer(text)["input_ids"] for text in (context, f"{context} {choice}"))
    return all_ids[: len(context_ids)], all_ids[len(context_ids) :]


def measure_multiple_choice(models: "Mapping[str, Scorer]", parts: FinishedParts) -> dict:
    """`{questions, models, categories, changed}`: accuracies by model and by category, and McNemar's test on the base.

    Args:
        models (`Mapping[str, Scorer]`): The base model and breakers by name.
        parts ([`FinishedParts`]): Finished parts of an earlier run; a model is one.
    """
    questions = read_questions()
    hits = {}
    for name, model in models.items():
        scored = parts.json(f"multiple_choice-{name}", partial(_scores, questions, model, name))
        hits[name] = {metric: _hits(questions, scored["scores"], metric) for metric in ACCURACIES}
    return {
        "questions": len(questions),
        "file": QUESTIONS_FILE.name,
        "models": {
            name: {metric: proportion(sum(values), len(values)) for metric, values in own.items()}
            for name, own in hits.items()
        },
        "categories": dict(_by_category(questions, hits)),
        "changed": {
            name: {metric: mcnemar(hits[BASE][metric], values) for metric, values in own.items()}
            for name, own in hits.items()
            if name != BASE
        },
    }


def _scores(questions: Sequence[Question], model: "Scorer", name: str) -> dict:
    return {"scores": score_choices(questions, model, name)}


def _hits(questions: Sequence[Question], scores: Sequence[Sequence[float]], metric: str) -> list[bool]:
    return [predicted(one, row, metric) == one.answer for one, row in zip(questions, scores, strict=True)]


def predicted(question: Question, scores: Sequence[float], metric: str) -> int:
    """Index of the predicted choice by `acc` or `acc_norm`."""
    lengths = [1 if metric == "acc" else len(choice) for choice in question.choices]
    return int(np.argmax(np.asarray(scores) / lengths))


def _by_category(questions: Sequence[Question], hits: Mapping[str, Mapping[str, list[bool]]]) -> Iterator[tuple]:
    for category in dict.fromkeys(question.category for question in questions):
        own = [number for number, question in enumerate(questions) if question.category == category]
        yield (
            category,
            {
                name: {
                    metric: proportion(sum(values[number] for number in own), len(own))
                    for metric, values in by_metric.items()
                }
                for name, by_metric in hits.items()
            },
        )
