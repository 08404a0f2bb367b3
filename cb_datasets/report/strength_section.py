"""The section on the strength of a breaker's adapter: metrics by scale, and the recommended scale.

|                     | 0 (base) | 0.5    | 1 (breaker) |
| attack success ↓    | 99.5% …  | 40.2%  | 1.5% …      |
"""

from collections.abc import Callable, Mapping

from ..evaluation.compare import BASE
from ..evaluation.gates import BREAKER
from ..evaluation.statistics import format_rate
from ..evaluation.strength import BASE_SCALE, TRAINED_SCALE
from .section import Section
from .tables import metric_table_rows


# Marks the recommended scale in the plot.
STAR = "\u2605"

_NAMES = {BASE_SCALE: BASE, TRAINED_SCALE: BREAKER}


def strength_sections(results: dict) -> list[Section]:
    """The section, if the evaluation measured several scales.

    Args:
        results (`dict`): The results of an evaluation.
    """
    if "strength" not in results:
        return []
    strength = results["strength"]
    header, rows = strength_rows(strength)
    paragraphs = [
        "The adapter's update of the weights times a scale: 0 is the base model, 1 the adapter as trained. All "
        "prompts, greedy decoding; the gates are those of all levels.",
        recommendation(strength),
        strength["choice"]["rule"],
    ]
    return [Section("strength", "Strength of the adapter", paragraphs, header[1:], rows, _choice_tables(strength))]


def strength_rows(
    strength: dict, cell: Callable[[dict | None], str] = format_rate
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of the table over scales: every metric, failed gates, and prompts without a completion.

    Args:
        strength (`dict`): The results' `strength`.
        cell (`Callable`, *optional*): Text of a rate.
    """
    metrics = {_label(each["scale"]): each["metrics"] for each in strength["scales"]}
    rows = metric_table_rows(metrics, list(metrics), cell=cell)
    rows.append(("failed gates", *(_failed(each) for each in strength["scales"])))
    rows.append(("prompts without a completion", *(str(each["errors"]) for each in strength["scales"])))
    return ["", *metrics], rows


def recommendation(strength: dict) -> str:
    """One sentence on the recommended scale, and on which prompts it was chosen and is reported."""
    choice = strength["choice"]
    chosen_on, report = choice["chosen_on"]["prompts"], choice["reported_on"]
    if choice["scale"] is None:
        return (
            f"No scale is recommended: on the {chosen_on} prompts to choose on, each fails a gate of level base or "
            "stage 1."
        )
    failed = report["failed_gates"]
    verdict = f"fails {', '.join(failed)}" if failed else "passes all gates"
    return (
        f"Recommended scale: {choice['scale']:g}, chosen on {chosen_on} prompts, one half of the groups. On the "
        f"{report['prompts']} prompts of the other half it {verdict}. Quote its metrics on that half: those of all "
        "prompts are optimistic, because half of them chose the scale."
    )


def strength_runs(results: dict) -> Mapping[str, dict]:
    """The scales as evaluations of the breaker, the recommended one with a star, for the plot of several."""
    strength = results["strength"]
    chosen = strength["choice"]["scale"]
    return {
        f"{each['scale']:g}{STAR if each['scale'] == chosen else ''}": {
            "settings": {"adapters": {BREAKER: ""}},
            BASE: results[BASE],
            BREAKER: each["metrics"],
        }
        for each in strength["scales"]
    }


def _choice_tables(strength: dict) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
    """The gates by which the scale was chosen, and the metrics of that scale on the other half of the prompts."""
    choice = strength["choice"]
    rows: list[tuple[str, ...]] = [(f"{each['scale']:g}", _failed(each)) for each in choice["chosen_on"]["scales"]]
    tables = [(f"Choice, on {choice['chosen_on']['prompts']} prompts", ["scale", "failed gates"], rows)]
    if choice["scale"] is not None:
        report = choice["reported_on"]
        title = f"Scale {choice['scale']:g} on {report['prompts']} prompts that did not choose it"
        tables.append((title, ["", BASE, f"scale {choice['scale']:g}"], metric_table_rows(report, [BASE, BREAKER])))
    return tables


def _label(scale: float) -> str:
    return f"{scale:g} ({_NAMES[scale]})" if scale in _NAMES else f"{scale:g}"


def _failed(scale: dict) -> str:
    if scale["scale"] == BASE_SCALE:
        return "-"
    return ", ".join(scale["failed_gates"]) or "none"
