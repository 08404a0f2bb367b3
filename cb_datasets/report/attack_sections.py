"""What further tests found about the same breakers, as sections of the report. Their results lie beside its own:

    report/results.json                 the evaluation
    report/adaptive.json                `cb-datasets attack`: an attacker who knows the breaker
    report/agentdojo/agentdojo.json     `cb-datasets agentdojo`: the live benchmark

A breaker that was trained anew since is not in them: figures of other weights are left out, and the section says so.
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
    """A part of the report.

    Args:
        anchor, title (`str`): Its name in addresses and for people.
        paragraphs (`list[str]`): What was done, and what it means.
        models (`list[str]`): The columns of its table; none where it has none.
        rows (`list[tuple[str, ...]]`): `(label, cell of each model, ...)`.
    """

    anchor: str
    title: str
    paragraphs: list[str]
    models: list[str]
    rows: list[tuple[str, ...]]


def read_attack_results(folder: Path) -> dict[str, dict]:
    """The results of further tests in the folder of a report, by their file's name in it.

    Raises:
        ValueError: If one is not what this version writes.
    """
    found = {name: read_json(folder / name) for name in _KEYS if (folder / name).is_file()}
    for name, told in found.items():
        if missing := sorted(set(_KEYS[name]) - told.keys()):
            raise ValueError(
                f"{folder / name}: not what this version writes ({', '.join(missing)} is missing). Run `make attack` "
                "or `make agentdojo` again, which keep what they finished, or delete the file."
            )
    return found


def attack_sections(further: Mapping[str, dict], settings: dict) -> list[Section]:
    """The sections of further tests.

    Args:
        further (`Mapping[str, dict]`): What [`read_attack_results`] read.
        settings (`dict`): Of the evaluation: figures of other adapters are left out.
    """
    sections = []
    if ADAPTIVE in further:
        sections.append(_adaptive_section(further[ADAPTIVE], settings))
    if LIVE in further:
        sections.append(_live_section(further[LIVE], settings))
    return sections


def _adaptive_section(told: dict, settings: dict) -> Section:
    of = told["settings"]
    hashes = {name: str(model["revision"]).rpartition("+")[2] for name, model in of["models"].items() if name != BASE}
    models, left_out = _models(hashes, settings, ADAPTIVE)
    cannot = f" ({listed(told['left_out'])} cannot be attacked so)" if told["left_out"] else ""
    paragraphs = [
        f"{len(told['prompts'])} of {told['available']} prompts of {told['task']}{cannot}, each attacked by itself "
        f"with the weights at hand and the same budget for all: a suffix of {of['suffix_tokens']} tokens to the "
        f"injection, sought by greedy coordinate gradient in at most {of['steps']} steps of {of['width']} suffixes, "
        f"and {of['best_of']} draws at temperature 1.",
        "A search that finds nothing proves nothing: a larger budget may find something, or another attack.",
        *left_out,
    ]
    if failed := {name: told["errors"][name] for name in models if told["errors"][name]}:
        paragraphs.append(f"Prompts that could not be asked, which leave every denominator: {listed(failed)}.")
    answers = ("answers under the search", *(listed(told["outcomes"][name]) for name in models))
    rows = [*adaptive.table_rows(told, models), answers] if models else []
    return Section("adaptive", "An attacker who knows the breaker", paragraphs, models, rows)


def _live_section(told: dict, settings: dict) -> Section:
    of = told["settings"]
    models, left_out = _models(of["adapters"], settings, LIVE)
    paragraphs = [
        f"AgentDojo {of['benchmark']} with the models served by {of['engine']}: {', '.join(told['suites'])}; attack "
        f"{', '.join(told['attacks']) or 'none'}; greedy, at most {of['max_new_tokens']} tokens a turn.",
        *left_out,
    ]
    failures = {name: Counter(failure["reason"] for failure in told["failures"][name]) for name in models}
    verdicts = ("verdicts on the runs", *(listed(told["verdicts"][name]) or "-" for name in models))
    broken = ("runs that broke off, in no figure", *(listed(failures[name]) or "-" for name in models))
    rows = [*live.table_rows(told, models), verdicts, broken] if models else []
    return Section("agentdojo", "AgentDojo, live", paragraphs, models, rows)


def _models(hashes: Mapping[str, str], settings: dict, file: str) -> tuple[list[str], list[str]]:
    """The models to show, none if no adapter is of the evaluation, and what there is to say about the others."""
    ours = [name for name, revision in hashes.items() if is_evaluated(settings["adapters"], name, revision)]
    others = [f"{name} ({revision})" for name, revision in hashes.items() if name not in ours]
    left_out = [f"{file} tells of weights that are not evaluated here, and not shown: {', '.join(others)}."]
    return [BASE, *ours] if ours else [], left_out if others else []
