"""Metrics of parts of the prompts: by family, place of the injection, turn, and the other fields of `SLICES`."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation.compare import BASE, SLICES
from ..evaluation.gates import BREAKER
from ..evaluation.metric_table import METRIC_LABELS, direction


# Metrics in the tables of slices, if they were measured.
SLICE_METRICS = (
    *("asr", "correct_under_attack", "multi_turn_asr", "multi_turn_correct", "agentdojo_asr", "agentdojo_correct"),
    *("injecagent_asr", "injecagent_asr_valid", "injecagent_ds_both", "injecagent_correct"),
    *("benign_call", "later_turn", "refusal_kept", "chat_kept", "gibberish"),
)


@dataclass(frozen=True)
class SliceTable:
    """The metrics of each value of a field.

    Args:
        field (`str`): A field of `SLICES`.
        metrics (`list[str]`): Metrics that were measured on some of its values.
        rows (`list[tuple[str, dict]]`): `(value, {model: {metric: rate}})`, the value on which the breaker loses most
            to the base model first.
    """

    field: str
    metrics: list[str]
    rows: list[tuple[str, dict[str, dict[str, dict]]]]


def slice_tables(results: dict) -> list[SliceTable]:
    """The tables of all fields of which some prompt has a value."""
    return [_slice_table(field, results["slices"][field]) for field in SLICES if results["slices"].get(field)]


def _slice_table(field: str, slices: dict[str, dict]) -> SliceTable:
    metrics = [name for name in SLICE_METRICS if any(name in by_model[BASE] for by_model in slices.values())]
    rows = sorted(slices.items(), key=lambda item: (-_largest_loss(item[1], metrics), item[0]))
    return SliceTable(field, metrics, rows)


def _largest_loss(by_model: dict[str, dict[str, dict]], metrics: list[str]) -> float:
    """How far the breaker is behind the base model in its worst metric, as a difference of rates."""
    base, breaker = by_model[BASE], by_model[BREAKER]
    both = [name for name in metrics if name in base and name in breaker]
    return max((direction(name) * (base[name]["value"] - breaker[name]["value"]) for name in both), default=-1.0)


def is_worse(metric: str, base: dict | None, rate: dict | None) -> bool:
    """Whether a rate is worse than the base model's: its interval lies entirely on the worse side of the other.

    Compared with the base model's rate alone, a single lost prompt would be worse where the base model loses none.
    """
    if base is None or rate is None:
        return False
    return rate["low"] > base["high"] if direction(metric) < 0 else rate["high"] < base["low"]


def slice_rows(
    table: SliceTable, models: list[str], labels: Mapping[str, str] = METRIC_LABELS
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of a table as text, with one cell for all models: `96.2% / 1.9% (n = 52)`."""
    header = [table.field, *(labels[name] for name in table.metrics)]
    rows = [
        (value, *(_cell([by_model.get(model, {}).get(name) for model in models]) for name in table.metrics))
        for value, by_model in table.rows
    ]
    return header, rows


def _cell(rates: list[dict | None]) -> str:
    measured = [rate for rate in rates if rate is not None]
    if not measured:
        return ""
    return " / ".join("-" if rate is None else f"{rate['value']:.1%}" for rate in rates) + f" (n = {measured[0]['n']})"
