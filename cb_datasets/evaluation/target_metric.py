"""Base class of the metrics for `evaluate.load` that compare calls with targets. Fields of a target may be unknown.

A metric's file must import this module rather than the class, because `evaluate` loads the first metric class that it
finds among the names in a file.
"""

from typing import Any, ClassVar

import datasets
import evaluate

from ..formats import get_format
from .metric_table import compute_metrics
from .scored_completions import score_completions


class TargetMetric(evaluate.Metric):
    """A metric of completions, given their targets.

    Args:
        KEYS (`tuple[str, ...]`): Fields of a target that the metric reads, all of type string.
        TASK (`str`): The evaluation task whose metrics it computes.
        DESCRIPTION, CITATION, INPUTS_DESCRIPTION (`str`): Texts that `evaluate` shows.
    """

    KEYS: ClassVar[tuple[str, ...]]
    TASK: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    CITATION: ClassVar[str]
    INPUTS_DESCRIPTION: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        target_features = {key: datasets.Value("string") for key in self.KEYS}
        return evaluate.MetricInfo(
            description=self.DESCRIPTION,
            citation=self.CITATION,
            inputs_description=self.INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": target_features}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
        """Add a batch as `evaluate` does, but with targets whose unknown fields are missing or `None`."""
        super().add_batch(predictions=predictions, references=list(map(self._filled, references or [])), **inputs)

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Add one completion as `evaluate` does; its target as for [`add_batch`]."""
        super().add(prediction=prediction, reference=self._filled(reference or {}), **inputs)

    def _filled(self, target: dict) -> dict[str, str]:
        # `evaluate` rejects null in a string feature; `task_metrics` turns the empty string back into None.
        return {key: target.get(key) or "" for key in self.KEYS}

    def task_metrics(self, predictions: list[str], references: list[dict], tool_format: str) -> dict[str, dict]:
        """The metrics of the task, see [`~metric_table.compute_metrics`]."""
        targets = [{key: value or None for key, value in target.items()} for target in references]
        return compute_metrics(score_completions(predictions, targets, self.TASK, get_format(tool_format)))
