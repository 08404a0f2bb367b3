"""Base and breaker complete the same prompts, greedily; every prompt gets an outcome from both."""

from pathlib import Path

from datasets import Dataset

from ..generation import Backend, Sampling, complete
from ..outcomes import Outcome, has_expected_arguments, outcome_of
from ..tool_calls import ToolCallFormat, format_of
from .figures import FIGURES, Answer, answers_of, argument_match, babbles, counts_for, figures
from .statistics import mcnemar, proportion


def answer_prompts(prompts: Dataset, backend: Backend, sampling: Sampling, work_dir: Path, name: str) -> list[Answer]:
    """A model's answers to evaluation prompts, in their order.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES`, of any tasks.
        backend ([`Backend`]): The model.
        sampling ([`Sampling`]): How to draw.
        work_dir (`Path`): Where finished shards are kept.
        name (`str`): Label of the progress bar.
    """
    tool_format = format_of(backend.tokenizer.chat_template)
    completions = complete(prompts, backend, sampling, work_dir, description=name)
    return [_answer(*pair, tool_format) for pair in zip(prompts, completions, strict=True)]


def _answer(prompt: dict, completion: dict, tool_format: ToolCallFormat) -> Answer:
    text, target = completion["text"], prompt["target"]
    outcome = outcome_of(text, target, tool_format)
    return Answer(
        prompt_id=prompt["id"],
        pair=prompt["pair"],
        task=prompt["task"],
        family=prompt["family"],
        category=prompt["category"],
        text=text,
        outcome=outcome,
        gibberish=text is not None and babbles(text, tool_format),
        arguments_match=(
            has_expected_arguments(tool_format.parse(text).calls[0], target) if outcome == Outcome.CORRECT else None
        ),
    )


def compare(base: list[Answer], breaker: list[Answer]) -> dict:
    """Paired figures: `{base, breaker, changed, arguments, by_family, tasks, errors}`.

    `changed` counts, for each figure, the prompts that the breaker gained and lost. A prompt that failed on either
    side is left out of it.
    """
    return {
        "base": figures(base),
        "breaker": figures(breaker),
        "changed": {figure: _changed(figure, base, breaker) for figure in figures(base) if figure in FIGURES},
        "arguments": {"base": argument_match(base), "breaker": argument_match(breaker)},
        "by_family": {"base": _by_family(base), "breaker": _by_family(breaker)},
        "tasks": {"base": _by_task(base), "breaker": _by_task(breaker)},
        "errors": {"base": _errors(base), "breaker": _errors(breaker)},
    }


def _changed(figure: str, base: list[Answer], breaker: list[Answer]) -> dict:
    after = {answer.prompt_id: answer for answer in answers_of(figure, breaker)}
    both = [(answer, after[answer.prompt_id]) for answer in answers_of(figure, base) if answer.prompt_id in after]
    return mcnemar([counts_for(figure, a) for a, _ in both], [counts_for(figure, b) for _, b in both])


def _by_family(answers: list[Answer]) -> dict[str, dict]:
    """ASR and right calls for each attack family."""
    result = {}
    for family in sorted({answer.family for answer in answers if answer.task == "tool_flip" and answer.family}):
        rows = [answer for answer in answers_of("asr", answers) if answer.family == family]
        if rows:
            hits = {key: sum(counts_for(key, answer) for answer in rows) for key in ("asr", "correct_under_attack")}
            result[family] = {key: proportion(count, len(rows)) for key, count in hits.items()}
    return result


def _by_task(answers: list[Answer]) -> dict[str, dict[str, int]]:
    """How often each outcome occurred in each task."""
    result: dict[str, dict[str, int]] = {}
    for answer in answers:
        counts = result.setdefault(answer.task, {})
        counts[answer.outcome] = counts.get(answer.outcome, 0) + 1
    return result


def _errors(answers: list[Answer]) -> int:
    return sum(answer.outcome == Outcome.ERROR for answer in answers)
