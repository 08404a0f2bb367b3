"""Coherence for `evaluate.load`. It uses the functions of `cb_datasets.evaluation`; see README.md."""

import datasets
import evaluate

from cb_datasets.evaluation.coherence import coherence
from cb_datasets.evaluation.scored_completions import is_degenerate_completion
from cb_datasets.evaluation.statistics import proportion
from cb_datasets.formats import get_format


_DESCRIPTION = (
    "Coherence of completions: fraction of repeated text, entropy of words, and fraction of degenerate completions."
)
_CITATION = ""
_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): Completions, including special tokens.
    tool_format (`str`, *optional*, defaults to `"llama3_json"`): How the model writes calls.
Returns:
    `dict`: `repetition`, the mean fraction of a completion's ten-character spans that repeat an earlier one;
    `entropy`, the mean Shannon entropy of its words in bits; `gibberish`, the fraction of degenerate completions; and
    `n`, the number of completions.
"""


class Coherence(evaluate.Metric):
    """Means of repetition and entropy, and the rate of gibberish."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], tool_format: str = "llama3_json") -> dict:
        call_format = get_format(tool_format)
        means = coherence(predictions)
        degenerate = sum(is_degenerate_completion(text, call_format) for text in predictions)
        return {**means, "gibberish": proportion(degenerate, len(predictions))["value"]}
