"""What the metrics for `evaluate.load` that judge calls have in common: targets of which some fields may be unknown.

A metric imports this module and not the class in it: `evaluate` takes the first metric among the names of a file.
"""

from typing import Any, ClassVar

import datasets
import evaluate

from ..formats import get_format
from .metric_table import compute_metrics
from .scored_completions import score_completions


class TargetMetric(evaluate.Metric):
    """A metric of completions against targets.

    Args:
        KEYS (`tuple[str, ...]`): Fields of a target that the metric reads, all of them text.
        TASK (`str`): The evaluation task whose figures it tells.
        DESCRIPTION, CITATION, INPUTS_DESCRIPTION (`str`): What `evaluate` shows.
    """

    KEYS: ClassVar[tuple[str, ...]]
    TASK: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    CITATION: ClassVar[str]
    INPUTS_DESCRIPTION: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        target = {key: datasets.Value("string") for key in self.KEYS}
        return evaluate.MetricInfo(
            description=self.DESCRIPTION,
            citation=self.CITATION,
            inputs_description=self.INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": target}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
        """As `evaluate` does it, but that what is not known of a target may be left out."""
        # The library takes no null for a string.
        filled = [{key: target.get(key) or "" for key in self.KEYS} for target in references or []]
        super().add_batch(predictions=predictions, references=filled, **inputs)

    def task_metrics(self, predictions: list[str], references: list[dict], tool_format: str) -> dict[str, dict]:
        """The figures of the task, see [`~figures.figures`]."""
        targets = [{key: value or None for key, value in target.items()} for target in references]
        return compute_metrics(score_completions(predictions, targets, self.TASK, get_format(tool_format)))
