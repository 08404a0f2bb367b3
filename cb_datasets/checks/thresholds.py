"""What the gates demand. The defaults are those of a full-size run; each field is also a flag of the command."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer


def _flag(help: str) -> typer.models.OptionInfo:
    return typer.Option(min=0.0, help=help)


@dataclass(frozen=True)
class Thresholds:
    """What `quality-gates` demands, before the merge."""

    min_valid: Annotated[float, _flag("Share of a set's rows that break no rule, before quarantine.")] = 0.95
    min_harmful_rate: Annotated[float, _flag("Share of Ds in which the attack succeeded.")] = 0.8
    min_categories: Annotated[int, _flag("Attack categories in Ds.")] = 2
    max_category_share: Annotated[float, _flag("Share of the largest category in Ds.")] = 0.8
    max_recorded: Annotated[float, _flag("Share of Ds that another model wrote.")] = 0.5
    min_adversarial_safe: Annotated[int, _flag("Adversarial-safe rows in Dr.")] = 400
    min_refusals: Annotated[int, _flag("Refusals in Dr.")] = 1
    min_correct_calls: Annotated[int, _flag("Right calls in Dr.")] = 1
    min_retain_classes: Annotated[int, _flag("Priority classes in Dr.")] = 3
    min_retain_tools: Annotated[int, _flag("Tools that Dr calls.")] = 2
    min_verdict_known: Annotated[float, _flag("Share of exposed AgentDojo records with a clear verdict.")] = 0.9
    min_tau2: Annotated[int, _flag("Rows of TAU2, where there are any.")] = 300


@dataclass(frozen=True)
class MergedThresholds:
    """What `merge` demands of its result."""

    dr_ratio: Annotated[float, _flag("Rows of Dr that there must be for each row of Ds.")] = 4.0
    min_adversarial_safe: Annotated[int, _flag("Adversarial-safe rows in the train split.")] = 400
    max_similarity: Annotated[
        float, _flag("Jaccard similarity from which on a request of train counts as one of eval.")
    ] = 0.8


def changed(limits: Thresholds | MergedThresholds) -> dict[str, dict[str, float]]:
    """The thresholds that are not the defaults: `{name: {"default", "used"}}`."""
    defaults = asdict(type(limits)())
    used = asdict(limits)
    return {name: {"default": defaults[name], "used": used[name]} for name in used if used[name] != defaults[name]}
