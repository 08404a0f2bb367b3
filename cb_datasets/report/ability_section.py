"""The section on general ability: held-out text, multiple choice and tasks of lm-eval."""

from ..counts import listed
from ..evaluation.ability.ability import ABILITY_FILE, ability_table_rows
from ..evaluation.compare import BASE
from .section import Section, models_to_show


ABILITY = ABILITY_FILE


def ability_section(results: dict, evaluation_settings: dict) -> Section:
    """The section on general ability, for the models that are evaluated here."""
    settings = results["settings"]
    revisions = {name: revision.rpartition("+")[2] for name, revision in settings["adapters"].items()}
    models, omitted = models_to_show(revisions, evaluation_settings, ABILITY)
    text = "; ".join(
        f"{name.replace('_', ' ')}: {own['turns']} turns of {own['conversations']} groups, {own['tokens']} tokens "
        f"({listed(own['written'])})"
        for name, own in results["text"].items()
    )
    versions = ", ".join(f"{package} {version}" for package, version in settings["versions"].items())
    paragraphs = [
        "Next-token distributions on held-out assistant turns without an attack, with 95 % bootstrap intervals over "
        f"groups. {text}. Left out: {listed(settings['dropped']) or 'none'}.",
        f"Multiple choice by log-likelihood, {results['multiple_choice']['questions']} questions of our own: enough "
        "to see a broken model, not to rank two. Behind a breaker's rate are the questions right for it only (+) and "
        "for the base model only (\u2212), and the exact McNemar p-value.",
        *(_task_words(name, task) for name, task in results["lm_eval"].items()),
        f"Seed {settings['seed']}; chat template {settings['template_hash']}; {versions}.",
        *(f"Warning: {warning}" for warning in results["warnings"] if warning.partition(",")[0] in models),
        *omitted,
    ]
    rows = ability_table_rows(results, models) if models else []
    details = [("By category of multiple choice", ["", *models], _category_rows(results, models))] if models else []
    return Section("ability", "General ability", paragraphs, models, rows, details)


def _task_words(name: str, task: dict) -> str:
    limit = f", at most {task['limit']} of each task" if task["limit"] is not None else ""
    shots = "/".join(map(str, task["few_shot"])) or "0"
    asked = "through the chat template" if task["generates"] else "as plain text"
    return f"lm-eval's {name} (version {task['version']}): {task['n']} questions{limit}, {shots}-shot, {asked}."


def _category_rows(results: dict, models: list[str]) -> list[tuple[str, ...]]:
    return [
        (
            f"{category} (n = {by_model[BASE]['acc']['n']})",
            *(f"{by_model[model]['acc']['value']:.1%}" for model in models),
        )
        for category, by_model in results["multiple_choice"]["categories"].items()
    ]
