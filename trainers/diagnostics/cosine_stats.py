"""
Cosines of the rows of a class, counted: by layer for each part of a row, and by token around the beginning of the
completion. What is kept does not grow with the length of the rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cb_datasets.evaluation.compare import BASE

from ..objective.masks import NONE


# Tokens before and after the beginning of the completion that `by_token` tells of.
PROMPT_TAIL = 24
COMPLETION_HEAD = 48


class CosineStats:
    """
    Cosines of rows, added up row by row: what is kept does not grow with the length of the rows.

    Args:
        num_layers (`int`): Number of layers.
    """

    def __init__(self, num_layers: int):
        self.parts: dict[str, list[np.ndarray]] = {}
        self.sums = np.zeros((num_layers, PROMPT_TAIL + COMPLETION_HEAD))
        self.counts = np.zeros(PROMPT_TAIL + COMPLETION_HEAD, dtype=int)

    def add(self, cosines: np.ndarray, parts: Mapping[str, np.ndarray], positions: np.ndarray) -> None:
        """
        Add a row.

        Args:
            cosines (`np.ndarray`): Shape `(layers, tokens)`.
            parts (`Mapping[str, np.ndarray]`): For each part of the row, which of the tokens are its own.
            positions (`np.ndarray`): Of each token, counted from the beginning of the completion.

        Raises:
            ValueError: If a cosine is not a number.
        """
        if np.isnan(cosines).any():
            raise ValueError("A hidden state is not a number: the adapter has come apart, or its numbers overflow.")
        for part, own in parts.items():
            if own.any():
                self.parts.setdefault(part, []).append(cosines[:, own].mean(axis=1))
        seen = (positions >= -PROMPT_TAIL) & (positions < COMPLETION_HEAD)
        at = positions[seen] + PROMPT_TAIL
        self.sums[:, at] += cosines[:, seen]
        self.counts[at] += 1

    def told(self) -> dict[str, Any]:
        """`{by_layer, by_token}` as `trainers/diagnostics.py` tells."""
        by_layer = {}
        for part, rows in self.parts.items():
            low, high = np.percentile(rows, (10, 90), axis=0)
            by_layer[part] = {"mean": _rounded(np.mean(rows, axis=0)), "low": _rounded(low), "high": _rounded(high)}
        means = np.divide(self.sums, self.counts, out=np.full_like(self.sums, np.nan), where=self.counts > 0)
        return {"by_layer": by_layer, "by_token": [_rounded(layer) for layer in means]}


def _rounded(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


class ClassCosineStats:
    """
    What is counted of the rows of one class.

    Args:
        adapters (`list[str]`): Names of the adapters.
        num_layers (`int`): Number of layers.
    """

    def __init__(self, adapters: list[str], num_layers: int):
        self.measures = {
            "cosine": {name: CosineStats(num_layers) for name in adapters},
            "to_clean": {name: CosineStats(num_layers) for name in (BASE, *adapters)},
        }
        self.rows = 0
        self.names_at: list[int] = []  # where the tool's name begins in the completion

    def add(self, prepared: dict[str, Any], cosines: dict[str, dict[str, np.ndarray]]) -> None:
        """
        Add a row.

        Args:
            prepared (`dict[str, Any]`): What `prepare_row` made of it.
            cosines (`dict[str, dict[str, np.ndarray]]`): Of each measure and model, shape `(layers, tokens)`.
        """
        start, total = prepared["prompt_length"], len(prepared["input_ids"])
        positions = np.arange(total) - start
        injected = np.zeros(total, dtype=bool)
        for first, end in prepared["injection"]:
            injected[first:end] = True
        parts = {"prompt": (positions < 0) & ~injected, "injection": injected, "completion": positions >= 0}
        for name, values in cosines["cosine"].items():
            self.measures["cosine"][name].add(values, parts, positions)
        completion = {"completion": np.ones(total - start, dtype=bool)}
        for name, values in cosines["to_clean"].items():
            self.measures["to_clean"][name].add(values, completion, positions[start:])
        self.rows += 1
        if prepared["tool_name"] != NONE:
            self.names_at.append(prepared["tool_name"][0] - start)

    def told(self) -> dict[str, Any]:
        """`{rows, rows_at, tool_name_at, cosine, to_clean}`; the last is left out where no row was attacked."""
        told = {
            measure: {name: tally.told() for name, tally in tallies.items()}
            for measure, tallies in self.measures.items()
            if any(tally.parts for tally in tallies.values())
        }
        [counts, *_] = (tally.counts for tally in self.measures["cosine"].values())
        name_at = float(np.median(self.names_at)) if self.names_at else None
        return {"rows": self.rows, "rows_at": counts.tolist(), "tool_name_at": name_at, **told}
