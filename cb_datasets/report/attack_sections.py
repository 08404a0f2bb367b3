"""Report sections for adaptive attacks and the live AgentDojo benchmark.

Their results are files in the folder of the report:

    report/results.json                 the evaluation
    report/adaptive.json                `cb-datasets attack`: the ladder of attacks
    report/agentdojo/agentdojo.json     `cb-datasets agentdojo`: the live benchmark

A breaker may have been retrained after an attack: metrics of weights other than the evaluated ones are left out, and
the section says so.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..agentdojo import results as live
from ..attacks import adaptive_results as adaptive
from ..counts import listed
from ..evaluation.compare import BASE
from ..evaluation.results import ADAPTIVE_KEYS, LIVE_KEYS, is_evaluated
from ..files import read_json


ADAPTIVE = adaptive.ADAPTIVE_FILE
LIVE = f"agentdojo/{live.AGENTDOJO_FILE}"

_KEYS = {ADAPTIVE: ADAPTIVE_KEYS, LIVE: LIVE_KEYS}


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        anchor, title (`str`): Its id in the page, and its heading.
        paragraphs (`list[str]`): Text before the table: settings, and how to read the numbers.
        models (`list[str]`): Columns of the table; empty if there is no table.
        rows (`list[tuple[str, ...]]`): Rows of the table, `(label, cell of each model, ...)`.
    """

    anchor: str
    title: str
    paragraphs: list[str]
    models: list[str]
    rows: list[tuple[str, ...]]


def read_attack_results(folder: Path) -> dict[str, dict]:
    """Results of attacks and of the live benchmark in a report's folder, by file name relative to it.

    Raises:
        ValueError: If a file was not written by this version.
    """
    attack_results = {name: read_json(folder / name) for name in _KEYS if (folder / name).is_file()}
    for name, results in attack_results.items():
        if missing := sorted(set(_KEYS[name]) - results.keys()):
            raise ValueError(
                f"{folder / name}: not written by this version ({', '.join(missing)} is missing). Rerun `make attack` "
                "or `make agentdojo`, which resume from finished work, or delete the file."
            )
    return attack_results


def attack_sections(attack_results: Mapping[str, dict], evaluation_settings: dict) -> list[Section]:
    """Sections for the attacks and the live benchmark that have results.

    Args:
        attack_results (`Mapping[str, dict]`): Their results, see [`read_attack_results`].
        evaluation_settings (`dict`): Settings of the evaluation. Adapters that are not in them are left out.
    """
    sections = []
    if ADAPTIVE in attack_results:
        sections += _adaptive_sections(attack_results[ADAPTIVE], evaluation_settings)
    if LIVE in attack_results:
        sections.append(_live_section(attack_results[LIVE], evaluation_settings))
    return sections


def _adaptive_sections(results: dict, evaluation_settings: dict) -> list[Section]:
    settings = results["settings"]
    revisions = {
        name: str(model["revision"]).rpartition("+")[2] for name, model in settings["models"].items() if name != BASE
    }
    models, omitted = _models_to_show(revisions, evaluation_settings, ADAPTIVE)
    left_out = results["left_out"]
    excluded = f" (excluded, because they cannot be attacked: {listed(left_out)})" if left_out else ""
    versions = ", ".join(f"{package} {version}" for package, version in settings["versions"].items())
    paragraphs = [
        f"From {results['available']} prompts of {results['task']}{excluded}; n is the number of prompts of a rung. "
        "Every model is attacked with the same budget, which each rung names; success is judged by the greedy "
        "completion. "
        f"Seed {settings['seed']}; chat template {settings['template_hash']}; {versions}.",
        "An attack that finds nothing is no proof of robustness: a larger budget or another attack may succeed. Free "
        "vectors are no text: they bound what a search for tokens can reach.",
        *omitted,
    ]
    if errors := adaptive.errors_of(results, models):
        paragraphs.append(
            f"Answers missing because the prompt is too long, excluded from every denominator: {listed(errors)}."
        )
    rows = list(adaptive.adaptive_table_rows(results, models)) if models else []
    sections = [Section("adaptive", "Adaptive attacks", paragraphs, models, rows)]
    if models and "black_box" in results["rungs"]:
        text = (
            "Random compositions of known injections, without gradients or feedback. The curve is the expected ASR of "
            "the best of N compositions; other rows are per composition, and one of several families counts for each."
        )
        rows = list(adaptive.black_box_table_rows(results, models))
        sections.append(Section("black-box", "Black-box attacker in detail", [text], models, rows))
    return sections


def _live_section(results: dict, evaluation_settings: dict) -> Section:
    settings = results["settings"]
    models, omitted = _models_to_show(settings["adapters"], evaluation_settings, LIVE)
    models += [live.defended_name(defense) for defense in results["defenses"]] if models else []
    paragraphs = [
        f"AgentDojo {settings['benchmark']}, models served by {settings['engine']}; suites: "
        f"{', '.join(results['suites'])}; attack: {', '.join(results['attacks']) or 'none'}; greedy decoding, at most "
        f"{settings['max_new_tokens']} tokens per turn and {settings['max_steps']} turns with calls.",
        *omitted,
    ]
    failures = {name: Counter(failure["reason"] for failure in results["failures"][name]) for name in models}
    verdicts = ("verdicts of the runs", *(listed(results["verdicts"][name]) or "-" for name in models))
    failed = ("failed runs, excluded from all metrics", *(listed(failures[name]) or "-" for name in models))
    spelled = (
        f"runs whose text spells control tokens, {settings['spelled_control_tokens']}",
        *(str(results["spell_control_tokens"][name]) for name in models),
    )
    turns = ("turns of a run, median and maximum", *(_median_and_max(results["turns"][name]) for name in models))
    seconds = ("seconds of a run, the same", *(_median_and_max(results["seconds"][name]) for name in models))
    others = [turns, seconds, verdicts, failed, spelled]
    rows = [*live.agentdojo_table_rows(results, models), *others] if models else []
    return Section("agentdojo", "Live AgentDojo benchmark", paragraphs, models, rows)


def _median_and_max(values: dict | None) -> str:
    return "-" if values is None else f"{values['median']:.1f}, {values['max']:.1f}"


def _models_to_show(revisions: Mapping[str, str], evaluation_settings: dict, file: str) -> tuple[list[str], list[str]]:
    """The models of a table, and a paragraph about the models that are left out.

    The base model is shown for comparison only: without an evaluated adapter, no models are shown.
    """
    evaluated = evaluation_settings["adapters"]
    shown = [name for name, revision in revisions.items() if is_evaluated(evaluated, name, revision)]
    others = [f"{name} ({revision})" for name, revision in revisions.items() if name not in shown]
    omitted = [f"Not shown, because {file} has results of weights that are not evaluated here: {', '.join(others)}."]
    return [BASE, *shown] if shown else [], omitted if others else []
