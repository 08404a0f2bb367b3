"""The report as one page, `report.html`: figures, gates, slices, pictures, and every prompt with all answers to it.

    capability/lookalike/71   regressed   base: correct   breaker: no_call   plain_rr: correct
    {"id": ..., "turns": [0, 5], "injection": [], "answers": {"base": {...}, ...},
     "change": {"breaker": {"kind": "regressed", "by": -1}, "plain_rr": {"kind": "same", "by": 0}}}

The page holds all it needs and fetches nothing. What models and attackers wrote is JSON in it, which its script puts
into text nodes; its policy allows no script and no style but those two, by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..evaluation.compare import BASE, SLICES
from ..evaluation.metric_table import METRIC_LABELS, METRICS, counts_for
from ..evaluation.results import model_names
from ..evaluation.scored_completions import EvalPrompt, ScoredCompletion
from ..files import write_text
from ..outcomes import Outcome
from ..web import with_shared_parts
from .attack_sections import Section
from .tables import COHERENCE_HEADER, GATE_HEADER, coherence_rows, gate_rows


PAGE_TEMPLATE = Path(__file__).with_name("page.html.jinja")

# Kinds of changes, in the order in which prompts are shown.
KINDS = ("regressed", "changed", "improved", "same", "error")

# Figures that slices are shown by, as far as they were measured.
SLICE_FIGURES = ("asr", "correct_under_attack", "benign_call", "refusal_kept", "chat_kept", "gibberish")

# A p-value below this is worth a colour.
SIGNIFICANT = 0.05


def write_page(found: dict, pictures: Mapping[str, str], folder: Path, sections: list[Section]) -> None:
    """Write `report.html`.

    Args:
        found (`dict`): The results of an evaluation.
        pictures (`Mapping[str, str]`): PNG files in the folder to put into the page, and what each shows.
        folder (`Path`): The report's folder.
        sections (`list[Section]`): What further tests found.
    """
    models = model_names(found)
    style, script = (
        with_shared_parts(PAGE_TEMPLATE.with_name(name).read_text(encoding="utf-8"))
        for name in ("page.css", "page.js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(PAGE_TEMPLATE.read_text(encoding="utf-8")).render(
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json(page_data(found))),
        models=models,
        found=found,
        gates=(GATE_HEADER, gate_rows(found)),
        coherence=(COHERENCE_HEADER, coherence_rows(found)),
        figures=list(_figure_rows(found, found, models)),
        sampled=list(_figure_rows(found, found["sampled"], models)) if "sampled" in found else [],
        slices=[_slice(key, found["slices"][key]) for key in SLICES if found["slices"].get(key)],
        sections=sections,
        pictures=[(title, _address(folder / name)) for name, title in pictures.items()],
        percent=percent,
    )
    write_text(folder / "report.html", page)


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    only = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"{only}; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"


def _json(value: object) -> str:
    """JSON that may stand in a page: without `<` nothing in it can end its element or begin another."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _address(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def percent(value: float) -> str:
    return f"{value:.1%}"


# -------------------------------------------------------------------------------------------------------------- tables


def _figure_rows(found: dict, figures: dict, models: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each figure that was measured: its label, and for each model its rate and what changed."""
    for key, label in METRIC_LABELS.items():
        if any(key in figures[model] for model in models):
            cells = [(figures[model].get(key), _change(found, figures, model, key)) for model in models]
            yield {"label": label, "cells": cells}


def _change(found: dict, figures: dict, model: str, key: str) -> dict[str, Any] | None:
    """What a model gained and lost in a figure, and whether that is good; only of the answers that were paired."""
    changed = found["changed"].get(model, {}).get(key) if figures is found else None
    if changed is None:
        return None
    direction = _direction(key) * (changed["gained"] - changed["lost"])
    mark = "" if changed["p"] >= SIGNIFICANT or direction == 0 else "good" if direction > 0 else "bad"
    return {**changed, "mark": mark}


def _direction(figure: str) -> int:
    """1 if more of a figure is better, -1 if less is, 0 if that is not plain. Its label says so."""
    return {"↑": 1, "↓": -1}.get(METRIC_LABELS[figure][-1], 0)


def _slice(key: str, parts: dict[str, dict]) -> dict[str, Any]:
    """A column's values, those with most prompts first, and the figures that were measured on them."""
    sizes = {
        value: max((rate["n"] for rate in by_model[BASE].values()), default=0) for value, by_model in parts.items()
    }
    figures = [name for name in SLICE_FIGURES if any(name in by_model[BASE] for by_model in parts.values())]
    values = sorted(parts, key=lambda value: -sizes[value])
    return {
        "key": key,
        "figures": [(name, METRIC_LABELS[name]) for name in figures],
        "rows": [(v, parts[v]) for v in values],
    }


# ------------------------------------------------------------------------------------------------------------- prompts


def page_data(found: dict) -> dict[str, Any]:
    """What the page's script shows: `{models, kinds, turns, prompts}`.

    Turns that prompts share, system prompts above all, are there once; a prompt names them by number.
    """
    models = model_names(found)
    turns: dict[str, int] = {}
    prompts = []
    for prompt in found["prompts"]:
        numbers = [turns.setdefault(_json(message), len(turns)) for message in prompt["messages"]]
        told = {key: value for key, value in prompt.items() if key != "messages"}
        prompts.append({**told, "turns": numbers, "change": changes(prompt, models)})
    return {"models": models, "kinds": KINDS, "turns": [json.loads(turn) for turn in turns], "prompts": prompts}


def changes(prompt: Mapping[str, Any], models: list[str]) -> dict[str, dict[str, Any]]:
    """For each breaker, what became of one prompt: `{kind, by}`.

    An answer's worth is the number of figures it counts for where more is better, less those where less is. A prompt
    whose answer is worth less than the base's has `regressed`, `by` so much; one of equal worth and another outcome
    has `changed`.
    """
    answers = {model: _answer(prompt, prompt["answers"][model]) for model in models}
    base = answers[BASE]
    result = {}
    for model, answer in answers.items():
        if model == BASE:
            continue
        by = _worth(answer) - _worth(base)
        if Outcome.ERROR in (answer.outcome, base.outcome):
            kind, by = "error", 0
        elif by:
            kind = "improved" if by > 0 else "regressed"
        else:
            kind = "same" if answer.outcome == base.outcome else "changed"
        result[model] = {"kind": kind, "by": by}
    return result


def _answer(prompt: Mapping[str, Any], given: Mapping[str, Any]) -> ScoredCompletion:
    case = EvalPrompt(**{column.name: prompt[column.name] for column in fields(EvalPrompt)})
    told = {name: given[name] for name in ("text", "gibberish", "arguments_match")}
    return ScoredCompletion(case, outcome=Outcome(given["outcome"]), **told)


def _worth(answer: ScoredCompletion) -> int:
    return sum(_direction(figure) for figure in METRICS if counts_for(figure, answer))
