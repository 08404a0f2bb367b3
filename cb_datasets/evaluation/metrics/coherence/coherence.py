"""Coherence for `evaluate.load`. The rules are those of `cb_datasets.evaluation`; see README.md beside it."""

import datasets
import evaluate

from cb_datasets.evaluation.coherence import coherence
from cb_datasets.evaluation.scored_completions import is_degenerate_completion
from cb_datasets.evaluation.statistics import proportion
from cb_datasets.formats import get_format


_DESCRIPTION = "Whether completions hold together: how much repeats, how varied words are, how many are babble."
_CITATION = ""
_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): Completions, special tokens included.
    tool_format (`str`, *optional*, defaults to `"llama3_json"`): How the model writes calls.
Returns:
    `dict`: `repetition`, the mean share of a completion's spans of ten characters that stand in it before; `entropy`,
    the mean Shannon entropy of its words in bits; `gibberish`, the share of completions that are babble; over `n`.
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
        known = get_format(tool_format)
        found = coherence(predictions)
        babble = proportion(sum(is_degenerate_completion(text, known) for text in predictions), len(predictions))
        return {**found, "gibberish": babble["value"]}
