"""Prepared rows become a batch: forwards to make, and for each term of the loss which tokens of them it reads.

    {"adapted": [{"inputs": {"input_ids": ..., ...}, "blocks": 4, "reads": {"rr": [12, 13, 14], "splice": [99, ...]}}],
     "frozen":  [{"inputs": ..., "blocks": 3, "reads": {"rr": ...}}],
     "measure": [{"inputs": ..., "blocks": 4, "reads": {"circuit_breaker": ..., "retain": ...}}],
     "weights": {"rr": [1., 1., 1.], ...}, "targets": {"rr": [0, 0, 0], "splice": [7, ...], ...},
     "harmful": {"rr": [True, True, True], ...}, "num_items": [3., 9.], "num_tokens": 812,
     "ids": ["b4_flips/3f0c...", ...]}

`reads` are positions among the flattened tokens of the forward, in the same order for both networks.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from transformers.data.data_collator import DataCollatorMixin

from .objective.terms import NORM, TERMS, Plan, Read
from .speed.packing import Layout, packed, padded
from .speed.reference_cache import ReferenceCache


CIRCUIT_BREAKER, RETAIN = "circuit_breaker", "retain"  # values of a row's `set`

# Where a prepared row has the sequences that the networks read.
_COLUMNS = {"row": "input_ids", "clean": "clean_ids", "splice": "splice_ids"}

# Layouts of a batch, by what they lay out: examples and kinds of their sequences.
_Layouts = dict[tuple[tuple[int, str], ...], Layout]


@dataclass
class _Forward:
    """Sequences of one forward, and the reads from it while they are collected."""

    rows: dict[tuple[int, str], int] = field(default_factory=dict)  # by example and kind of sequence
    sequences: list[Sequence[int]] = field(default_factory=list)
    reads: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, key: tuple[int, str], sequence: Sequence[int], name: str, positions: np.ndarray) -> None:
        if key not in self.rows:
            self.rows[key] = len(self.sequences)
            self.sequences.append(sequence)
        self.reads[name].append((self.rows[key], positions))

    def batch(self, blocks: int, layout: Layout) -> dict[str, Any]:
        reads = {
            name: torch.from_numpy(np.concatenate([layout.index[row][positions] for row, positions in parts]))
            for name, parts in self.reads.items()
        }
        return {"inputs": layout.inputs, "blocks": blocks, "reads": reads}


@dataclass
class DataCollatorForCircuitBreaker(DataCollatorMixin):
    """
    Data collator used for circuit-breaker data. The rows become forwards of the two networks, see the module's
    docstring.

    Args:
        plan ([`~trainers.objective.terms.Plan`]):
            Terms of the loss, and what they read.
        pad_token_id (`int`):
            Token ID to use for padding.
        pad_to_multiple_of (`int`, *optional*):
            If set, padded sequences will be padded to a multiple of this value.
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether the sequences of a forward are packed into one without padding.
        shared_prefix (`bool`, *optional*, defaults to `False`):
            Whether tokens that packed sequences begin with together are computed once.
        cache ([`~trainers.speed.reference_cache.ReferenceCache`], *optional*):
            Where states of the frozen network are looked up. The batch has those that are there in `known`, and a
            forward for the others.
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
        sides: dict[str, dict[int, _Forward]] = {side: defaultdict(_Forward) for side in ("adapted", "frozen")}
        reads: dict[str, list[tuple[Read, bool]]] = defaultdict(list)
        known: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for number, row in enumerate(examples):
            for term in self.plan.terms_of(row):
                read = self.plan.read(term, row)
                reads[term].append((read, row["set"] == CIRCUIT_BREAKER))
                kind, blocks = TERMS[term].sequence, self.plan.blocks(term, reference=False)
                sides["adapted"][blocks].add((number, kind), row[_COLUMNS[kind]], term, read.positions)
                kind, blocks = TERMS[term].reference, self.plan.blocks(term, reference=True)
                if kind is not None:
                    sequence = row[_COLUMNS[kind]]
                    if self.cache is not None:
                        key = self.cache.key(sequence, self.plan.layers(term), blocks, read.reference_positions)
                        states = self.cache.get(key)
                        known[term].append({"key": key, "number": len(read.positions), "states": states})
                        if states is not None:
                            continue
                    sides["frozen"][blocks].add((number, kind), sequence, term, read.reference_positions)
        layouts: _Layouts = {}  # often the forwards read the same rows
        batch: dict[str, Any] = {side: self._forwards(parts, layouts) for side, parts in sides.items()}
        batch["known"] = dict(known)
        batch["measure"] = self._forwards({self.plan.num_blocks: self._measure(examples)}, layouts)
        for name in ("weights", "targets"):
            batch[name] = {
                term: torch.from_numpy(np.concatenate([getattr(read, name) for read, _ in parts]))
                for term, parts in reads.items()
            }
        batch["harmful"] = {
            term: torch.tensor([harmful for read, harmful in parts for _ in read.positions], dtype=torch.bool)
            for term, parts in reads.items()
        }
        items = {term: float(weights.sum()) for term, weights in batch["weights"].items()}
        if self.plan.retain_l2_positions and "retain_l2" in items:
            rows = [row for row in examples if "retain_l2" in self.plan.terms_of(row)]
            items["retain_l2"] = float(len(rows) * self._padded_length([row["input_ids"] for row in rows]))
        batch["num_items"] = torch.tensor([items.get(term, 0.0) for term in self.plan.classes])
        batch["ids"] = [row["id"] for row in examples]
        batch["num_tokens"] = sum(len(row["input_ids"]) for row in examples)
        return batch

    def _forwards(self, parts: dict[int, _Forward], layouts: _Layouts) -> list[dict[str, Any]]:
        # The deepest last: DDP takes the parameters that the last forward leaves out for unused
        laid_out: list[tuple[int, _Forward, Layout]] = []
        for blocks, forward in sorted(parts.items(), key=itemgetter(0)):
            rows = tuple(forward.rows)
            if rows not in layouts:
                layouts[rows] = self._layout(forward.sequences)
            layout = layouts[rows]
            if laid_out and self.join_forwards and self.shared_prefix and self.plan.skip_layers:
                forward, layout = self._joined(laid_out, blocks, forward, layout)
            laid_out.append((blocks, forward, layout))
        return [forward.batch(blocks, layout) for blocks, forward, layout in laid_out]

    def _joined(
        self, laid_out: list[tuple[int, _Forward, Layout]], blocks: int, forward: _Forward, layout: Layout
    ) -> tuple[_Forward, Layout]:
        """With the next shallower forward taken in, where what they share outweighs the blocks it could leave out."""
        fewer, shallower, its_layout = laid_out[-1]
        if any(NORM in self.plan.layers(term) for term in shallower.reads):
            return forward, layout  # which comes after its own last block
        joined = _Forward()
        for part in (shallower, forward):
            keys = list(part.rows)
            for name, reads in part.reads.items():
                for row, positions in reads:
                    joined.add(keys[row], part.sequences[row], name, positions)
        joined_layout = self._layout(joined.sequences)
        if _size(joined_layout) * blocks >= _size(layout) * blocks + _size(its_layout) * fewer:
            return forward, layout
        laid_out.pop()
        return joined, joined_layout

    def _measure(self, examples: list[dict[str, Any]]) -> _Forward:
        """Where the completions of Ds and of Dr are expected from."""
        forward = _Forward()
        for number, row in enumerate(examples):
            positions = np.arange(row["prompt_length"] - 1, len(row["input_ids"]) - 1)
            name = CIRCUIT_BREAKER if row["set"] == CIRCUIT_BREAKER else RETAIN
            forward.add((number, "row"), row["input_ids"], name, positions)
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
