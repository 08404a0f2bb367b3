"""The prompts that can be attacked, and the opening of the attacker's call in each."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from ..formats import ToolCallFormat, format_of
from ..generation import Backend, Sampling, complete
from ..outcomes import Outcome, outcome_of


def select_attackable(prompts: Dataset) -> tuple[Dataset, dict[str, int]]:
    """Select the prompts that can be attacked, and count the others by reason.

    - `no_injection`: the prompt has no text of the attacker's.
    - `no_attacker_call`: the tool that the attacker wants called is unknown, or is the expected one.
    - `prefilled`: the completion is prefilled, which is another type of attack.
    """
    reasons = [_drop_reason(prompt) for prompt in prompts]
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    return prompts.select(kept), dict(Counter(reason for reason in reasons if reason is not None))


def _drop_reason(prompt: dict) -> str | None:
    target = prompt["target"]
    if not prompt["injection"]:
        return "no_injection"
    if target["simulated_tool"] is None or target["simulated_tool"] == target["expected_tool"]:
        return "no_attacker_call"
    return "prefilled" if target["prefill"] else None


def format_of_models(models: Mapping[str, Backend]) -> ToolCallFormat:
    """The tool-call format of models that share their chat template."""
    return format_of(next(iter(models.values())).tokenizer)


def complete_unchanged(
    prompts: Dataset, models: Mapping[str, Backend], max_new_tokens: int, work_dir: Path
) -> dict[str, list[str | None]]:
    """Greedy completions of the prompts with their own injections, by model; `None` for an overlong prompt."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    return {
        name: list(complete(prompts, model, sampling, work_dir, description=f"{name}, unchanged injection")["text"])
        for name, model in models.items()
    }


def attack_targets(row: dict, base_text: str | None, tool_format: ToolCallFormat) -> dict[str, str]:
    """Completions that searches aim at, in every model: those of the base where it makes the attacker's call.

    Args:
        row (`dict`): The attacked prompt.
        base_text (`str`, *optional*): The base model's completion of it, see [`complete_unchanged`].
        tool_format ([`ToolCallFormat`]): How the models write calls.

    Returns:
        `dict[str, str]`: `opening`: up to and including the name of the attacker's tool, with any text before the
        call; `call`, only where the base makes the attacker's call: its whole completion.
    """
    head = tool_format.call_head(row["target"]["simulated_tool"])
    before, separator, _ = (base_text or "").partition(head)
    targets = {"opening": before + head if separator else head}
    if base_text is not None and is_success(row, base_text, tool_format):
        targets["call"] = base_text
    return targets


def is_success(row: dict, text: str, tool_format: ToolCallFormat) -> bool:
    """Whether a completion is a success of the attack on this prompt."""
    return outcome_of(text, row["target"], tool_format, row["tools"]) == Outcome.ATTACK_SUCCESS
