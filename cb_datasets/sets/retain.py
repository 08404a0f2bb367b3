"""Dr, the retain set: what must stay as it is.

benign_twin            the right call on the clean twin of an attacked prompt
adversarial_safe       the right call although the attack is there
refusal                refusals of openly harmful requests
general_conversation   ordinary chat, and questions that need no tool
"""

import dataclasses
import json

from datasets import Dataset, concatenate_datasets

from ..formats import ToolCall, ToolCallFormat
from ..generation import Sampling
from ..outcomes import Outcome, has_expected_arguments
from .filter_completions import KeepRule, complete_and_filter
from .make_sample import make_sample
from .sample_set import SampleSet
from .target_model import TargetModel, without


BENIGN_TWIN_RULE = KeepRule("retain/b4_benign_twins", "benign_twin", (Outcome.CORRECT,))
REFUSAL_RULE = KeepRule("retain/refusals", "refusal", (Outcome.REFUSAL,))
CHAT_RULE = KeepRule("retain/chat", "general_conversation", (Outcome.NO_CALL,))
ADVERSARIAL_SAFE_RULE = KeepRule(
    "retain/adversarial_safe", "adversarial_safe", (Outcome.CORRECT,), right_arguments=True
)

# Which evaluation tasks' prompts, asked of the train side, fill a generated retain set.
RETAIN_TASKS = {
    "benign_twins": (BENIGN_TWIN_RULE, ("capability",)),
    "refusals": (REFUSAL_RULE, ("refusal",)),
    "chat": (CHAT_RULE, ("chat", "irrelevance")),
}


def generate_retain_set(
    kind: str, traces: dict[str, Dataset], target_model: TargetModel, sampling: Sampling
) -> SampleSet:
    """One generated retain set: the model's own good answers to prompts without an injection.

    Args:
        kind (`str`): A key of `RETAIN_TASKS`.
        traces (`dict[str, Dataset]`): Traces by split.
        target_model ([`TargetModel`]): The target model.
        sampling ([`Sampling`]): How to draw.
    """
    wanted, tasks = RETAIN_TASKS[kind]
    by_task = [target_model.prompts(traces, task, sampling.seed) for task in tasks]
    prompts = {split: concatenate_datasets([chosen[split] for chosen in by_task]) for split in traces}
    return complete_and_filter(prompts, wanted, target_model, sampling)


@dataclasses.dataclass(frozen=True)
class SafeOptions:
    """How hard the model is asked to withstand.

    Args:
        target_n (`int`, *optional*): Stop drawing when so many samples are there.
        min_n (`int`, *optional*, defaults to `0`): Fewer in the end, filled ones included, is an error.
        retry_temperatures (`tuple[float, ...]`, *optional*): A further round for each, over the prompts that gave
            nothing yet, as long as `target_n` is not reached.
        retry_samples (`int`, *optional*, defaults to `4`): Completions for each prompt in these rounds.
    """

    target_n: int | None = None
    min_n: int = 0
    retry_temperatures: tuple[float, ...] = ()
    retry_samples: int = 4


def generate_adversarial_safe(
    traces: dict[str, Dataset],
    target_model: TargetModel,
    sampling: Sampling,
    twins: Dataset | None = None,
    options: SafeOptions = SafeOptions(),
) -> SampleSet:
    """Attacked prompts with the right call: sampled where the model manages, the rest filled from verified twins.

    Args:
        traces (`dict[str, Dataset]`): Prompt-only traces by split.
        target_model ([`TargetModel`]): The target model.
        sampling ([`Sampling`]): How to draw in the first round.
        twins ([`~datasets.Dataset`], *optional*): Samples of `retain/b4_benign_twins`. An attacked prompt that the
            model did not withstand gets its clean twin's completion (`completion_source = twin`): the model's own
            call, which the outcome on the attacked prompt verifies once more. Where the source knows that its
            arguments are wrong, it gets the source's call (`recorded`): without it a set would lack the tools that a
            model chooses well and fills badly, and a breaker would learn that they are never right under attack.
        options ([`SafeOptions`], *optional*): Further rounds, and how many samples there must be.

    Raises:
        ValueError: If there are fewer than `min_n` in the end.
    """
    prompts = target_model.prompts(traces, "tool_flip", sampling.seed)
    result = complete_and_filter(prompts, ADVERSARIAL_SAFE_RULE, target_model, sampling)
    if target_model.rank is not None:
        return result  # what follows needs the shards of all ranks
    for temperature in options.retry_temperatures:
        if options.target_n is None or len(result.samples) >= options.target_n:
            break
        missing = without(prompts, {sample["pair"] for sample in result.samples})
        drawn = dataclasses.replace(sampling, temperature=temperature, num_samples=options.retry_samples)
        result.add(complete_and_filter(missing, ADVERSARIAL_SAFE_RULE, target_model, drawn))
    if twins is not None:
        _fill_from_twins(result, prompts, twins, target_model.tool_format)
    if len(result.samples) < options.min_n:
        raise ValueError(
            f"{len(result.samples)} adversarial-safe samples, fewer than the {options.min_n} that are asked for. Add "
            f"prompts, --retry-temperatures or --fill twin, or lower --min-n."
        )
    return result


def _fill_from_twins(
    result: SampleSet, prompts: dict[str, Dataset], twins: Dataset, tool_format: ToolCallFormat
) -> None:
    by_pair = {twin["pair"]: twin for twin in twins}
    done = {sample["pair"] for sample in result.samples}
    for split, rows in prompts.items():
        for prompt in rows:
            if prompt["pair"] in done:
                continue
            twin = by_pair.get(prompt["pair"])
            if twin is None:
                result.drop("no_verified_twin", prompt["category"])
                continue
            completion, told = _right_completion(twin, prompt, tool_format)
            sample = make_sample(
                prompt,
                completion,
                subset=ADVERSARIAL_SAFE_RULE.subset,
                split=split,
                priority_class=ADVERSARIAL_SAFE_RULE.priority_class,
                tool_format=tool_format,
                provenance=told,
            )
            if sample["outcome"] == Outcome.CORRECT:
                result.keep(sample)
            else:
                result.drop(f"twin_{sample['outcome']}", prompt["category"])


def _right_completion(twin: dict, prompt: dict, tool_format: ToolCallFormat) -> tuple[str, dict]:
    """The twin's completion, or the source's call where the twin's arguments are known to be wrong; its provenance."""
    [call] = tool_format.parse(twin["assistant_raw"]).calls
    provenance = twin["provenance"]
    told = {key: provenance[key] for key in ("prompt_format", "template_hash", "date_string")}
    target = prompt["target"]
    if has_expected_arguments(call, target, prompt["tools"]) is False:
        wanted = next(wanted for wanted in json.loads(target["expected_calls"]) if wanted["name"] == call.name)
        written = {"completion_source": "recorded", "generator_model": provenance["source_dataset"]}
        return tool_format.render(ToolCall(wanted["name"], wanted["arguments"]), ""), told | written
    sampled = ("generator_model", "generator_revision", "temperature", "top_p", "seed", "stop_reason")
    told |= {key: provenance[key] for key in sampled}
    return twin["assistant_raw"], told | {"completion_source": "twin"}
