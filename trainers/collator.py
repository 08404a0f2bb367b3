"""Data collator: prepared rows to forward passes, and the positions that each term gathers from them.

    {"adapted": [{"inputs": {"input_ids": ..., ...}, "num_layers": 4, "gather": {"rr": [12, 13], "ce": [99, ...]}}],
     "frozen":  [{"inputs": ..., "num_layers": 3, "gather": {"rr": ...}}],
     "cached":  {"rr": [{"key": "3f9c0d...", "num_tokens": 2, "states": None}, ...]},     with a `ReferenceCache`
     "measure": [{"inputs": ..., "num_layers": 4, "gather": {"circuit_breaker": ..., "retain": ...}}],
     "adversary": {"inputs": ..., "num_layers": 4, "gather": {"opening": ...}, "targets": ..., "weights": ...,
                   "num_slots": 57},        where rows have slots, else `None`
     "weights": {"rr": [1., 1., 1.], ...}, "targets": {"rr": [0, 0, 0], "ce": [7, ...], ...},
     "harmful": {"rr": [True, True, True], ...}, "num_items": [3., 9.], "num_tokens": 812,
     "counts": True,         whether its values are logged: not those of a copy, see `batch_sampler.py`
     "ids": ["b4_flips/3f0c...", ...]}

A forward is one forward pass. `gather` has positions among its flattened tokens, in the same order for both networks.
Its `slots` are the positions that the adversary perturbs, and the number of the slot at each.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.data.data_collator import DataCollatorMixin

from cb_datasets.sample import CIRCUIT_BREAKER, RETAIN

from .objective.terms import COLUMNS, NORM, TERMS, Gather, Plan
from .speed.packing import Layout, packed, padded
from .speed.reference_cache import ReferenceCache


# Names a sequence of the batch: number of the example, and key of `COLUMNS`.
_Key = tuple[int, str]


class Slots(NamedTuple):
    """Tokens of a sequence that the adversary perturbs: their positions, and their numbers in the batch."""

    positions: np.ndarray
    numbers: np.ndarray


def slots_of_batch(examples: Sequence[Mapping[str, Any]]) -> tuple[dict[int, Slots], int]:
    """Slots of the examples that have some, and their number. Equal prompts have the same slots."""
    slots: dict[int, Slots] = {}
    by_prompt: dict[tuple[int, ...], Slots] = {}
    num_slots = 0
    for number, row in enumerate(examples):
        positions = np.concatenate([np.arange(start, end) for start, end in row["slots"]] or [np.zeros(0, np.int64)])
        if len(positions):
            prompt = tuple(row["input_ids"][: row["prompt_length"]])
            if prompt not in by_prompt:
                by_prompt[prompt] = Slots(positions, num_slots + np.arange(len(positions)))
                num_slots += len(positions)
            slots[number] = by_prompt[prompt]
    return slots, num_slots


def identities_of(sequence: Sequence[int], slots: Slots | None) -> np.ndarray:
    """Token ids, and at slots negative numbers of their own: a packed row shares no token that is perturbed."""
    identities = np.array(sequence, dtype=np.int64)
    if slots is not None:
        identities[slots.positions] = -1 - slots.numbers
    return identities


def slot_positions(slots: Sequence[Slots | None], layout: Layout) -> dict[str, torch.Tensor]:
    """The slots of a forward: positions among its flattened tokens, each once, and the number of the slot at each."""
    pairs = [
        (positions[own.positions], own.numbers)
        for own, positions in zip(slots, layout.positions, strict=True)
        if own is not None
    ]
    empty = np.zeros(0, dtype=np.int64)
    flat = np.concatenate([empty, *(positions for positions, _ in pairs)])
    numbers = np.concatenate([empty, *(numbers for _, numbers in pairs)])
    flat, first = np.unique(flat, return_index=True)
    return {"positions": torch.from_numpy(flat), "numbers": torch.from_numpy(numbers[first])}


@dataclass
class _Forward:
    """The sequences of one forward, each once, and the positions that terms gather from it."""

    rows: dict[_Key, int] = field(default_factory=dict)
    sequences: list[Sequence[int]] = field(default_factory=list)
    slots: list[Slots | None] = field(default_factory=list)
    gather: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))

    def add_sequence(
        self, key: _Key, sequence: Sequence[int], name: str, positions: np.ndarray, slots: Slots | None = None
    ) -> None:
        if key not in self.rows:
            self.rows[key] = len(self.sequences)
            self.sequences.append(sequence)
            self.slots.append(slots)
        self.gather[name].append((self.rows[key], positions))

    def batch(self, num_layers: int, layout: Layout) -> dict[str, Any]:
        gather = {
            name: torch.from_numpy(np.concatenate([layout.positions[row][positions] for row, positions in of_name]))
            for name, of_name in self.gather.items()
        }
        slots = slot_positions(self.slots, layout)
        return {"inputs": layout.inputs, "num_layers": num_layers, "gather": gather, "slots": slots}


# The forwards of one network, by the number of layers they run.
_Forwards = dict[int, _Forward]


@dataclass
class DataCollatorForCircuitBreaker(DataCollatorMixin):
    """
    Data collator used for circuit-breaker data. It makes forwards of the adapted and of the frozen network, see the
    module's docstring.

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
            Whether tokens that several packed sequences begin with are computed once.
        cache ([`~trainers.speed.reference_cache.ReferenceCache`], *optional*):
            Stored states of the frozen network. A batch has the stored states in `cached`, and forwards for the rest.
        join_forwards (`bool`, *optional*, defaults to `True`):
            Whether forwards with different numbers of layers are joined where their rows share so many tokens that one
            forward is cheaper.
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
        cached: dict[str, list[dict[str, Any]]] = defaultdict(list)
        gathers: dict[str, list[tuple[Gather, bool]]] = defaultdict(list)
        slots, num_slots = slots_of_batch(examples)
        # The tokens of a term come in the order of the rows, in the forwards of both networks and in all columns
        for number, row in enumerate(examples):
            for term in self.plan.terms_of(row):
                gather = self.plan.gather(term, row)
                if not len(gather.positions):
                    continue
                gathers[term].append((gather, row["set"] == CIRCUIT_BREAKER))
                student = TERMS[term].student
                forward = adapted[self.plan.layers_run(term, "adapted")]
                sequence = row[COLUMNS[student]]
                forward.add_sequence((number, student), sequence, term, gather.positions, slots.get(number))
                self._add_teacher(frozen, cached, number, row, term, gather, slots.get(number))
        # Layouts by their sequences: forwards of the two networks often have the same ones
        layouts: dict[tuple[_Key, ...], Layout] = {}
        batch: dict[str, Any] = {
            "adapted": self._forwards(adapted, layouts),
            "frozen": self._forwards(frozen, layouts),
            "cached": dict(cached),
            "measure": self._forwards({self.plan.num_layers: self._measure(examples)}, layouts),
            "adversary": self._adversary(examples, slots, num_slots),
        }
        # One entry per token, in the order in which the positions are gathered
        for column in ("weights", "targets"):
            batch[column] = {
                term: torch.from_numpy(np.concatenate([getattr(gather, column) for gather, _ in of_term]))
                for term, of_term in gathers.items()
            }
        batch["harmful"] = {
            term: torch.tensor([harmful for gather, harmful in of_term for _ in gather.positions], dtype=torch.bool)
            for term, of_term in gathers.items()
        }
        batch["num_items"] = self._num_items(batch["weights"], examples)
        batch["counts"] = all(row.get("counts", True) for row in examples)
        batch["ids"] = [row["id"] for row in examples]
        batch["num_tokens"] = sum(len(row["input_ids"]) for row in examples)
        return batch

    def _add_teacher(
        self,
        frozen: _Forwards,
        cached: dict[str, list[dict[str, Any]]],
        number: int,
        row: dict[str, Any],
        term: str,
        gather: Gather,
        slots: Slots | None,
    ) -> None:
        """Add a row to the frozen network's forwards, if the term has a teacher and its states are not stored."""
        teacher, num_layers = TERMS[term].teacher, self.plan.layers_run(term, "frozen")
        if teacher is None:
            return
        sequence = row[COLUMNS[teacher]]
        slots = None if teacher == "clean" else slots
        if self.cache is not None:
            key = states = None
            if slots is None:  # states under a perturbation are those of this step only
                key = self.cache.key(sequence, self.plan.layers(term), num_layers, gather.teacher_positions)
                states = self.cache.get(key)
            cached[term].append({"key": key, "num_tokens": len(gather.positions), "states": states})
            if states is not None:
                return
        frozen[num_layers].add_sequence((number, teacher), sequence, term, gather.teacher_positions, slots)

    def _num_items(self, weights: dict[str, torch.Tensor], examples: list[dict[str, Any]]) -> torch.Tensor:
        """The denominator of each term's mean: the sum of its weights, or the positions of the padded batch."""
        items = {term: float(values.sum()) for term, values in weights.items()}
        for term in self.plan.over_padding:
            rows = [row["input_ids"] for row in examples if term in self.plan.terms_of(row)]
            if rows:
                items[term] = float(len(rows) * self._padded_length(rows))
        return torch.tensor([items.get(term, 0.0) for term in self.plan.classes])

    def _forwards(self, forwards: _Forwards, layouts: dict[tuple[_Key, ...], Layout]) -> list[dict[str, Any]]:
        """Lay out the forwards of one network, in order of their numbers of layers."""
        # The one with the most layers last: DDP regards parameters that the last forward does not use as unused
        laid_out: list[tuple[int, _Forward, Layout]] = []
        for num_layers, forward in sorted(forwards.items(), key=itemgetter(0)):
            rows = tuple(forward.rows)
            if rows not in layouts:
                layouts[rows] = self._layout(forward)
            layout = layouts[rows]
            if laid_out and self.join_forwards and self.shared_prefix and self.plan.skip_layers:
                forward, layout = self._join_last(laid_out, num_layers, forward, layout)
            laid_out.append((num_layers, forward, layout))
        return [forward.batch(num_layers, layout) for num_layers, forward, layout in laid_out]

    def _join_last(
        self, laid_out: list[tuple[int, _Forward, Layout]], num_layers: int, forward: _Forward, layout: Layout
    ) -> tuple[_Forward, Layout]:
        """
        Join the forward with the last one laid out, which has fewer layers, if that is cheaper.

        The cost of a forward is its number of tokens times its number of layers. Joined, the tokens that both share
        are computed once, but all of them pass through `num_layers`.
        """
        fewer_layers, last, last_layout = laid_out[-1]
        if any(NORM in self.plan.layers(term) for term in last.gather):
            return forward, layout  # its final norm must follow its own last layer
        joined = _Forward()
        for one in (last, forward):
            keys = list(one.rows)
            for name, of_name in one.gather.items():
                for row, positions in of_name:
                    joined.add_sequence(keys[row], one.sequences[row], name, positions, one.slots[row])
        joined_layout = self._layout(joined)
        apart = _size(layout) * num_layers + _size(last_layout) * fewer_layers
        if _size(joined_layout) * num_layers >= apart:
            return forward, layout
        laid_out.pop()
        return joined, joined_layout

    def _measure(self, examples: list[dict[str, Any]]) -> _Forward:
        """The forward of [`Objective.measure`], which gathers the positions that predict completion tokens."""
        forward = _Forward()
        for number, row in enumerate(examples):
            positions = np.arange(row["prompt_length"] - 1, len(row["input_ids"]) - 1)
            name = CIRCUIT_BREAKER if row["set"] == CIRCUIT_BREAKER else RETAIN
            forward.add_sequence((number, "row"), row["input_ids"], name, positions)
        return forward

    def _adversary(
        self, examples: list[dict[str, Any]], slots: dict[int, Slots], num_slots: int
    ) -> dict[str, Any] | None:
        """The adversary's forward: each perturbed prompt once, with the opening of the attacker's call."""
        forward, targets, weights = _Forward(), [], []
        seen: set[int] = set()
        for number, own in slots.items():
            row = examples[number]
            if own.numbers[0] in seen:
                continue
            seen.add(own.numbers[0])
            start, opening = row["prompt_length"], row["hijack_ids"][row["prompt_length"] : -1]
            positions = np.arange(start - 1, start - 1 + len(opening))
            forward.add_sequence((number, "hijack"), row["hijack_ids"][:-2], "opening", positions, own)
            targets.append(opening)
            weights.append(np.full(len(opening), 1 / len(opening), dtype=np.float32))
        if not targets:
            return None
        batch = forward.batch(self.plan.num_layers, self._layout(forward))
        columns = {"targets": targets, "weights": weights}
        batch |= {name: torch.from_numpy(np.concatenate(values)) for name, values in columns.items()}
        return batch | {"num_slots": num_slots}

    def _layout(self, forward: _Forward) -> Layout:
        sequences = forward.sequences
        if not self.padding_free:
            return padded(sequences, self.pad_token_id, self._padded_length(sequences))
        identities = None
        if any(slots is not None for slots in forward.slots):
            identities = [identities_of(*one) for one in zip(sequences, forward.slots, strict=True)]
        return packed(sequences, self.shared_prefix, identities)

    def _padded_length(self, sequences: Sequence[Sequence[int]]) -> int:
        multiple = self.pad_to_multiple_of or 1
        return -(-max(map(len, sequences)) // multiple) * multiple


def _size(layout: Layout) -> int:
    return layout.inputs["input_ids"].numel()
