"""The terms of the loss in one table, and the plan of a run: which terms apply to a row, and at which tokens.

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


# The states after the final norm, the input of the LM head. Other layers are numbered as in `hidden_states.py`.
NORM = -1

# Sequences that a network can be given, and the columns of a prepared row that hold them.
COLUMNS = {"row": "input_ids", "clean": "clean_ids", "splice": "splice_ids", "hijack": "hijack_ids"}


@dataclass(frozen=True)
class Term:
    """
    A term of the loss.

    Args:
        role (`str`): `"breaker"` for terms against the attacker's call, `"retain"` for terms that preserve or teach
            behaviour. A schedule has a factor for each role.
        classes (`tuple[str, ...]`): Classes of rows the term applies to unless the config says otherwise.
        value (`Callable`): Function in `losses.py`. It takes states (a list with a tensor per layer) or logits of the
            student, those of the teacher if the term has one, and then the columns of `inputs`.
        tokens (`Callable`): Function in `masks.py` that returns the weights of the tokens.
        layers (`str`): `"target"` or `"retain"` for states at these layers, or `"logits"`.
        student (`str`, *optional*, defaults to `"row"`): Sequence given to the adapted network, a key of [`COLUMNS`].
        teacher (`str`, *optional*, defaults to `"row"`): Sequence given to the frozen network. `None` if there is no
            teacher.
        inputs (`tuple[str, ...]`, *optional*): Further inputs, with one entry per token: `"targets"`, the token that
            follows, and `"harmful"`, whether the row is of Ds.
        settings (`Mapping[str, str]`, *optional*): Further keyword arguments of `value`, and the fields of the config
            that hold them.
        padding_setting (`str`, *optional*): Field of the config that, set to `"reference"`, makes the mean go over all
            positions of the padded batch.
        on_redacted (`bool`, *optional*, defaults to `False`): Whether the term applies to rows whose attack was cut
            from the prompt. Nothing in such a prompt asks for the wrong call, but its states can be rerouted, and the
            attacker's tool is as wrong after it.
        reroutes (`bool`, *optional*, defaults to `False`): Whether the term moves hidden states of harmful
            completions, as Representation Rerouting does.
        optional (`bool`, *optional*, defaults to `False`): Whether rows of its classes may have no token for it.
    """

    role: Literal["breaker", "retain"]
    classes: tuple[str, ...]
    value: Callable[..., torch.Tensor]
    tokens: Callable[[MaskSettings, Row], np.ndarray]
    layers: Literal["target", "retain", "logits"]
    student: Literal["row", "splice", "hijack"] = "row"
    teacher: Literal["row", "clean"] | None = "row"
    inputs: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    padding_setting: str | None = None
    on_redacted: bool = False
    reroutes: bool = False
    optional: bool = False


# Retain rows on which the frozen network would follow the attack, so that the right call has to be taught. On all
# others its behaviour is to be preserved.
_TAUGHT = ("adversarial_safe",)
_PRESERVED = tuple(name for name in RETAIN_CLASSES if name not in _TAUGHT)

TERMS = {
    "rr": Term(
        "breaker", tuple(HARMFUL_CLASSES), losses.rr, masks.rerouted, "target", on_redacted=True, reroutes=True
    ),
    "unlikelihood": Term(
        "breaker",
        ("harmful_flip",),
        losses.unlikelihood,
        masks.attack,
        "logits",
        teacher=None,
        inputs=("targets",),
        on_redacted=True,
        optional=True,  # without a sibling, nothing says where a call of the right tool begins to be wrong
    ),
    "stop": Term(
        "breaker",
        (*_TAUGHT, "benign_twin"),
        losses.cross_entropy,
        masks.end_of_turn,
        "logits",
        student="hijack",
        teacher=None,
        inputs=("targets",),
        optional=True,
    ),
    "triplet": Term(
        "breaker",
        (*HARMFUL_CLASSES, *_PRESERVED),
        losses.triplet,
        masks.rerouted_or_retained,
        "target",
        inputs=("harmful",),
        settings={"margins": "triplet_margins"},
        reroutes=True,
    ),
    "retain_l2": Term(
        "retain",
        tuple(RETAIN_CLASSES),
        losses.retain_l2,
        masks.retained,
        "retain",
        settings={"measure": "retain_l2_distance"},
        padding_setting="retain_l2_norm",
    ),
    "retain_kl": Term(
        "retain", _PRESERVED, losses.kl, masks.retained_decisions, "logits", settings={"temperature": "kl_temperature"}
    ),
    "distill": Term(
        "retain",
        _TAUGHT,
        losses.kl,
        masks.completion_decisions,
        "logits",
        teacher="clean",
        settings={"temperature": "kl_temperature"},
    ),
    "twin": Term("retain", _TAUGHT, losses.twin, masks.completion, "target", teacher="clean"),
    "splice": Term(
        "retain",
        _TAUGHT,
        losses.cross_entropy,
        masks.recovery,
        "logits",
        student="splice",
        teacher=None,
        inputs=("targets",),
        optional=True,  # an answer in words has no call to recover
    ),
    "ce": Term(
        "retain",
        _TAUGHT,
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
        weights (`np.ndarray`): Weight of each position.
        targets (`np.ndarray`): Id of the token after each position.
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
            For each term in use, the classes of rows it applies to.
        target_layers, retain_layers (`tuple[int, ...]`):
            Layers of the terms on states. [`NORM`] stands for the final norm after the last of the others.
        num_layers (`int`):
            Number of decoder layers of the model.
        masks ([`~trainers.objective.masks.MaskSettings`], *optional*):
            Settings of the token masks.
        over_padding (`tuple[str, ...]`, *optional*):
            Terms whose mean is over all positions of the padded batch.
        skip_layers (`bool`, *optional*, defaults to `True`):
            Whether a forward ends at the last layer that its terms need.
    """

    classes: dict[str, tuple[str, ...]]
    target_layers: tuple[int, ...]
    retain_layers: tuple[int, ...]
    num_layers: int
    masks: MaskSettings = field(default_factory=MaskSettings)
    over_padding: tuple[str, ...] = ()
    skip_layers: bool = True
    _forward_layers: dict[tuple[str, str], int] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self):
        for term in self.classes:
            for network in ("adapted", "frozen"):
                self._forward_layers[term, network] = self._layers_of_forward(term, network)

    @property
    def layers_reached(self) -> int:
        """Number of decoder layers, from the first on, that the terms depend on."""
        return max(self._layers_needed(term) for term in self.classes)

    def layers(self, term: str) -> tuple[int, ...]:
        """Layers whose states a term is computed on."""
        return {"target": self.target_layers, "retain": self.retain_layers, "logits": (NORM,)}[TERMS[term].layers]

    def sequence(self, term: str, network: str) -> str | None:
        """Sequence that a term gives the `"adapted"` or the `"frozen"` network, a key of [`COLUMNS`]."""
        return TERMS[term].student if network == "adapted" else TERMS[term].teacher

    def layers_run(self, term: str, network: str) -> int:
        """Number of decoder layers that the forward of a term runs. Terms with the same number share a forward."""
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
        # A sequence that another term runs through more layers is computed once, through all of them
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
        """The tokens of a row that a term is computed on. There may be none."""
        spec = TERMS[term]
        tokens = np.asarray(row[COLUMNS[spec.student]], dtype=np.int64)
        weights = spec.tokens(self.masks, row)
        if spec.teacher == "clean" and not row["clean_ids"]:
            weights = np.zeros(0, dtype=np.float32)
        if spec.layers == "logits":
            weights = weights[1:]  # a token is predicted by the logits of the token before it
        else:  # the state before a token counts too, because it predicts the token
            weights[:-1] = np.maximum(weights[:-1], weights[1:])
        positions = weights.nonzero()[0]
        # Both sequences end with the same completion, so they are aligned at their ends
        shift = len(row["clean_ids"]) - len(tokens) if spec.teacher == "clean" else 0
        targets = tokens[np.minimum(positions + 1, len(tokens) - 1)]
        return Gather(positions, positions + shift, weights[positions], targets)
