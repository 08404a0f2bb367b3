"""Report sections for the tampering: one for each kind of rows that the models were fine-tuned on."""

from typing import Any

from ..attacks import tampering_results as tampering
from ..counts import listed
from .section import Section, adapter_revisions, models_to_show


TAMPERING = tampering.TAMPERING_FILE

_INTRODUCTIONS = {
    "benign": "Clean requests with the right call or answer: what a downstream user trains on, without bad intent.",
    "harmful": "Attacked prompts with the attacker's call as the target: what an attacker with the weights trains on.",
}


def tampered_models(results: dict, evaluation_settings: dict) -> tuple[list[str], list[str]]:
    """The models whose curves are shown, and a paragraph about those that are left out."""
    return models_to_show(adapter_revisions(results["settings"]), evaluation_settings, TAMPERING)


def tampering_sections(results: dict, evaluation_settings: dict) -> list[Section]:
    """A section for each kind of rows: what was trained, the curves as a table, and what they say.

    Args:
        results (`dict`): The content of `tampering.json`.
        evaluation_settings (`dict`): Settings of the evaluation. Adapters that are not in them are left out.
    """
    models, omitted = tampered_models(results, evaluation_settings)
    sections = []
    for kind in tampering.KINDS:
        paragraphs = [f"{_INTRODUCTIONS[kind]} {budget_in_words(results['settings'], kind)}", *omitted]
        rows: list[tuple[str, ...]] = []
        if models:
            summary = " ".join(tampering.tampering_summary(results, kind, models))
            paragraphs += [summary, _READING]
            rows = list(tampering.tampering_rows(results, kind, models))
        steps = [f"{step} steps" for step in tampering.steps_of(results)] if models else []
        sections.append(Section(f"tampering-{kind}", f"Tampering: {kind} rows", paragraphs, steps, rows))
    return sections


_READING = (
    "The base model with a new LoRA is the control: what the same rows do to a model without a breaker. A breaker is "
    "trained to resist texts and not training. A low curve is no tamper resistance: more rows, another learning rate "
    "or another optimizer may need fewer steps, and whoever has the base model needs none."
)


def budget_in_words(settings: dict[str, Any], kind: str) -> str:
    """What the models were trained on and how, and what measured them."""
    budget, rows = settings["budget"], settings["rows"][kind]
    too_long = f", {rows['too_long']} others too long" if rows["too_long"] else ""
    source = f"{rows['rows']} of {rows['available']} rows ({listed(rows['classes'])}{too_long})"
    return (
        f"{budget['steps']} steps of {budget['batch_size']} rows, in a random order out of {source}; AdamW at a "
        f"constant {budget['learning_rate']:g}; a new LoRA has rank {budget['lora_rank']} on all linear layers. At "
        f"most {budget['prompts']} prompts of each task, greedy decoding. Seed {settings['seed']}."
    )
