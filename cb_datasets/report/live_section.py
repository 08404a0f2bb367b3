"""The section on the live benchmark, and what `results.json` and the page say of live runs."""

from collections import Counter
from collections.abc import Mapping

from ..agentdojo.live_runs import defended_name
from ..agentdojo.results import AGENTDOJO_FILE, AGENTDOJO_METRICS
from ..counts import listed
from ..evaluation.statistics import format_rate
from .section import Section, models_to_show
from .slices import SliceTable, slice_rows


LIVE = f"agentdojo/{AGENTDOJO_FILE}"


_READING = (
    "Behind a breaker's rate are the runs that count for it only (+) and for the base model only (\u2212), and the "
    "exact McNemar p-value. The conversations are among the prompts of the page, under the task live."
)


def live_section(results: dict, evaluation_settings: dict) -> Section:
    """The section on the live benchmark: metrics of the evaluated models, over all runs and by part."""
    settings = results["settings"]
    models, omitted = models_to_show(settings["adapters"], evaluation_settings, LIVE)
    models += [defended_name(defense) for defense in results["defenses"]] if models else []
    paragraphs = [
        f"AgentDojo {settings['benchmark']}, models served by {settings['engine']}; suites: "
        f"{', '.join(results['suites'])}; attack: {', '.join(results['attacks']) or 'none'}; greedy decoding, at most "
        f"{settings['max_new_tokens']} tokens per turn and {settings['max_steps']} turns with calls.",
        *([_READING] if models else []),
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
    pairs = (
        "pairs of tasks with a failed run, excluded from the rate over pairs",
        *(str(results["failed_pairs"][name]) for name in models),
    )
    others = [turns, seconds, verdicts, failed, *([pairs] if len(results["attacks"]) > 1 else []), spelled]
    if not models:
        return Section("agentdojo", "Live AgentDojo benchmark", paragraphs, [], [])
    rows = [*_with_changes(results, models), *others]
    details = [(f"By {name}", *_slices(results, name, models)) for name in results["slices"]]
    return Section("agentdojo", "Live AgentDojo benchmark", paragraphs, models, rows, details)


def _with_changes(results: dict, models: list[str]) -> list[tuple[str, ...]]:
    """The rows of the metrics, with the paired changes in the cells of the breakers."""
    changed = results["changed"]
    return [
        (label, *(_cell(results[model].get(metric), changed.get(model, {}).get(metric)) for model in models))
        for metric, label in AGENTDOJO_METRICS.items()
        if any(metric in results[model] for model in models)
    ]


def _cell(rate: dict | None, change: dict | None) -> str:
    if change is None:
        return format_rate(rate)
    return f"{format_rate(rate)} (+{change['gained']} \u2212{change['lost']}, p = {change['p']:.2g})"


def _slices(results: dict, field_name: str, models: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    slices = results["slices"][field_name]
    measured = {metric for by_model in slices.values() for rates in by_model.values() for metric in rates}
    table = SliceTable(field_name, [name for name in AGENTDOJO_METRICS if name in measured], list(slices.items()))
    return slice_rows(table, models, AGENTDOJO_METRICS)


def live_summary(attack_results: Mapping[str, dict], evaluation_settings: dict) -> dict | None:
    """What `results.json` says of live runs, or `None`: settings, metrics and changes of the evaluated models."""
    results = attack_results.get(LIVE)
    if results is None:
        return None
    models, _ = models_to_show(results["settings"]["adapters"], evaluation_settings, LIVE)
    if not models:
        return None
    changed = {name: results["changed"][name] for name in models if name in results["changed"]}
    return {
        "settings": results["settings"],
        "metrics": {name: results[name] for name in models},
        "changed": changed,
    }


def live_runs(attack_results: Mapping[str, dict], evaluation_settings: dict) -> list[dict]:
    """The live runs, side by side, with the answers of the evaluated models only."""
    summary = live_summary(attack_results, evaluation_settings)
    if summary is None:
        return []
    return [
        {**run, "answers": {name: answer for name, answer in run["answers"].items() if name in summary["metrics"]}}
        for run in attack_results[LIVE]["runs"]
    ]


def _median_and_max(values: dict | None) -> str:
    return "-" if values is None else f"{values['median']:.1f}, {values['max']:.1f}"
