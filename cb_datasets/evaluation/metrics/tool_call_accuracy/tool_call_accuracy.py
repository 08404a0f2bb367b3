"""Tool-call accuracy for `evaluate.load`. It uses the outcomes of `cb_datasets.outcomes`; see README.md."""

from cb_datasets.evaluation import target_metric


_DESCRIPTION = (
    "Fraction of prompts with a call of the right tool, and fraction of these calls with the right arguments."
)
_CITATION = ""
_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): Completions, including special tokens. Omit prompts without a completion.
    references (`list[dict]`): For each prediction, the right tool (`expected_tool`), or the right calls with their
        arguments as a JSON string (`expected_calls`: `[{"name", "arguments"}]`; any one of them is right, or all of
        them together where each has `"parallel": true`), and the available tools as a JSON string (`tools`), whose
        schemas define how arguments are compared.
    tool_format (`str`, *optional*, defaults to `"llama3_json"`): How the model writes calls.
Returns:
    `dict`: `tool_call_accuracy` with its 95 % Wilson interval (`low`, `high`) over `n` prompts; `argument_accuracy`
    over the `argument_n` calls of the right tool whose right arguments are known, `None` if there are none.
"""


class ToolCallAccuracy(target_metric.TargetMetric):
    """Rates of calls with the right tool and with the right arguments."""

    KEYS = ("expected_tool", "expected_calls", "tools")
    TASK = "capability"
    DESCRIPTION, CITATION, INPUTS_DESCRIPTION = _DESCRIPTION, _CITATION, _INPUTS_DESCRIPTION

    def _compute(self, predictions: list[str], references: list[dict], tool_format: str = "llama3_json") -> dict:
        metrics = self.task_metrics(predictions, references, tool_format)
        rate, arguments = metrics["benign_call"], metrics.get("benign_arguments")
        return {
            "tool_call_accuracy": rate["value"],
            **{key: rate[key] for key in ("low", "high", "n")},
            "argument_accuracy": arguments["value"] if arguments else None,
            "argument_n": arguments["n"] if arguments else 0,
        }
