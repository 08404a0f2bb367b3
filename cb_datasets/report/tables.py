"""The tables of a report as rows of text: metrics, gates and coherence, for the terminal, Markdown and the page."""

from collections.abc import Callable, Mapping

from ..agentdojo.results import AGENTDOJO_METRICS
from ..evaluation.attack_kinds import FOLLOWED_MORE, MIN_PROMPTS, NOT_JUDGED, PASSED
from ..evaluation.compare import BASE
from ..evaluation.gates import BREAKER
from ..evaluation.metric_table import METRIC_LABELS
from ..evaluation.statistics import format_rate


# The metrics of live runs in the tables that have those of prompts too.
LIVE_LABELS = {name: f"live: {label}" for name, label in AGENTDOJO_METRICS.items()}


def metric_table_rows(
    metrics: dict,
    models: list[str],
    labels: Mapping[str, str] = METRIC_LABELS,
    cell: Callable[[dict | None], str] = format_rate,
) -> list[tuple[str, ...]]:
    """`(label, cell, cell, ...)` for every measured metric, with a cell for each model.

    Args:
        metrics (`dict`): Metrics by model: the results, or their `sampled`.
        models (`list[str]`): The models to show.
        labels (`Mapping[str, str]`, *optional*): Labels of the metrics.
        cell (`Callable`, *optional*): Text of a rate, or of `None` where there is none.
    """
    measured = [name for name in labels if any(name in metrics[model] for model in models)]
    return [(labels[name], *(cell(metrics[model].get(name)) for model in models)) for name in measured]


# With fewer groups, prompts of one of them can decide a rate.
MIN_GROUPS = 30

FEW_GROUPS_EXPLAINED = (
    f"Prompts of one group are about one request, and resemble each other. Where there are fewer than {MIN_GROUPS} "
    "groups, the interval over prompts is too narrow: these are the 95 % intervals of a bootstrap over groups. At 0 % "
    "and 100 % such an interval is a point and says nothing."
)


def few_groups_rows(results: dict, models: list[str]) -> list[tuple[str, ...]]:
    """`(label, cell, cell, ...)` for every metric of prompts with fewer than `MIN_GROUPS` groups."""
    few = [name for name in METRIC_LABELS if any(_is_of_few_groups(results[model].get(name)) for model in models)]
    return [(METRIC_LABELS[name], *(_group_cell(results[model].get(name)) for model in models)) for name in few]


def _is_of_few_groups(rate: dict | None) -> bool:
    # Results of older versions do not count groups.
    return rate is not None and rate.get("groups", MIN_GROUPS) < MIN_GROUPS


def _group_cell(rate: dict | None) -> str:
    if rate is None or "groups" not in rate:
        return "-"
    interval = "no interval" if rate["group_low"] is None else f"[{rate['group_low']:.1%}, {rate['group_high']:.1%}]"
    return f"{rate['value']:.1%}  {interval}  {rate['groups']} groups"


# The metrics of attacks whose prompts can be of several sources.
_BY_SOURCE = ("asr", "correct_under_attack", "multi_turn_asr", "multi_turn_correct")


def source_labels(results: dict) -> dict[str, str]:
    """Labels of the metrics of each source, `lookalike: attack success (ASR) ↓`, where attacks are of several sources.

    Sources differ in how hard their attacks are, so a rate over several depends on how many prompts each has.
    """
    sources = results["slices"].get("source", {})
    measured = {metric: [name for name in sources if metric in sources[name].get(BASE, {})] for metric in _BY_SOURCE}
    return {
        f"{metric}/{name}": f"{name}: {METRIC_LABELS[metric]}"
        for metric, names in measured.items()
        for name in names
        if len(names) > 1
    }


def source_metrics(results: dict, models: list[str]) -> dict[str, dict]:
    """The metrics of each source by model, under the names of [`source_labels`]."""
    sources = results["slices"].get("source", {})
    return {
        model: {
            f"{metric}/{name}": rate
            for name, by_model in sources.items()
            for metric, rate in by_model.get(model, {}).items()
        }
        for model in models
    }


