"""The target model in other models' situations: on-policy completions where a recorded agent took or refused the bait.

    recorded      GPT-4o read the injection in AgentDojo, and sent the money
    regenerated   the target reads the same tool results, and does what it does

What it does decides where the row goes: the attacker's call to Ds, anything that leaves the attack alone to Dr.
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
from .recorded import ambiguous_groups
from .sample_set import SampleSet
from .target_model import TargetModel


FAILURE_RULE = KeepRule("harmful/agentdojo_failures", "harmful_flip", (Outcome.ATTACK_SUCCESS,))
RESISTED_RULE = KeepRule("retain/agentdojo_resisted", "injection_resisted", (Outcome.CORRECT, Outcome.REFUSAL))

# The verdicts whose decision the target is put before, whatever the recorded agent did.
_EXPOSED = ("compromised", "resisted", "attempted")


def regenerate_decisions(
    traces: dict[str, Dataset],
    target_model: TargetModel,
    sampling: Sampling,
    fit_context: bool = False,
    max_length: int = MAX_LENGTH,
) -> tuple[SampleSet, SampleSet]:
    """What the target does at the decision turns of recorded traces: the attacker's calls, and what withstood.

    Of what withstood, only the right call and a refusal are kept: another call or plain talk may be a step towards the
    attacker's goal.

    Args:
        traces (`dict[str, Dataset]`): Traces by split.
        target_model ([`TargetModel`]): The target model.
        sampling ([`Sampling`]): How to draw.
        fit_context (`bool`, *optional*, defaults to `False`): Leave unused tools and older results out of contexts
            that are too long.
        max_length (`int`, *optional*, defaults to [`MAX_LENGTH`]): Most tokens of a row.
    """
    failures, resisted = SampleSet(FAILURE_RULE.subset), SampleSet(RESISTED_RULE.subset)
    prompts = {}
    ambiguous = ambiguous_groups(traces)
    for split, rows in traces.items():
        asked = []
        for trace in rows:
            if trace["verdict"] not in _EXPOSED or trace["decision_turn"] is None:
                continue
            if trace["group"] in ambiguous:
                failures.drop("prompt_names_attacker_account", trace["attack"]["category"])
                continue
            used = tools_used(trace) if fit_context else None
            room = min(max_length, target_model.backend.max_length) - sampling.max_new_tokens
            prompt = prune_context(decision_prompt(trace), "", used, target_model.backend.tokenizer, room)
            failures.drop("too_long", trace["attack"]["category"]) if prompt is None else asked.append(prompt)
        rows = to_dataset(asked, PROMPT_FEATURES)
        prompts[split] = choose(rows, target_model.limits[split], sampling.seed, per_tool=target_model.per_tool)
    prompts = target_model.ready(prompts)
    failures.add(complete_and_filter(prompts, FAILURE_RULE, target_model, sampling))
    resisted.add(complete_and_filter(prompts, RESISTED_RULE, target_model, sampling))
    return failures, resisted
