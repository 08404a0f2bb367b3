"""The tables of a report as rows of text: metrics, gates and coherence, for the terminal, Markdown and the page."""

from ..evaluation.metric_table import METRIC_LABELS
from ..evaluation.statistics import shown


def table_rows(figures: dict, models: list[str]) -> list[tuple[str, ...]]:
    """`(label, cell, cell, ...)` for every figure that was measured, with a cell for each model.

    Args:
        figures (`dict`): Figures by model: the results, or their `sampled`.
        models (`list[str]`): The models to show.
    """
    measured = [name for name in METRIC_LABELS if any(name in figures[model] for model in models)]
    return [(METRIC_LABELS[name], *(shown(figures[model].get(name)) for model in models)) for name in measured]


def gate_rows(found: dict) -> list[tuple[str, ...]]:
    """`(level, name, value, threshold, verdict, note)` of each gate."""
    return [
        (
            gate["level"],
            gate["name"],
            "-" if gate["value"] is None else f"{gate['value']:.1%}",
            f"{gate['threshold']:.1%}",
            "pass" if gate["passed"] else "FAIL",
            gate["note"],
        )
        for gate in found["gates"]
    ]


GATE_HEADER = ["level", "gate", "value", "threshold", "", "made of"]


def coherence_rows(found: dict) -> list[tuple[str, ...]]:
    """`(model, repetition, entropy, perplexity)` of each model."""
    rows: list[tuple[str, ...]] = []
    for name, part in found["coherence"].items():
        perplexity = part["perplexity_under_base"]
        shown = "-" if perplexity is None else f"{perplexity:.3g} ({part['perplexity_n']} prompts)"
        rows.append((name, f"{part['repetition']:.1%}", f"{part['entropy']:.2f}", shown))
    return rows


COHERENCE_HEADER = ["", "repeated text", "entropy of words, bits", "perplexity for the base model"]
