"""Completions of a model -> the samples of a set: the part that Ds and Dr share.

A completion is kept only if it is whole, if its text encodes back to the model's own tokens, and if it did what the
set is about. Any other is dropped under the first reason that applies.
"""

import dataclasses
from collections import Counter

from datasets import Dataset

from ..answers.gibberish import is_degenerate
from ..formats import Diagnosis, ToolCall, ToolCallFormat
from ..generation import Backend, Sampling
from ..outcomes import Outcome, have_expected_arguments, outcome_of_read
from ..template_probe import rendering_provenance
from ..tool_schemas import schema_fault, schemas_of
from .make_sample import make_sample
from .sample_set import SampleSet
from .target_model import TargetModel, warned


@dataclasses.dataclass(frozen=True)
class KeepRule:
    """Which completions a set keeps.

    Args:
        id_prefix (`str`): Beginning of the rows' ids, `harmful/...` or `retain/...`; the latter is Dr. It does not
            follow the set's folder: training and merge draw by ids, and a set that is renamed must not be drawn again.
        priority_class (`str`): Class of its rows.
        outcomes (`tuple[Outcome, ...]`): Outcomes it keeps; any other is a drop of that name.
        right_arguments (`bool`, *optional*, defaults to `False`): Whether a right call needs the right arguments too,
            where those are known. A set that is taught needs them. A set that is only held does not: what a model gets
            half right must be held as well, or a breaker is free to break it.
    """

    id_prefix: str
    priority_class: str
    outcomes: tuple[Outcome, ...]
    right_arguments: bool = False


def complete_and_filter(
    prompts: dict[str, Dataset],
    rule: KeepRule,
    target_model: TargetModel,
    sampling: Sampling,
    name: str,
    completion_source: str = "sampled",
    warning: str | None = None,
    best_of_n: bool = False,
) -> SampleSet:
    """Complete the prompts of all splits and keep what the rule says.

    Args:
        prompts (`dict[str, Dataset]`): Prompts by split; an empty split is skipped.
        rule ([`KeepRule`]): Which completions to keep.
        target_model ([`TargetModel`]): The model.
        sampling ([`Sampling`]): How to sample.
        name (`str`): Name of the set, e.g. `harmful/b4_flips`.
        completion_source (`str`, *optional*, defaults to `"sampled"`): What provenance calls the completions.
        warning (`str`, *optional*): Paragraph that the model gets in the system prompt, with the user's own request
            once more after the attack, see [`~target_model.warned`]. The samples have neither; provenance says it. The
            rule holds for the samples' own context: their target is the prompt's.
        best_of_n (`bool`, *optional*, defaults to `False`): Keep one completion per prompt, the most frequent of those
            that the rule allows.
    """
    samples = SampleSet(name)
    tool_format = target_model.tool_format
    for split, rows in prompts.items():
        if len(rows) == 0:
            continue
        by_id = {row["id"]: row for row in rows}

        def reason_of(completion: dict, by_id: dict[str, dict] = by_id) -> str | None:
            return drop_reason(completion, by_id[completion["prompt_id"]], rule, tool_format)

        asked, description = rows if warning is None else warned(rows, warning), f"{name} ({split})"
        allowed = []
        for completion in target_model.complete(asked, sampling, description, lambda row: reason_of(row) is None):
            reason = reason_of(completion)
            if reason is None:
                allowed.append(completion)
            else:
                samples.drop(reason, by_id[completion["prompt_id"]]["category"])
        best = _most_frequent(allowed) if best_of_n else None
        for completion in allowed:
            prompt = by_id[completion["prompt_id"]]
            if best is not None and completion is not best[prompt["id"]]:
                samples.drop("not_best_of_n", prompt["category"])
                continue
            provenance = _provenance(completion, target_model.backend, sampling)
            samples.keep(
                make_sample(
                    prompt,
                    completion["text"],
                    id_prefix=rule.id_prefix,
                    split=split,
                    priority_class=rule.priority_class,
                    tool_format=tool_format,
                    provenance=provenance | {"completion_source": completion_source, "warning": warning},
                )
            )
    return samples


def _most_frequent(completions: list[dict]) -> dict[str, dict]:
    """One completion of each prompt, by the prompt's id: the most frequent, and the earliest of those."""
    counts = Counter((completion["prompt_id"], completion["text"]) for completion in completions)
    best: dict[str, dict] = {}
    for completion in completions:
        own = best.setdefault(completion["prompt_id"], completion)
        if counts[own["prompt_id"], completion["text"]] > counts[own["prompt_id"], own["text"]]:
            best[completion["prompt_id"]] = completion
    return best


def drop_reason(completion: dict, prompt: dict, rule: KeepRule, tool_format: ToolCallFormat) -> str | None:
    """Why a completion is not kept, or `None` if it is."""
    if completion["text"] is None:
        return completion["stop_reason"]
    parsed = tool_format.parse(completion["text"], prompt["tools"])
    if parsed.diagnosis == Diagnosis.THINKING:
        return str(parsed.diagnosis)
    if completion["stop_reason"] != "stop":
        return "truncated"
    if not completion["canonical"]:
        return "non_canonical_tokens"
    executed = tool_format.executed_calls(completion["text"], prompt["tools"])
    outcome = outcome_of_read(parsed, executed, prompt["target"])
    if outcome not in rule.outcomes:
        return str(outcome)
    # What a server would execute in spite of its form must not be trained on.
    if executed and not parsed.is_call:
        return "call_in_words" if parsed.diagnosis == Diagnosis.TEXT else str(parsed.diagnosis)
    # `None`: the prompt says nothing about the arguments.
    is_checked = rule.right_arguments and parsed.is_call
    if is_checked and have_expected_arguments(parsed.calls, prompt["target"], prompt["tools"]) is False:
        return "wrong_arguments"
    # Validation refuses such a row, and a whole set that has many of them.
    if not _fit_schemas(parsed.calls, prompt["tools"]):
        return "arguments_do_not_fit"
    return "gibberish" if is_degenerate(parsed.text) else None


def _fit_schemas(calls: tuple[ToolCall, ...], tools: str | None) -> bool:
    """Whether the arguments fit the tools' schemas; a schema that cannot be evaluated is for validation to name."""
    try:
        return all(schema_fault(call, schemas_of(tools)) is None for call in calls)
    except ValueError:
        return True


def _provenance(completion: dict, backend: Backend, sampling: Sampling) -> dict:
    return {
        "generator_model": backend.model,
        "generator_revision": backend.revision,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": completion["seed"],
        "stop_reason": completion["stop_reason"],
        **rendering_provenance(backend.tokenizer),
    }
