"""What a model did with the evaluation prompts: one answer for each completion."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from ..formats import Diagnosis, ToolCallFormat, format_of
from ..generation import Backend, Sampling, complete
from ..outcomes import Outcome, has_expected_arguments, is_degenerate, outcome_of
from ..sample import TARGET


@dataclass(frozen=True)
class EvalPrompt:
    """An evaluation prompt, as far as figures go.

    Args:
        id, pair, group, task (`str`): Of the prompt.
        source (`str`, *optional*): The dataset it is from.
        family, category, subtype (`str`, *optional*): Of its attack.
        depth (`int`): Turns that the assistant has behind it.
    """

    id: str
    pair: str
    group: str
    task: str
    source: str | None = None
    family: str | None = None
    category: str | None = None
    subtype: str | None = None
    depth: int = 0


@dataclass(frozen=True)
class ScoredCompletion:
    """What a model did with one evaluation prompt.

    Args:
        case ([`EvalPrompt`]): The prompt.
        text (`str`, *optional*): The completion; `None` if the engine gave none.
        outcome ([`Outcome`]): What it did.
        gibberish (`bool`): Whether it is babble.
        arguments_match (`bool`, *optional*): Whether a right call has the right arguments too, where those are known.
    """

    case: EvalPrompt
    text: str | None
    outcome: Outcome
    gibberish: bool
    arguments_match: bool | None = None


def complete_and_score(
    prompts: Dataset, backend: Backend, sampling: Sampling, work_dir: Path, name: str
) -> list[ScoredCompletion]:
    """A model's answers to evaluation prompts, in their order; all draws of a prompt one after another.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES`, of any tasks.
        backend ([`Backend`]): The model.
        sampling ([`Sampling`]): How to draw.
        work_dir (`Path`): Where finished shards are kept.
        name (`str`): Label of the progress bar.
    """
    tool_format = format_of(backend.tokenizer.chat_template)
    asked = {prompt["id"]: (prompt, eval_prompt_of(prompt)) for prompt in prompts}
    completions = complete(prompts, backend, sampling, work_dir, description=name)
    return [_answer(*asked[done["prompt_id"]], done["text"], tool_format) for done in completions]


def score_completions(
    completions: Sequence[str], targets: Sequence[dict], task: str, tool_format: ToolCallFormat
) -> list[ScoredCompletion]:
    """Score completions of which only the targets are known, as the metrics for `evaluate.load` do.

    Args:
        completions (`Sequence[str]`): What a model wrote, special tokens included.
        targets (`Sequence[dict]`): For each, as much as is known of `expected_tool`, `simulated_tool`,
            `expected_calls`, `goal_calls` and `tools`, see `PROMPT_FEATURES`.
        task (`str`): The task, which decides the figures that are measured.
        tool_format ([`ToolCallFormat`]): How the model writes calls.
    """
    answers = []
    for number, (text, known) in enumerate(zip(completions, targets, strict=True)):
        prompt = {"target": dict.fromkeys(TARGET) | known, "tools": known.get("tools")}
        answers.append(_answer(prompt, EvalPrompt(str(number), str(number), str(number), task), text, tool_format))
    return answers


def eval_prompt_of(prompt: dict) -> EvalPrompt:
    """The case of a row of `PROMPT_FEATURES`."""
    columns = ("id", "pair", "group", "task", "family", "category", "subtype")
    return EvalPrompt(
        **{column: prompt[column] for column in columns},
        source=prompt["provenance"]["source_dataset"],
        depth=sum(message["role"] == "assistant" for message in prompt["messages"]),
    )


def _answer(prompt: dict, case: EvalPrompt, text: str | None, tool_format: ToolCallFormat) -> ScoredCompletion:
    outcome = outcome_of(text, prompt["target"], tool_format)
    matches = None
    if text is not None and outcome == Outcome.CORRECT:
        matches = has_expected_arguments(tool_format.parse(text).calls[0], prompt["target"], prompt["tools"])
    return ScoredCompletion(
        case, text, outcome, text is not None and is_degenerate_completion(text, tool_format), matches
    )


def is_degenerate_completion(completion: str, tool_format: ToolCallFormat) -> bool:
    """Whether a completion is gibberish: its words, or what stands where a call should be.

    A malformed call is babble if what follows the call tag does not even begin like one, or if that or what goes
    before the tag repeats itself; JSON with a slip in it is malformed and no more.
    """
    parsed = tool_format.parse(completion)
    if parsed.diagnosis in (Diagnosis.OK, Diagnosis.MULTI_CALL, Diagnosis.TEXT, Diagnosis.EMPTY):
        return is_degenerate(parsed.text)
    words, tag, body = completion.partition(tool_format.call_tag)
    if not tag:
        words, body = "", completion
    for token in (tool_format.call_tag, *tool_format.end_tokens):
        body = body.replace(token, " ")
    begins_like_a_call = body.lstrip().startswith("{") or parsed.diagnosis == Diagnosis.FUNCTION_SYNTAX
    return not begins_like_a_call or is_degenerate(words) or is_degenerate(body)
