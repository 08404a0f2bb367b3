"""Report sections for general ability, adaptive attacks, tampering, the live AgentDojo benchmark and merged weights.

Their results are files in the folder of the report:

    report/results.json                 the evaluation
    report/ability.json                 `cb-datasets ability`: what else the breaker changed
    report/adaptive.json                `cb-datasets attack`: the ladder of attacks
    report/tampering.json               `cb-datasets attack --tamper`: fine-tuned breakers
    report/agentdojo/agentdojo.json     `cb-datasets agentdojo`: the live benchmark
    report/merged_<dtype>_<engine>.json `cb-datasets merge-adapter`: merged weights against the adapter

A breaker may have been retrained after an attack: metrics of weights other than the evaluated ones are left out, and
the section says so.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from ..attacks import adaptive_results as adaptive
from ..counts import listed
from ..evaluation.ability.ability import ABILITY_KEYS
from ..evaluation.results import ADAPTIVE_KEYS, LIVE_KEYS, TAMPERING_KEYS
from ..files import read_json
from .ability_section import ABILITY, ability_section
from .live_section import LIVE, live_section
from .merged_section import MERGED_CHECKS, MERGED_KEYS, merged_sections
from .section import Section, adapter_revisions, models_to_show
from .tampering_section import TAMPERING, tampering_sections


ADAPTIVE = adaptive.ADAPTIVE_FILE

_KEYS = {
    **{ABILITY: ABILITY_KEYS, ADAPTIVE: ADAPTIVE_KEYS, TAMPERING: TAMPERING_KEYS, LIVE: LIVE_KEYS},
    MERGED_CHECKS: MERGED_KEYS,
}


def read_attack_results(folder: Path) -> dict[str, dict]:
    """Results of the other commands in a report's folder, by file name relative to it.

    Raises:
        ValueError: If a file was not written by this version.
    """
    attack_results = {}
    for pattern, keys in _KEYS.items():
        for path in sorted(folder.glob(pattern)):
            results = read_json(path)
            if missing := sorted(set(keys) - results.keys()):
                raise ValueError(
                    f"{path}: not written by this version ({', '.join(missing)} is missing). Rerun `make attack`, "
                    "`make agentdojo`, `cb-datasets ability` or `cb-datasets merge-adapter`, which resume from "
                    "finished work, or delete the file."
                )
            attack_results[str(path.relative_to(folder))] = results
    return attack_results


def attack_sections(attack_results: Mapping[str, dict], evaluation_settings: dict) -> list[Section]:
    """Sections for the other commands that have results.

    Args:
        attack_results (`Mapping[str, dict]`): Their results, see [`read_attack_results`].
        evaluation_settings (`dict`): Settings of the evaluation. Adapters that are not in them are left out.
    """
    sections = []
    if ABILITY in attack_results:
        sections.append(ability_section(attack_results[ABILITY], evaluation_settings))
    if ADAPTIVE in attack_results:
        sections += _adaptive_sections(attack_results[ADAPTIVE], evaluation_settings)
    if TAMPERING in attack_results:
        sections += tampering_sections(attack_results[TAMPERING], evaluation_settings)
    if LIVE in attack_results:
        sections.append(live_section(attack_results[LIVE], evaluation_settings))
    checks = {name: check for name, check in attack_results.items() if fnmatch(name, MERGED_CHECKS)}
    return sections + merged_sections(checks, evaluation_settings)


def _adaptive_sections(results: dict, evaluation_settings: dict) -> list[Section]:
    settings = results["settings"]
    models, omitted = models_to_show(adapter_revisions(settings), evaluation_settings, ADAPTIVE)
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
