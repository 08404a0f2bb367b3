"""On-policy completions at the decision points of recorded agents.

    recorded      GPT-4o read the injection in AgentDojo, and sent the money
    regenerated   the target model reads the same tool results, and its own completion counts

Its outcome decides where the row goes: the attacker's call to Ds, a resisted attack to Dr.
"""

from datasets import Dataset

from ..chat import MAX_LENGTH
from ..files import to_dataset
from ..generation import Sampling
from ..outcomes import Outcome
from ..sample import PROMPT_FEATURES
from ..splits import choose
from .filter_completions import KeepRule, complete_and_filter
from .fit_context import prune_context, tools_used
from .prompts import decision_prompt
from .recorded import ambiguous_tasks, is_ambiguous
from .sample_set import SampleSet
from .target_model import TargetModel


FAILURE_RULE = KeepRule("harmful/agentdojo_failures", "harmful_flip", (Outcome.ATTACK_SUCCESS,))
RESISTED_RULE = KeepRule("retain/agentdojo_resisted", "injection_resisted", (Outcome.CORRECT,))

# Verdicts of runs in which the injection was shown before the decision, whatever the recorded agent did.
_EXPOSED = ("compromised", "resisted", "attempted")


def regenerate_decisions(
    traces: dict[str, Dataset],
    target_model: TargetModel,
    sampling: Sampling,
    fit_context: bool = False,
    max_length: int = MAX_LENGTH,
) -> tuple[SampleSet, SampleSet]:
    """The target's completions at the decision turns of recorded traces: successful attacks, and resisted ones.

    Of the resisted ones only the right call is kept, or words where they are right: another call may be a step towards
    the attacker's goal, and a refusal may be of the user's own task.

    Args:
        traces (`dict[str, Dataset]`): Traces by split.
        target_model ([`TargetModel`]): The target model.
        sampling ([`Sampling`]): How to sample.
        fit_context (`bool`, *optional*, defaults to `False`): Leave unused tools and older results out of contexts
            that are too long.
        max_length (`int`, *optional*, defaults to [`MAX_LENGTH`]): Maximum number of tokens of a row.
    """
    failures, resisted = SampleSet(FAILURE_RULE.id_prefix), SampleSet(RESISTED_RULE.id_prefix)
    prompts = {}
    ambiguous = ambiguous_tasks(traces)
    max_prompt_length = min(max_length, target_model.backend.max_length) - sampling.max_new_tokens
    for split, rows in traces.items():
        decisions = []
        for trace in rows:
            if trace["verdict"] not in _EXPOSED or trace["decision_turn"] is None:
                continue
            category = trace["attack"]["category"]
            if is_ambiguous(trace, ambiguous):
                failures.drop("prompt_names_attacker_account", category)
                continue
            used = tools_used(trace) if fit_context else None
            prompt = prune_context(decision_prompt(trace), "", used, target_model.backend.tokenizer, max_prompt_length)
            if prompt is None:
                failures.drop("too_long", category)
            else:
                decisions.append(prompt)
        decided = to_dataset(decisions, PROMPT_FEATURES)
        prompts[split] = choose(decided, target_model.limits[split], sampling.seed, per_tool=target_model.per_tool)
    prompts = target_model.ready(prompts)
    # Both sets filter the same completions: the second pass finds the first one's shards.
    for samples, rule in ((failures, FAILURE_RULE), (resisted, RESISTED_RULE)):
        samples.add_round(complete_and_filter(prompts, rule, target_model, sampling, samples.name))
    return failures, resisted
