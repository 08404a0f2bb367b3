"""Tool-call accuracy for `evaluate.load`. The rules are those of `cb_datasets.outcomes`; see README.md beside it."""

import datasets
import evaluate

from cb_datasets.evaluation.answers import answers_to
from cb_datasets.evaluation.figures import figures
from cb_datasets.tool_calls import get_format


_DESCRIPTION = "Share of prompts answered with a call of the right tool, and of such calls, with right arguments."
_CITATION = ""
_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): Completions, special tokens included. Leave out prompts on which the engine failed.
    references (`list[dict]`): For each, the right tool (`expected_tool`), or the right calls with their arguments as
        JSON text (`expected_calls`: `[{"name", "arguments"}]`, of which any will do), and the tools on offer as JSON
        text (`tools`), by whose schemas arguments are compared.
    tool_format (`str`, *optional*, defaults to `"llama3_json"`): How the model writes calls.
Returns:
    `dict`: `tool_call_accuracy` with its 95 % Wilson interval (`low`, `high`) over `n` prompts; `argument_accuracy`
    over the `argument_n` right calls whose arguments are known, `None` where there are none.
"""

KEYS = ("expected_tool", "expected_calls", "tools")


class ToolCallAccuracy(evaluate.Metric):
    """Rates of right tools and right arguments."""

    def _info(self) -> evaluate.MetricInfo:
        target = {key: datasets.Value("string") for key in KEYS}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": target}),
        )

    def add_batch(self, *, predictions=None, references=None, **inputs) -> None:
        """As `evaluate` does it, but that what is not known of a target may be left out."""
        # The library takes no null for a string.
        filled = [{key: target.get(key) or "" for key in KEYS} for target in references or []]
        super().add_batch(predictions=predictions, references=filled, **inputs)

    def _compute(self, predictions: list[str], references: list[dict], tool_format: str = "llama3_json") -> dict:
        targets = [{key: value or None for key, value in target.items()} for target in references]
        found = figures(answers_to(predictions, targets, "capability", get_format(tool_format)))
        rate, arguments = found["benign_call"], found.get("benign_arguments")
        return {
            "tool_call_accuracy": rate["value"],
            **{key: rate[key] for key in ("low", "high", "n")},
            "argument_accuracy": arguments["value"] if arguments else None,
            "argument_n": arguments["n"] if arguments else 0,
        }
