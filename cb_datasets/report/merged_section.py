"""The section on merged weights: whether their outcomes are those of the adapter."""

from collections.abc import Mapping

from ..evaluation.merged_check import ADAPTER, MERGED
from ..evaluation.results import is_evaluated
from ..evaluation.statistics import format_rate
from .section import Section


# Files of checks, one for each dtype and engine.
MERGED_CHECKS = "merged_*.json"

MERGED_KEYS = ("dtype", "settings", "equal_outcomes", "equal_texts", "agrees", "by_task", "changes", "examples")

# Shown in the table of examples; the file has more of each text.
_CHARACTERS = 120


def merged_checks_file(dtype: str, backend: str) -> str:
    """Name of the file of a check."""
    return MERGED_CHECKS.replace("*", f"{dtype}_{backend}")


def merged_sections(checks: Mapping[str, dict], evaluation_settings: dict) -> list[Section]:
    """The section, if merged weights of the evaluated breaker were checked.

    Args:
        checks (`Mapping[str, dict]`): Results of `cb-datasets merge-adapter`, by file name.
        evaluation_settings (`dict`): Settings of the evaluation. Checks of adapters that are not in it are left out.
    """
    if not checks:
        return []
    shown = {
        f"{check['dtype']}, {check['settings']['backend'].removesuffix('Backend')}": check
        for check in checks.values()
        if _is_of_breaker(check, evaluation_settings)
    }
    stale = [name for name, check in checks.items() if not _is_of_breaker(check, evaluation_settings)]
    paragraphs = [
        "The breaker merged into its base model, against the adapter, on the same prompts with greedy decoding: the "
        "share of prompts with the same outcome. Weights loaded in 8 or 4 bits are another model, which this does not "
        "judge.",
        *(f"{name}: {_verdict(check)}" for name, check in shown.items()),
    ]
    if stale:
        paragraphs.append(f"Not shown, because they are of weights that are not evaluated here: {', '.join(stale)}.")
    rows = [("equal outcomes", *(format_rate(check["equal_outcomes"]) for check in shown.values()))]
    rows.append(("equal texts", *(format_rate(check["equal_texts"]) for check in shown.values())))
    for task in dict.fromkeys(task for check in shown.values() for task in check["by_task"]):
        cells = (format_rate(check["by_task"].get(task)) for check in shown.values())
        rows.append((f"equal outcomes: {task}", *cells))
    header = ["prompt", ADAPTER, MERGED, f"text of the {ADAPTER}", f"text of the {MERGED}"]
    examples = [(name, header, _examples(check)) for name, check in shown.items() if check["examples"]]
    details = [(f"Differing outcomes, {name}", header, rows) for name, header, rows in examples]
    return [Section("merged", "Merged weights", paragraphs, list(shown), rows if shown else [], details)]


def _is_of_breaker(check: dict, evaluation_settings: dict) -> bool:
    revision = check["settings"][ADAPTER]["revision"].rpartition("+")[2]
    return is_evaluated(evaluation_settings["adapters"], "breaker", revision)


def _verdict(check: dict) -> str:
    changes = ", ".join(f"{change} ({n})" for change, n in check["changes"].items())
    if check["agrees"]:
        return f"agrees with the adapter{' except for ' + changes if changes else ' on every prompt'}."
    return f"WARNING: fewer than {check['required']:.0%} of the outcomes are equal: {changes}."


def _examples(check: dict) -> list[tuple[str, ...]]:
    return [
        (
            example["id"],
            *(example[name]["outcome"] for name in (ADAPTER, MERGED)),
            *(example[name]["text"][:_CHARACTERS] for name in (ADAPTER, MERGED)),
        )
        for example in check["examples"]
    ]
