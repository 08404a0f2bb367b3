"""
Statistics of cosines over the rows of a class: by layer for each part of a row, and by token around the beginning of
the completion. Their memory does not grow with the length of the rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cb_datasets.evaluation.compare import BASE

from ..objective.masks import NONE


# Number of tokens before and after the beginning of the completion in `by_token`.
PROMPT_TAIL = 24
COMPLETION_HEAD = 48


class CosineStats:
    """
    Statistics of the cosines of one model, collected row by row.

    Args:
        num_layers (`int`): Number of layers.
    """

    def __init__(self, num_layers: int):
        # For each part, the mean over its tokens at each layer, one array per row
        self.part_means: dict[str, list[np.ndarray]] = {}
        self.sums = np.zeros((num_layers, PROMPT_TAIL + COMPLETION_HEAD))
        self.counts = np.zeros(PROMPT_TAIL + COMPLETION_HEAD, dtype=int)

    def add_row(self, cosines: np.ndarray, parts: Mapping[str, np.ndarray], positions: np.ndarray) -> None:
        """
        Add the cosines of a row.

        Args:
            cosines (`np.ndarray`): Shape `(layers, tokens)`.
            parts (`Mapping[str, np.ndarray]`): For each part of the row, a mask of its tokens.
            positions (`np.ndarray`): Position of each token, counted from the beginning of the completion.

        Raises:
            ValueError: If a cosine is NaN.
        """
        if np.isnan(cosines).any():
            raise ValueError("A hidden state is not a number: the adapter has collapsed, or its states overflow.")
        for part, mask in parts.items():
            if mask.any():
                self.part_means.setdefault(part, []).append(cosines[:, mask].mean(axis=1))
        near = (positions >= -PROMPT_TAIL) & (positions < COMPLETION_HEAD)
        columns = positions[near] + PROMPT_TAIL
        self.sums[:, columns] += cosines[:, near]
        self.counts[columns] += 1

    def summary(self) -> dict[str, Any]:
        """`{by_layer, by_token}`, see `trainers/diagnostics/__main__.py`."""
        by_layer = {}
        for part, rows in self.part_means.items():
            low, high = np.percentile(rows, (10, 90), axis=0)
            by_layer[part] = {"mean": _rounded(np.mean(rows, axis=0)), "low": _rounded(low), "high": _rounded(high)}
        means = np.divide(self.sums, self.counts, out=np.full_like(self.sums, np.nan), where=self.counts > 0)
        return {"by_layer": by_layer, "by_token": [_rounded(layer) for layer in means]}


def _rounded(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


class ClassCosineStats:
    """
    Statistics of the rows of one class, for each measure and model.

    Args:
        adapters (`list[str]`): Names of the adapters.
        num_layers (`int`): Number of layers.
    """

    def __init__(self, adapters: list[str], num_layers: int):
        self.measures = {
            "cosine": {name: CosineStats(num_layers) for name in adapters},
            "to_clean": {name: CosineStats(num_layers) for name in (BASE, *adapters)},
        }
        self.num_rows = 0
        self.name_positions: list[int] = []  # positions in the completions at which the tool's name begins

    def add_prepared_row(self, prepared: dict[str, Any], cosines: dict[str, dict[str, np.ndarray]]) -> None:
        """
        Add a row to the statistics of each measure and model.

        Args:
            prepared (`dict[str, Any]`): The row, as [`~trainers.tokenize_rows.prepare_row`] returns it.
            cosines (`dict[str, dict[str, np.ndarray]]`): Cosines by measure and model, of shape `(layers, tokens)`.
        """
        start, total = prepared["prompt_length"], len(prepared["input_ids"])
        positions = np.arange(total) - start
        injected = np.zeros(total, dtype=bool)
        for first, end in prepared["injection"]:
            injected[first:end] = True
        parts = {"prompt": (positions < 0) & ~injected, "injection": injected, "completion": positions >= 0}
        for name, values in cosines["cosine"].items():
            self.measures["cosine"][name].add_row(values, parts, positions)
        completion = {"completion": np.ones(total - start, dtype=bool)}
        for name, values in cosines["to_clean"].items():
            self.measures["to_clean"][name].add_row(values, completion, positions[start:])
        self.num_rows += 1
        if prepared["tool_name"] != NONE:
            self.name_positions.append(prepared["tool_name"][0] - start)

    def class_summary(self) -> dict[str, Any]:
        """`{rows, rows_at, tool_name_at, cosine, to_clean}`, without `to_clean` if no row has an injection."""
        summaries = {
            measure: {name: stats.summary() for name, stats in by_model.items()}
            for measure, by_model in self.measures.items()
            if any(stats.part_means for stats in by_model.values())
        }
        # The same for every adapter: all of them were given the same tokens
        [counts, *_] = (stats.counts for stats in self.measures["cosine"].values())
        name_at = float(np.median(self.name_positions)) if self.name_positions else None
        return {"rows": self.num_rows, "rows_at": counts.tolist(), "tool_name_at": name_at, **summaries}
