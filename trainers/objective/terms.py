"""The terms of the loss in one table, and the plan of a run: which of them apply to a row, and at which tokens.

    "distill":  role retain, classes adversarial_safe, value losses.kl, tokens completion_decisions, layers logits,
                student row (the attacked prompt), teacher clean (the frozen network on the clean prompt)

To add a term, write its value as a function in `losses.py` and give it a row in [`TERMS`]; its weight is a field
`<name>_weight` of the config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from cb_datasets.sample import HARMFUL_CLASSES, RETAIN_CLASSES

from . import losses, masks
from .masks import MaskSettings, Row


# The layer after the final norm, where the LM head begins; other layers are numbered as in `hidden_states.py`.
NORM = -1

# The column of a prepared row that holds each sequence a network can be given.
COLUMNS = {"row": "input_ids", "clean": "clean_ids", "splice": "splice_ids"}


@dataclass(frozen=True)
class Term:
    """
    A term of the loss, whatever the run.

    Args:
        role (`str`): `"breaker"`: works against the attacker's call; `"retain"`: keeps or teaches something. Schedules
            weigh the two roles against each other.
        classes (`tuple[str, ...]`): Classes it applies to unless the config says otherwise.
        value (`Callable`): Its function in `losses.py`. It takes what the student computes, then what the teacher
            computes where there is one, then the columns of `inputs`; lists of states, or logits.
        tokens (`Callable`): Its tokens and their weights, a function of `masks.py`.
        layers (`str`): States at the `"target"` or the `"retain"` layers, or `"logits"`.
        student (`str`, *optional*, defaults to `"row"`): Sequence of the adapted network, a key of [`COLUMNS`].
        teacher (`str`, *optional*, defaults to `"row"`): Sequence of the frozen network; `None` if it needs none.
        inputs (`tuple[str, ...]`, *optional*): What else it takes for each token: `"targets"`, the token that follows,
            and `"harmful"`, whether its row is of Ds.
        settings (`Mapping[str, str]`, *optional*): Keyword arguments of its function, as fields of the config.
        padding_setting (`str`, *optional*): Field of the config that, set to `"reference"`, has the mean count all
            positions of the padded batch.
        on_redacted (`bool`, *optional*, defaults to `False`): Whether rows whose attack was cut from the prompt may
            use it. There is no wrong call in such a prompt, only states to be rerouted.
        reroutes (`bool`, *optional*, defaults to `False`): Whether it moves hidden states of harmful completions:
            Representation Rerouting in the paper's sense.
    """

    role: Literal["breaker", "retain"]
    classes: tuple[str, ...]
    value: Callable[..., torch.Tensor]
    tokens: Callable[[MaskSettings, Row], np.ndarray]
    layers: Literal["target", "retain", "logits"]
    student: Literal["row", "splice"] = "row"
    teacher: Literal["row", "clean"] | None = "row"
    inputs: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    padding_setting: str | None = None
    on_redacted: bool = False
    reroutes: bool = False


_SAFE = ("adversarial_safe",)
_KEPT = tuple(name for name in RETAIN_CLASSES if name not in _SAFE)

TERMS = {
    "rr": Term(
        "breaker", tuple(HARMFUL_CLASSES), losses.rr, masks.rerouted, "target", on_redacted=True, reroutes=True
    ),
    "unlikelihood": Term(
        "breaker", ("harmful_flip",), losses.unlikelihood, masks.attack, "logits", teacher=None, inputs=("targets",)
    ),
    "triplet": Term(
        "breaker",
        (*HARMFUL_CLASSES, *_KEPT),
        losses.triplet,
        masks.contrasted,
        "target",
        inputs=("harmful",),
        settings={"margins": "triplet_margins"},
        reroutes=True,
    ),
    "retain_l2": Term(
        "retain", tuple(RETAIN_CLASSES), losses.retain_l2, masks.held, "retain", padding_setting="retain_l2_norm"
    ),
    "retain_kl": Term(
        "retain", _KEPT, losses.kl, masks.held_decisions, "logits", settings={"temperature": "kl_temperature"}
    ),
    "distill": Term(
        "retain",
        _SAFE,
        losses.kl,
        masks.completion_decisions,
        "logits",
        teacher="clean",
        settings={"temperature": "kl_temperature"},
    ),
    "twin": Term("retain", _SAFE, losses.twin, masks.completion, "target", teacher="clean"),
    "splice": Term(
        "retain",
        _SAFE,
        losses.cross_entropy,
        masks.recovery,
        "logits",
        student="splice",
        teacher=None,
        inputs=("targets",),
    ),
    "ce": Term(
        "retain",
        _SAFE,
        losses.cross_entropy,
        masks.completion_decisions,
        "logits",
        teacher=None,
        inputs=("targets",),
    ),
}


class Gather(NamedTuple):
    """
    The tokens of one row that one term is computed on.

    Args:
        positions, teacher_positions (`np.ndarray`): Positions in the student's and in the teacher's sequence.
        weights (`np.ndarray`): Weight of each.
        targets (`np.ndarray`): The token that follows each.
    """

    positions: np.ndarray
    teacher_positions: np.ndarray
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
        num_layers (`int`):
            Decoder layers of the model.
        masks ([`~trainers.objective.masks.MaskSettings`], *optional*):
            Which tokens count.
        over_padding (`tuple[str, ...]`, *optional*):
            Terms that are means over all positions of the padded batch.
        skip_layers (`bool`, *optional*, defaults to `True`):
            Whether a forward ends at the deepest layer that its terms need.
    """

    classes: dict[str, tuple[str, ...]]
    target_layers: tuple[int, ...]
    retain_layers: tuple[int, ...]
    num_layers: int
    masks: MaskSettings = MaskSettings()
    over_padding: tuple[str, ...] = ()
    skip_layers: bool = True
    _forward_layers: dict[tuple[str, str], int] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self):
        for term in self.classes:
            for network in ("adapted", "frozen"):
                self._forward_layers[term, network] = self._layers_of_forward(term, network)

    @property
    def layers_reached(self) -> int:
        """Number of decoder layers that any term reaches."""
        return max(self._layers_needed(term) for term in self.classes)

    def layers(self, term: str) -> tuple[int, ...]:
        """Layers at which a term takes states."""
        return {"target": self.target_layers, "retain": self.retain_layers, "logits": (NORM,)}[TERMS[term].layers]

    def sequence(self, term: str, network: str) -> str | None:
        """What a term gives the `"adapted"` or the `"frozen"` network, a key of [`COLUMNS`]."""
        return TERMS[term].student if network == "adapted" else TERMS[term].teacher

    def layers_run(self, term: str, network: str) -> int:
        """Number of decoder layers of the forward that serves a term. Terms with the same number share it."""
        return self._forward_layers[term, network]

    def _layers_needed(self, term: str) -> int:
        if TERMS[term].layers == "logits":
            return self.num_layers
        layers = self.layers(term)
        return max(layers) + (NORM in layers)

    def _layers_of_forward(self, term: str, network: str) -> int:
        if NORM in self.layers(term):
            return self._layers_needed(term)
        if not self.skip_layers:
            return self.layers_reached
        # A row that another term needs further up is computed once, all the way.
        sequence = self.sequence(term, network)
        others = [
            self._layers_needed(other)
            for other in self.classes
            if self.sequence(other, network) == sequence and set(self.classes[other]) & set(self.classes[term])
        ]
        return max(others)

    def terms_of(self, row: Mapping[str, Any]) -> list[str]:
        """Terms that apply to a row."""
        return [
            term
            for term, classes in self.classes.items()
            if row["priority_class"] in classes and (TERMS[term].on_redacted or not row["redacted"])
        ]

    def gather(self, term: str, row: Row) -> Gather:
        """The tokens of a row that a term is computed on; no positions where the row has none for it."""
        spec = TERMS[term]
        tokens = np.asarray(row[COLUMNS[spec.student]], dtype=np.int64)
        weights = spec.tokens(self.masks, row)
        if spec.teacher == "clean" and not row["clean_ids"]:
            weights = np.zeros(0, dtype=np.float32)
        if spec.layers == "logits":
            weights = weights[1:]  # a token is predicted at the one before
        else:  # and so the state before a token counts as the one at it: a call is decided before its first token
            weights[:-1] = np.maximum(weights[:-1], weights[1:])
        positions = weights.nonzero()[0]
        # Both sequences end with the same completion, so they are aligned at their ends.
        shift = len(row["clean_ids"]) - len(tokens) if spec.teacher == "clean" else 0
        targets = tokens[np.minimum(positions + 1, len(tokens) - 1)]
        return Gather(positions, positions + shift, weights[positions], targets)