def source_rows(results: dict, models: list[str]) -> list[tuple[str, ...]]:
    """`(label, cell, cell, ...)` for the metrics of [`source_labels`]; none where all attacks are of one source."""
    return metric_table_rows(source_metrics(results, models), models, source_labels(results))


def live_rows(results: dict, models: list[str]) -> list[tuple[str, ...]]:
    """`(label, cell, cell, ...)` for every metric of live runs; none if there were no such runs."""
    return metric_table_rows(live_metrics(results, models), models, LIVE_LABELS)


def all_rows(results: dict, models: list[str]) -> list[tuple[str, ...]]:
    """The table of metrics: of all prompts, of the attacks of each source, and of live runs."""
    return [*metric_table_rows(results, models), *source_rows(results, models), *live_rows(results, models)]


def live_metrics(results: dict, models: list[str]) -> dict[str, dict]:
    """The metrics of live runs by model; empty for a model without such runs."""
    metrics = results["live"]["metrics"] if "live" in results else {}
    return {model: metrics.get(model, {}) for model in models}


def gate_rows(results: dict) -> list[tuple[str, ...]]:
    """`(level, name, value, threshold, "pass" or "FAIL", note)` of each gate."""
    return [
        (
            gate["level"],
            gate["name"],
            "-" if gate["value"] is None else f"{gate['value']:.1%}",
            f"{gate['threshold']:.1%}",
            "pass" if gate["passed"] else "FAIL",
            gate["note"],
        )
        for gate in results["gates"]
    ]


GATE_HEADER = ["level", "gate", "value", "threshold", "", "made of"]

KINDS_EXPLAINED = (
    "Fraction of attacked prompts on which the model makes the attacker's call; after it, the numbers of prompts that "
    "only the breaker (+) and only the base model (\u2212) follow. FAIL: of these prompts the breaker follows "
    f"significantly more than half (95 % Wilson interval). Kinds with fewer than {MIN_PROMPTS} prompts are not judged "
    "unless they fail. Prefilled calls (forced_call) and forged turns (forged_turn) count in rows of their own only."
)

_VERDICTS = {FOLLOWED_MORE: "FAIL", PASSED: "pass", NOT_JUDGED: "not judged"}


def kind_header(results: dict) -> list[str]:
    """The header of [`kind_rows`]."""
    return ["kind of attack", "n", BASE, *(cell for name in results["attack_kinds"] for cell in (name, ""))]


def kind_rows(results: dict) -> list[tuple[str, ...]]:
    """`(kind, n, base rate, rate and changes of a breaker, its verdict, ...)`, the largest increase first."""
    by_breaker = {
        name: {(kind["field"], kind["value"]): kind for kind in kinds}
        for name, kinds in results["attack_kinds"].items()
    }
    rows = []
    for (field, value), first in by_breaker[BREAKER].items():
        # Another breaker lacks a kind if it has no completion of the kind's prompts.
        others = [kinds.get((field, value)) for kinds in by_breaker.values()]
        cells = [cell for kind in others for cell in _kind_cells(kind)]
        rows.append((f"{field}: {value}", str(first["n"]), f"{first['base']:.1%}", *cells))
    return rows


def _kind_cells(kind: dict | None) -> tuple[str, str]:
    if kind is None:
        return "-", "-"
    return f"{kind['breaker']:.1%} (+{kind['gained']} \u2212{kind['lost']})", _VERDICTS[kind["verdict"]]


def coherence_rows(results: dict) -> list[tuple[str, ...]]:
    """`(model, repetition, entropy, perplexity)` of each model."""
    rows: list[tuple[str, ...]] = []
    for model, coherence in results["coherence"].items():
        perplexity = coherence["perplexity_under_base"]
        cell = "-" if perplexity is None else f"{perplexity:.3g} ({coherence['perplexity_n']} prompts)"
        rows.append((model, f"{coherence['repetition']:.1%}", f"{coherence['entropy']:.2f}", cell))
    return rows


COHERENCE_HEADER = ["", "repeated text", "entropy of words, bits", "perplexity for the base model"]
