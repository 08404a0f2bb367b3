"""Tool-call accuracy for `evaluate.load`. The rules are those of `cb_datasets.outcomes`; see README.md beside it."""

from cb_datasets.evaluation import target_metric


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


class ToolCallAccuracy(target_metric.TargetMetric):
    """Rates of right tools and right arguments."""

    KEYS = ("expected_tool", "expected_calls", "tools")
    TASK = "capability"
    DESCRIPTION, CITATION, INPUTS_DESCRIPTION = _DESCRIPTION, _CITATION, _INPUTS_DESCRIPTION

    def _compute(self, predictions: list[str], references: list[dict], tool_format: str = "llama3_json") -> dict:
        found = self.task_metrics(predictions, references, tool_format)
        rate, arguments = found["benign_call"], found.get("benign_arguments")
        return {
            "tool_call_accuracy": rate["value"],
            **{key: rate[key] for key in ("low", "high", "n")},
            "argument_accuracy": arguments["value"] if arguments else None,
            "argument_n": arguments["n"] if arguments else 0,
        }
