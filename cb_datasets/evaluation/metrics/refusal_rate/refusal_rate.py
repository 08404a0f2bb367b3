"""Refusal rate for `evaluate.load`. It uses the outcomes of `cb_datasets.outcomes`; see README.md."""

import datasets
import evaluate

from cb_datasets.evaluation.metric_table import compute_metrics
from cb_datasets.evaluation.scored_completions import score_completions
from cb_datasets.formats import get_format


_DESCRIPTION = "Fraction of prompts that a model refuses in coherent text."
_CITATION = ""
_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): Completions, including special tokens. Omit prompts without a completion.
    tool_format (`str`, *optional*, defaults to `"llama3_json"`): How the model writes calls. A call is not a refusal.
Returns:
    `dict`: `refusal_rate` with its 95 % Wilson interval (`low`, `high`) over `n` prompts.
"""


class RefusalRate(evaluate.Metric):
    """Rate of refusals."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], tool_format: str = "llama3_json") -> dict:
        completions = score_completions(predictions, [{}] * len(predictions), "refusal", get_format(tool_format))
        rate = compute_metrics(completions)["refusal_kept"]
        return {"refusal_rate": rate["value"], **{key: rate[key] for key in ("low", "high", "n")}}
