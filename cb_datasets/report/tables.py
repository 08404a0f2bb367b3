"""The tables of a report as rows of text: metrics, gates and coherence, for the terminal, Markdown and the page."""

from ..evaluation.metric_table import METRIC_LABELS
from ..evaluation.statistics import format_rate


def metric_table_rows(metrics: dict, models: list[str]) -> list[tuple[str, ...]]:
    """`(label, cell, cell, ...)` for every measured metric, with a cell for each model.

    Args:
        metrics (`dict`): Metrics by model: the results, or their `sampled`.
        models (`list[str]`): The models to show.
    """
    measured = [name for name in METRIC_LABELS if any(name in metrics[model] for model in models)]
    return [(METRIC_LABELS[name], *(format_rate(metrics[model].get(name)) for model in models)) for name in measured]


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


def coherence_rows(results: dict) -> list[tuple[str, ...]]:
    """`(model, repetition, entropy, perplexity)` of each model."""
    rows: list[tuple[str, ...]] = []
    for model, coherence in results["coherence"].items():
        perplexity = coherence["perplexity_under_base"]
        cell = "-" if perplexity is None else f"{perplexity:.3g} ({coherence['perplexity_n']} prompts)"
        rows.append((model, f"{coherence['repetition']:.1%}", f"{coherence['entropy']:.2f}", cell))
    return rows


COHERENCE_HEADER = ["", "repeated text", "entropy of words, bits", "perplexity for the base model"]
