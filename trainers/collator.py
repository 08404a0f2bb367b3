"""Prepared rows become a batch: the forwards to make, and the positions that are gathered from them for each term.

    {"adapted": [{"inputs": {"input_ids": ..., ...}, "num_layers": 4, "gather": {"rr": [12, 13], "ce": [99, ...]}}],
     "frozen":  [{"inputs": ..., "num_layers": 3, "gather": {"rr": ...}}],
     "measure": [{"inputs": ..., "num_layers": 4, "gather": {"circuit_breaker": ..., "retain": ...}}],
     "weights": {"rr": [1., 1., 1.], ...}, "targets": {"rr": [0, 0, 0], "ce": [7, ...], ...},
     "harmful": {"rr": [True, True, True], ...}, "num_items": [3., 9.], "num_tokens": 812,
     "ids": ["b4_flips/3f0c...", ...]}

`gather` are positions among the flattened tokens of the forward, in the same order for both networks.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from transformers.data.data_collator import DataCollatorMixin

from cb_datasets.sample import CIRCUIT_BREAKER, RETAIN

from .objective.terms import COLUMNS, NORM, TERMS, Gather, Plan
from .speed.packing import Layout, packed, padded
from .speed.reference_cache import ReferenceCache


# The sequences of a batch that a forward lays out: numbers of examples, and keys of `COLUMNS`.
_Key = tuple[int, str]


@dataclass
class _Forward:
    """The sequences of one forward, and the positions to gather from it while they are collected."""

    rows: dict[_Key, int] = field(default_factory=dict)
    sequences: list[Sequence[int]] = field(default_factory=list)
    gather: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))

    def add_sequence(self, key: _Key, sequence: Sequence[int], name: str, positions: np.ndarray) -> None:
        if key not in self.rows:
            self.rows[key] = len(self.sequences)
            self.sequences.append(sequence)
        self.gather[name].append((self.rows[key], positions))

    def batch(self, num_layers: int, layout: Layout) -> dict[str, Any]:
        gather = {
            name: torch.from_numpy(np.concatenate([layout.positions[row][positions] for row, positions in parts]))
            for name, parts in self.gather.items()
        }
        return {"inputs": layout.inputs, "num_layers": num_layers, "gather": gather}


# The forwards of one network, by the number of layers they run.
_Forwards = dict[int, _Forward]


@dataclass
class DataCollatorForCircuitBreaker(DataCollatorMixin):
    """
    Data collator used for circuit-breaker data. The rows become forwards of the two networks, see the module's
    docstring.

    Args:
        plan ([`~trainers.objective.terms.Plan`]):
            Terms of the loss, and the tokens they are computed on.
        pad_token_id (`int`):
            Token ID to use for padding.
        pad_to_multiple_of (`int`, *optional*):
            If set, padded sequences will be padded to a multiple of this value.
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether the sequences of a forward are packed into one without padding.
        shared_prefix (`bool`, *optional*, defaults to `False`):
            Whether tokens that packed sequences begin with together are computed once.
        cache ([`~trainers.speed.reference_cache.ReferenceCache`], *optional*):
            Stored states of the frozen network. The batch has those that are found in `known`, and forwards for the
            others.
        join_forwards (`bool`, *optional*, defaults to `True`):
            Whether forwards of different depth become one where their rows share so much that it is cheaper.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of Tensor to return. Only `"pt"` is currently supported.
    """

    plan: Plan
    pad_token_id: int
    pad_to_multiple_of: int | None = None
    padding_free: bool = False
    shared_prefix: bool = False
    cache: ReferenceCache | None = None
    join_forwards: bool = True
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        adapted: _Forwards = defaultdict(_Forward)
        frozen: _Forwards = defaultdict(_Forward)
        known: dict[str, list[dict[str, Any]]] = defaultdict(list)
        parts: dict[str, list[tuple[Gather, bool]]] = defaultdict(list)
        for number, row in enumerate(examples):
            for term in self.plan.terms_of(row):
                gather = self.plan.gather(term, row)
                parts[term].append((gather, row["set"] == CIRCUIT_BREAKER))
                student = TERMS[term].student
                forward = adapted[self.plan.layers_run(term, "adapted")]
                forward.add_sequence((number, student), row[COLUMNS[student]], term, gather.positions)
                self._add_teacher(frozen, known, number, row, term, gather)
        layouts: dict[tuple[_Key, ...], Layout] = {}  # forwards often have the same sequences
        batch: dict[str, Any] = {
            "adapted": self._forwards(adapted, layouts),
            "frozen": self._forwards(frozen, layouts),
            "known": dict(known),
            "measure": self._forwards({self.plan.num_layers: self._measure(examples)}, layouts),
        }
        for column in ("weights", "targets"):
            batch[column] = {
                term: torch.from_numpy(np.concatenate([getattr(gather, column) for gather, _ in of_term]))
                for term, of_term in parts.items()
            }
        batch["harmful"] = {
            term: torch.tensor([harmful for gather, harmful in of_term for _ in gather.positions], dtype=torch.bool)
            for term, of_term in parts.items()
        }
        batch["num_items"] = self._num_items(batch["weights"], examples)
        batch["ids"] = [row["id"] for row in examples]
        batch["num_tokens"] = sum(len(row["input_ids"]) for row in examples)
        return batch

    def _add_teacher(
        self,
        frozen: _Forwards,
        known: dict[str, list[dict[str, Any]]],
        number: int,
        row: dict[str, Any],
        term: str,
        gather: Gather,
    ) -> None:
        """Add a row to the frozen network's forwards if the term needs them and they are not in the cache."""
        teacher, num_layers = TERMS[term].teacher, self.plan.layers_run(term, "frozen")
        if teacher is None:
            return
        sequence = row[COLUMNS[teacher]]
        if self.cache is not None:
            key = self.cache.key(sequence, self.plan.layers(term), num_layers, gather.teacher_positions)
            states = self.cache.get(key)
            known[term].append({"key": key, "number": len(gather.positions), "states": states})
            if states is not None:
                return
        frozen[num_layers].add_sequence((number, teacher), sequence, term, gather.teacher_positions)

    def _num_items(self, weights: dict[str, torch.Tensor], examples: list[dict[str, Any]]) -> torch.Tensor:
        """The denominator of each term's mean: the sum of its weights, or the positions of the padded batch."""
        items = {term: float(values.sum()) for term, values in weights.items()}
        for term in self.plan.over_padding:
            rows = [row["input_ids"] for row in examples if term in self.plan.terms_of(row)]
            if rows:
                items[term] = float(len(rows) * self._padded_length(rows))
        return torch.tensor([items.get(term, 0.0) for term in self.plan.classes])

    def _forwards(self, forwards: _Forwards, layouts: dict[tuple[_Key, ...], Layout]) -> list[dict[str, Any]]:
        # The deepest last: DDP takes the parameters that the last forward leaves out for unused
        laid_out: list[tuple[int, _Forward, Layout]] = []
        for num_layers, forward in sorted(forwards.items(), key=itemgetter(0)):
            rows = tuple(forward.rows)
            if rows not in layouts:
                layouts[rows] = self._layout(forward.sequences)
            layout = layouts[rows]
            if laid_out and self.join_forwards and self.shared_prefix and self.plan.skip_layers:
                forward, layout = self._joined(laid_out, num_layers, forward, layout)
            laid_out.append((num_layers, forward, layout))
        return [forward.batch(num_layers, layout) for num_layers, forward, layout in laid_out]

    def _joined(
        self, laid_out: list[tuple[int, _Forward, Layout]], num_layers: int, forward: _Forward, layout: Layout
    ) -> tuple[_Forward, Layout]:
        """Joins the next shallower forward where the tokens they share cost more than the layers it could skip."""
        fewer, shallower, its_layout = laid_out[-1]
        if any(NORM in self.plan.layers(term) for term in shallower.gather):
            return forward, layout  # the final norm comes after the last layer of its own forward
        joined = _Forward()
        for part in (shallower, forward):
            keys = list(part.rows)
            for name, positions_of in part.gather.items():
                for row, positions in positions_of:
                    joined.add_sequence(keys[row], part.sequences[row], name, positions)
        joined_layout = self._layout(joined.sequences)
        if _size(joined_layout) * num_layers >= _size(layout) * num_layers + _size(its_layout) * fewer:
            return forward, layout
        laid_out.pop()
        return joined, joined_layout

    def _measure(self, examples: list[dict[str, Any]]) -> _Forward:
        """Positions that predict completion tokens."""
        forward = _Forward()
        for number, row in enumerate(examples):
            positions = np.arange(row["prompt_length"] - 1, len(row["input_ids"]) - 1)
            name = CIRCUIT_BREAKER if row["set"] == CIRCUIT_BREAKER else RETAIN
            forward.add_sequence((number, "row"), row["input_ids"], name, positions)
        return forward

    def _layout(self, sequences: list[Sequence[int]]) -> Layout:
        if self.padding_free:
            return packed(sequences, self.shared_prefix)
        return padded(sequences, self.pad_token_id, self._padded_length(sequences))

    def _padded_length(self, sequences: Sequence[Sequence[int]]) -> int:
        multiple = self.pad_to_multiple_of or 1
        return -(-max(map(len, sequences)) // multiple) * multiple


def _size(layout: Layout) -> int:
    return layout.inputs["input_ids"].numel()
