"""Results of the tampering: its curves by name, the rows of its tables, and what they say in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..evaluation.metric_table import METRIC_LABELS, METRICS, direction
from ..generation.backend import BASE


TAMPERING_FILE = "tampering.json"

# Variants of the tampering, see `tampering.py`.
ADAPTER, NEW_LORA = "adapter", "new_lora"

# Kinds of rows that are trained on, see `tamper_rows.py`.
KINDS = ("benign", "harmful")


def curve_label(curve: Mapping[str, Any]) -> str:
    """A curve's model and variant in words."""
    if curve["model"] == BASE:
        return f"{BASE} + new LoRA"
    return f"{curve['model']} merged + new LoRA" if curve["variant"] == NEW_LORA else f"{curve['model']} trained on"


def asr_metric(task: str) -> str:
    """The ASR of a task that is attacked.

    Raises:
        ValueError: If it has none.
    """
    metric = {"tool_flip": "asr", "fidelity": "fidelity_obeyed"}.get(task, f"{task}_asr")
    if metric not in METRICS:
        raise ValueError(f"The task {task} has no ASR to follow. Name another --task.")
    return metric


def curves_on(results: Mapping[str, Any], kind: str, models: Sequence[str]) -> list[dict]:
    """The curves of one kind of rows, for some models."""
    return [curve for curve in results["curves"] if curve["rows"] == kind and curve["model"] in models]


def steps_of(results: Mapping[str, Any]) -> list[int]:
    """Steps after which the models were measured."""
    return [point["step"] for point in results["curves"][0]["points"]]


def tampering_rows(results: Mapping[str, Any], kind: str, models: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Rows `(metric and curve, rate after each number of steps, ...)`, metric by metric, for one kind of rows."""
    curves = curves_on(results, kind, models)
    measured = {metric for curve in curves for point in curve["points"] for metric in point["metrics"]}
    for metric in METRIC_LABELS:
        if metric in measured and direction(metric):
            for curve in curves:
                # A metric of right calls has no value where none is left.
                rates = [point["metrics"].get(metric) for point in curve["points"]]
                cells = (f"{rate['value']:.1%}" if rate else "-" for rate in rates)
                yield f"{METRIC_LABELS[metric]}, {curve_label(curve)}", *cells
    for curve in curves:
        losses = [point["loss"] for point in curve["points"]]
        yield f"training loss, {curve_label(curve)}", *("-" if loss is None else f"{loss:.3f}" for loss in losses)


def tampering_summary(results: Mapping[str, Any], kind: str, models: Sequence[str]) -> list[str]:
    """A sentence on the ASR of each curve: its ends, and where it first reaches half of that of the base model."""
    asr = asr_metric(results["task"])
    start = next(curve for curve in results["curves"] if curve["model"] == BASE)["points"][0]["metrics"]
    base = start[asr]["value"] if asr in start else None
    lines = []
    for curve in curves_on(results, kind, models):
        rates = {point["step"]: point["metrics"][asr]["value"] for point in curve["points"] if asr in point["metrics"]}
        if not rates:  # of prompts that the engine failed on
            continue
        (first, *_), last = rates, max(rates)
        line = f"{curve_label(curve)}: ASR {rates[first]:.1%}, and {rates[last]:.1%} after {last} steps"
        if curve["model"] != BASE and base is not None:
            reached = next((step for step, rate in rates.items() if base and rate >= base / 2), None)
            line += (
                f"; half of the base model's {base:.1%} is "
                f"{'not reached' if reached is None else f'reached after {reached} steps'}"
            )
        lines.append(f"{line}.")
    return lines
