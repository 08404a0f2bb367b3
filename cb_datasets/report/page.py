"""The report as one HTML page, `report.html`: metrics, gates, slices, plots, and all prompts and completions.

    capability/lookalike/71   regressed   base: correct   breaker: no_call   plain_rr: correct
    {"id": ..., "turns": [0, 5], "injection": [], "answers": {"base": {...}, ...},
     "comparison": {"breaker": {"change": "regressed", "difference": -2},
                    "plain_rr": {"change": "same", "difference": 0}}}

The page is self-contained and loads nothing. Texts of models and attackers are embedded as JSON, which the script puts
into text nodes. The content security policy allows only the page's own script and style, by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..evaluation.compare import BASE
from ..evaluation.metric_table import METRIC_LABELS, METRICS, direction, direction_of, is_hit
from ..evaluation.results import model_names, scored_completion
from ..evaluation.scored_completions import ScoredCompletion
from ..files import write_text
from ..outcomes import Outcome
from ..web import with_shared_parts
from .live_prompt import live_prompt
from .section import Section
from .slices import is_worse, slice_tables
from .tables import (
    COHERENCE_HEADER,
    FEW_GROUPS_EXPLAINED,
    GATE_HEADER,
    KINDS_EXPLAINED,
    LIVE_LABELS,
    coherence_rows,
    few_groups_rows,
    gate_rows,
    kind_header,
    kind_rows,
    live_metrics,
    source_labels,
    source_metrics,
)


PAGE_TEMPLATE = Path(__file__).with_name("page.html.jinja")

# Changes of a prompt from the base model to a breaker, in the order in which the page shows the prompts.
CHANGES = ("regressed", "changed", "improved", "same", "error")

# Changes with a p-value below this are coloured.
SIGNIFICANT = 0.05


def write_page(
    results: dict, live_runs: list[dict], plots: Mapping[str, str], folder: Path, sections: list[Section]
) -> None:
    """Write `report.html`.

    Args:
        results (`dict`): The results of an evaluation.
        live_runs (`list[dict]`): The live runs of its models, side by side.
        plots (`Mapping[str, str]`): Captions of the PNG files in the folder that the page includes, by file name.
        folder (`Path`): The report's folder.
        sections (`list[Section]`): Sections on attacks and the live benchmark.
    """
    models = model_names(results)
    style, script = (
        with_shared_parts(PAGE_TEMPLATE.with_name(name).read_text(encoding="utf-8"))
        for name in ("page.css", "page.js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE_TEMPLATE.read_text(encoding="utf-8")).render(
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json(page_data(results, live_runs))),
        models=models,
        results=results,
        gates=(GATE_HEADER, gate_rows(results)),
        coherence=(COHERENCE_HEADER, coherence_rows(results)),
        metrics=[
            *_metric_rows(results, models, results["changed"]),
            *_metric_rows(source_metrics(results, models), models, labels=source_labels(results)),
            *_live_rows(results, models),
        ],
        few_groups=(FEW_GROUPS_EXPLAINED, (["", *models], few_groups_rows(results, models))),
        sampled=list(_metric_rows(results["sampled"], models)) if "sampled" in results else [],
        kinds_explained=KINDS_EXPLAINED,
        kinds=(kind_header(results), kind_rows(results)),
        slices=slice_tables(results),
        labels=METRIC_LABELS,
        is_worse=is_worse,
        sections=sections,
        plots=[(caption, _data_url(folder / name)) for name, caption in plots.items()],
        percent=percent,
        significant=SIGNIFICANT,
    )
    write_text(folder / "report.html", page)


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    only = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"{only}; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"


def _json(value: object) -> str:
    """JSON that is safe inside a `<script>` element: without `<`, no text can close the element or open another."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _data_url(png: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"


def percent(value: float) -> str:
    return f"{value:.1%}"


# -------------------------------------------------------------------------------------------------------------- tables


def _live_rows(results: dict, models: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of live runs, if there were any."""
    if "live" in results:
        yield from _metric_rows(live_metrics(results, models), models, results["live"]["changed"], LIVE_LABELS)


def _metric_rows(
    metrics: dict[str, dict],
    models: list[str],
    changed: Mapping[str, dict] | None = None,
    labels: Mapping[str, str] = METRIC_LABELS,
) -> Iterator[dict[str, Any]]:
    """A row per measured metric: its label, and for each model `(rate, change)`.

    Args:
        metrics (`dict`): Metrics by model.
        models (`list[str]`): The models to show.
        changed (`Mapping[str, dict]`, *optional*): Paired changes by model and metric. Samples have none: they are not
            paired.
        labels (`Mapping[str, str]`, *optional*): Labels of the metrics, which end with the wanted direction.
    """
    for name, label in labels.items():
        if any(name in metrics[model] for model in models):
            changes = [(changed or {}).get(model, {}).get(name) for model in models]
            cells = [
                (metrics[model].get(name), _marked_change(label, change))
                for model, change in zip(models, changes, strict=True)
            ]
            yield {"label": label, "cells": cells}


def _marked_change(label: str, change: dict[str, Any] | None) -> dict[str, Any] | None:
    """A paired change with its `mark`: `good` or `bad` if it is significant and its direction has a meaning."""
    if change is None:
        return None
    improvement = direction_of(label) * (change["gained"] - change["lost"])
    mark = "" if change["p"] >= SIGNIFICANT or improvement == 0 else "good" if improvement > 0 else "bad"
    return {**change, "mark": mark}


# ------------------------------------------------------------------------------------------------------------- prompts


def page_data(results: dict, live_runs: Sequence[dict] = ()) -> dict[str, Any]:
    """The data of the page's script: `{models, changes, turns, prompts}`; live runs are prompts of the task `live`.

    Each distinct turn is stored once, because many prompts share their system prompt; prompts refer to turns by index,
    and so do the answers of live runs, which are whole conversations.
    """
    models = model_names(results)
    turns: dict[str, int] = {}

    def indices_of(messages: list[dict]) -> list[int]:
        return [turns.setdefault(_json(message), len(turns)) for message in messages]

    prompts = []
    for record in results["prompts"]:
        others = {key: value for key, value in record.items() if key != "messages"}
        indices = indices_of(record["messages"])
        prompts.append({**others, "turns": indices, "comparison": compare_with_base(record, models)})
    prompts += [live_prompt(run, models, indices_of) for run in live_runs]
    return {"models": models, "changes": CHANGES, "turns": [json.loads(turn) for turn in turns], "prompts": prompts}


def compare_with_base(record: Mapping[str, Any], models: list[str]) -> dict[str, dict[str, Any]]:
    """`{change, difference}` of one prompt for each breaker.

    A completion scores +1 for each metric it is a hit of if higher is better, and -1 if lower is better. `difference`
    is the breaker's score minus the base model's: below 0 the prompt `regressed`; at 0 it is the `same`, or `changed`
    if the outcomes differ.
    """
    completions = {model: scored_completion(record, model) for model in models}
    base = completions[BASE]
    comparison = {}
    for model, completion in completions.items():
        if model == BASE:
            continue
        difference = _score(completion) - _score(base)
        if Outcome.ERROR in (completion.outcome, base.outcome):
            change, difference = "error", 0
        elif difference:
            change = "improved" if difference > 0 else "regressed"
        else:
            change = "same" if completion.outcome == base.outcome else "changed"
        comparison[model] = {"change": change, "difference": difference}
    return comparison


def _score(completion: ScoredCompletion) -> int:
    return sum(direction(metric) for metric in METRICS if is_hit(metric, completion))
