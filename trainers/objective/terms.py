"""The terms of the loss: on which rows each works, and what it reads of the two networks.

The values are in `losses.py`. Here is who is asked for them: a term names the classes of rows it applies to, the
sequence that the adapted network reads, the one that the frozen network reads beside it, and at which tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cb_datasets.sample import HARMFUL_CLASSES, RETAIN_CLASSES

from .masks import attack_tokens, decision_tokens, token_weights


# What a read takes after the final norm, where the LM head begins; other layers are numbered as in `hidden_states.py`.
NORM = -1


class Term(NamedTuple):
    """
    What a term is, whatever the run.

    Args:
        breaks (`bool`): Whether it works against the attacker's call; if not, it keeps something.
        classes (`tuple[str, ...]`): Classes it applies to unless the config says otherwise.
        sequence (`str`): What the adapted network reads: `"row"`, or `"splice"`.
        reference (`str`, *optional*): What the frozen network reads: `"row"`, `"clean"`, or nothing.
        layers (`str`): Which states: at the `"target"` or the `"retain"` layers, or those that give the `"logits"`.
    """

    breaks: bool
    classes: tuple[str, ...]
    sequence: str
    reference: str | None
    layers: str


_UNDER_ATTACK = ("adversarial_safe",)
_KEPT = tuple(name for name in RETAIN_CLASSES if name not in _UNDER_ATTACK)

TERMS = {
    "rr": Term(True, tuple(HARMFUL_CLASSES), "row", "row", "target"),
    "unlikelihood": Term(True, ("harmful_flip",), "row", None, "logits"),
    "triplet": Term(True, (*HARMFUL_CLASSES, *_KEPT), "row", "row", "target"),
    "retain_l2": Term(False, tuple(RETAIN_CLASSES), "row", "row", "retain"),
    "retain_kl": Term(False, _KEPT, "row", "row", "logits"),
    "distill": Term(False, _UNDER_ATTACK, "row", "clean", "logits"),
    "twin": Term(False, _UNDER_ATTACK, "row", "clean", "target"),
    "splice": Term(False, _UNDER_ATTACK, "splice", None, "logits"),
    "ce": Term(False, _UNDER_ATTACK, "row", None, "logits"),
}


class Read(NamedTuple):
    """
    What one term reads of one row.

    Args:
        positions, reference_positions (`np.ndarray`): Tokens of the adapted and of the frozen network's sequence.
        weights (`np.ndarray`): Weight of each.
        targets (`np.ndarray`): The token that follows each.
    """

    positions: np.ndarray
    reference_positions: np.ndarray
    weights: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Plan:
    """
    The terms of one run.

    Args:
        classes (`dict[str, tuple[str, ...]]`):
            For each term in use the classes it applies to.
        target_layers, retain_layers (`tuple[int, ...]`):
            Layers, [`NORM`] among them for the final norm after the deepest.
        num_blocks (`int`):
            Blocks of the model.
        rr_tokens, rr_from, retain_tokens, injection_weight, decision_weight:
            As in [`CircuitBreakerConfig`].
        retain_l2_positions (`bool`):
            Whether `retain_l2` is a mean over all positions of the padded batch.
        skip_layers (`bool`):
            Whether a forward ends at the deepest layer that its terms read.
    """

    classes: dict[str, tuple[str, ...]]
    target_layers: tuple[int, ...]
    retain_layers: tuple[int, ...]
    num_blocks: int
    rr_tokens: str = "completion"
    rr_from: str = "start"
    retain_tokens: str = "completion"
    injection_weight: float = 0.0
    decision_weight: float = 1.0
    retain_l2_positions: bool = False
    skip_layers: bool = True
    _depths: dict[tuple[str, bool], int] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self):
        for term in self.classes:
            for reference in (False, True):
                self._depths[term, reference] = self._depth(term, reference)

    @property
    def depth(self) -> int:
        """Number of blocks that any term reaches."""
        return max(self._own_depth(term) for term in self.classes)

    def layers(self, term: str) -> tuple[int, ...]:
        """Layers that a term reads."""
        kind = TERMS[term].layers
        return {"target": self.target_layers, "retain": self.retain_layers, "logits": (NORM,)}[kind]

    def blocks(self, term: str, reference: bool) -> int:
        """Number of blocks that run in the forward that serves a term. Terms with the same number share it."""
        return self._depths[term, reference]

    def _own_depth(self, term: str) -> int:
        if TERMS[term].layers == "logits":
            return self.num_blocks
        layers = self.layers(term)
        return max(layers) + (NORM in layers)

    def _depth(self, term: str, reference: bool) -> int:
        if NORM in self.layers(term):
            return self._own_depth(term)
        if not self.skip_layers:
            return self.depth
        # A row that another term needs further up is computed once, all the way.
        sequence = _sequence(term, reference)
        others = [
            self._own_depth(other)
            for other in self.classes
            if _sequence(other, reference) == sequence and set(self.classes[other]) & set(self.classes[term])
        ]
        return max(others)

    def terms_of(self, row: Mapping[str, Any]) -> list[str]:
        """Terms that apply to a row."""
        return [
            term
            for term, classes in self.classes.items()
            # Without the attack in the prompt there is no wrong call in it, only states to be rerouted.
            if row["priority_class"] in classes and not (row["redacted"] and term != "rr")
        ]

    def read(self, term: str, row: Mapping[str, Any]) -> Read:
        """What a term reads of a row; no positions where the row has no token for it."""
        if term == "splice":
            tokens = np.asarray(row["splice_ids"], dtype=np.int64)
            weights = np.zeros(len(tokens), dtype=np.float32)
            weights[row["splice_start"] :] = 1.0
            begin, end = row["tool_name"]
            weights[row["splice_start"] : row["splice_start"] + end - begin] = self.decision_weight
        else:
            tokens = np.asarray(row["input_ids"], dtype=np.int64)
            weights = self._weights(term, row)
        if TERMS[term].reference == "clean" and not row["clean_ids"]:
            weights = np.zeros(0, dtype=np.float32)
        if TERMS[term].layers == "logits":
            weights = weights[1:]  # what the network expects at a token is read at the token before
        else:  # and so the state before a token counts as the one at it: a call is decided before its first token
            weights[:-1] = np.maximum(weights[:-1], weights[1:])
        positions = weights.nonzero()[0]
        shift = len(row["clean_ids"]) - len(tokens) if TERMS[term].reference == "clean" else 0
        targets = tokens[np.minimum(positions + 1, len(tokens) - 1)]
        return Read(positions, positions + shift, weights[positions], targets)

    def _weights(self, term: str, row: Mapping[str, Any]) -> np.ndarray:
        if term == "unlikelihood":
            weights = np.zeros(len(row["input_ids"]), dtype=np.float32)
            weights[attack_tokens(row)] = 1.0
        elif term == "rr" or (term == "triplet" and row["priority_class"] in HARMFUL_CLASSES):
            weights = token_weights(row, self.rr_tokens, self.rr_from, self.injection_weight)
        else:
            kept = term in ("retain_l2", "retain_kl", "triplet")
            weights = token_weights(row, self.retain_tokens if kept else "completion")
            if TERMS[term].layers == "logits":
                weights[decision_tokens(row)] *= self.decision_weight
        return weights


def _sequence(term: str, reference: bool) -> str | None:
    return TERMS[term].reference if reference else TERMS[term].sequence
