"""Forward passes of the adapted and the frozen network, and the loss terms computed from them.

The frozen network is the same network with its adapter disabled. The batch says which forwards to run
(`collator.py`), the table of terms which rows, tokens and layers each term takes (`terms.py`), and `losses.py` has the
functions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from cb_datasets.sample import CIRCUIT_BREAKER, RETAIN

from ..circuit_breaker_config import CircuitBreakerConfig
from ..speed.reference_cache import ReferenceCache
from . import losses
from .adversary import mean_norm, perturbed, worst_perturbation
from .hidden_states import LogitsHead, get_base_model, get_decoder, hidden_states_at
from .terms import NORM, TERMS, Plan


class Objective:
    """
    The terms of the loss, token by token.

    Args:
        network ([`~peft.PeftModel`]):
            The model with its adapter, without the wrapper of a distributed engine.
        plan ([`~trainers.objective.terms.Plan`]):
            The terms, and the tokens they are computed on.
        args ([`CircuitBreakerConfig`]):
            Settings of the terms and of the forwards.
        cache ([`~trainers.speed.reference_cache.ReferenceCache`], *optional*):
            Stored states of the frozen network.
    """

    def __init__(
        self, network: PeftModel, plan: Plan, args: CircuitBreakerConfig, cache: ReferenceCache | None = None
    ):
        self.network = network
        self.plan = plan
        self.args = args
        self.cache = cache
        self.head = LogitsHead(get_base_model(network), args.logits_chunk_size) if args.masked_logits else None
        self.embedding = cast(nn.Embedding, get_base_model(network).get_input_embeddings())
        self.embedding_norm = mean_norm(self.embedding) if args.adversary_steps else 0.0

    def values(
        self, model: nn.Module, inputs: dict[str, Any], radius: float = 0.0
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """
        Values of the terms that apply to a batch, of shape `(tokens,)`.

        Args:
            model ([`~torch.nn.Module`]):
                The network with its adapter; may be wrapped.
            inputs (`dict[str, Any]`):
                The batch.
            radius (`float`, *optional*, defaults to `0.0`):
                Radius of the adversary, relative to the mean norm of the embeddings; 0 is no adversary.
        """
        delta = self.perturbation(inputs["adversary"], radius) if radius and inputs["adversary"] else None
        with self.frozen():
            frozen = self.states(self.network, inputs["frozen"], delta)
        if self.cache is not None:
            frozen = self._with_cached(self.cache, frozen, inputs["cached"])
        adapted = self.states(model, inputs["adapted"], delta)
        for term in self.plan.classes:
            if term in adapted:
                # Popped, so that states are freed as soon as their term is computed
                yield term, self._term_values(term, adapted.pop(term), frozen.pop(term, None), inputs)

    def perturbation(self, forward: dict[str, Any], radius: float) -> torch.Tensor:
        """
        The perturbation of a batch's slots that the adversary finds, see `adversary.py`.

        Args:
            forward (`dict[str, Any]`):
                `adversary` of a batch.
            radius (`float`):
                Radius, relative to the mean norm of the embeddings.
        """
        targets, weights = forward["targets"], forward["weights"]

        def loss_of(delta: torch.Tensor) -> torch.Tensor:
            # Through the unwrapped network: nothing is learned here
            [states] = self.states(self.network, [forward], delta)["opening"]
            value = losses.cross_entropy
            values = value(states, targets) if self.head is None else self.head(value, [states], targets)
            return (values * weights).sum()

        with self._without_adapter_gradients():
            return worst_perturbation(
                loss_of,
                torch.zeros(forward["num_slots"], self.embedding.weight.shape[-1], device=targets.device),
                radius * self.embedding_norm,
                self.args.adversary_steps or 0,
            )

    @contextmanager
    def _without_adapter_gradients(self) -> Iterator[None]:
        """Computes no gradients of the adapter's weights within the context."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def states(
        self, model: nn.Module, forwards: list[dict[str, Any]], delta: torch.Tensor | None = None
    ) -> dict[str, list[torch.Tensor]]:
        """
        States or logits of each term, of shape `(tokens, hidden_size)` or `(tokens, vocabulary)`.

        Args:
            model ([`~torch.nn.Module`]):
                Network to run; may be wrapped.
            forwards (`list[dict[str, Any]]`):
                Forwards of a batch.
            delta (`torch.Tensor`, *optional*):
                Perturbation of the slots.
        """
        states: dict[str, list[torch.Tensor]] = {}
        for forward in forwards:
            gather = {
                name: (self.plan.layers(name) if name in TERMS else (NORM,), positions)
                for name, positions in forward["gather"].items()
            }
            with perturbed(self.embedding, forward["slots"]["positions"], forward["slots"]["numbers"], delta):
                states |= hidden_states_at(
                    model,
                    get_decoder(self.network),
                    forward["inputs"],
                    forward["num_layers"],
                    gather,
                    full_logits=self.head is None,
                )
        return states

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Disables the adapter within the context, and dropout: the reference is the same in every step."""
        # Not `PeftModel.disable_adapter`, which first queries the state of every module and takes three times as long
        adapters = cast(BaseTuner, self.network.base_model)
        with torch.no_grad(), self._evaluating():
            adapters.disable_adapter_layers()
            try:
                yield
            finally:
                adapters.enable_adapter_layers()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """
        Puts the network in evaluation mode within the context, without dropout, the router noise of some models, and
        activation checkpointing, for which forwards without gradients have no use.
        """
        # Module by module, because a model can have parts that stay in evaluation mode while it is trained; and past
        # `nn.Module.__setattr__`, which would take half as long as the adapter's switch
        training = [module for module in self.network.modules() if module.training]
        for module in training:
            vars(module)["training"] = False
        try:
            yield
        finally:
            for module in training:
                vars(module)["training"] = True

    def _with_cached(
        self,
        cache: ReferenceCache,
        computed: dict[str, list[torch.Tensor]],
        cached: dict[str, list[dict[str, Any]]],
    ) -> dict[str, list[torch.Tensor]]:
        """States of the frozen network in the order of the rows: stored ones, and computed ones, which are stored."""
        states = {}
        for term, rows in cached.items():
            start, states_of_rows = 0, []
            for row in rows:
                row_states = row["states"]
                if row_states is None:
                    row_states = [state[start : start + row["num_tokens"]] for state in computed[term]]
                    start += row["num_tokens"]
                    if row["key"] is not None:
                        cache.put(row["key"], row_states)
                states_of_rows.append(row_states)
            states[term] = [torch.cat(layer) for layer in zip(*states_of_rows, strict=True)]
        return states

    def _term_values(
        self, name: str, adapted: list[torch.Tensor], frozen: list[torch.Tensor] | None, inputs: dict[str, Any]
    ) -> torch.Tensor:
        """Values of a term, token by token: its function applied to the states or logits that its table row names."""
        term = TERMS[name]
        value = partial(term.value, **{key: getattr(self.args, field) for key, field in term.settings.items()})
        columns = [inputs[column][name] for column in term.inputs]
        if term.layers == "logits":
            outputs = [*adapted, *(frozen or [])]
            return value(*outputs, *columns) if self.head is None else self.head(value, outputs, *columns)
        states = [adapted] if frozen is None else [adapted, frozen]
        return value(*states, *columns)

    @torch.no_grad()
    def measure(self, forwards: list[dict[str, Any]]) -> torch.Tensor:
        """
        Distances of hidden states to the frozen ones, and entropies, at the positions that predict completions.

        They do not depend on the terms in use, so runs with different losses can be compared.

        Args:
            forwards (`list[dict[str, Any]]`):
                The one forward of a batch's `measure`.

        Returns:
            `torch.Tensor`: for Ds and for Dr a row of sums over tokens: the number of tokens, the cosines and then the
            distances to the frozen states by target layer, and the entropies of the adapted and the frozen network.
        """
        [forward] = forwards
        arguments = {
            "model": self.network,
            "decoder": get_decoder(self.network),
            "inputs": forward["inputs"],
            "num_layers": forward["num_layers"],
            "gather": {
                name: ((*self.plan.target_layers, NORM), positions) for name, positions in forward["gather"].items()
            },
        }
        with self._evaluating():  # without dropout, so that no random numbers of the training are used up
            adapted = hidden_states_at(**arguments)
        with self.frozen():
            frozen = hidden_states_at(**arguments)
        device = forward["inputs"]["input_ids"].device
        sums = torch.zeros(2, 3 + 2 * len(self.plan.target_layers), device=device)
        for row, name in zip(sums, (CIRCUIT_BREAKER, RETAIN), strict=True):
            if name in adapted:
                (*hidden, last), (*reference, last0) = adapted[name], frozen[name]
                pairs = list(zip(hidden, reference, strict=True))
                values = [losses.token_cosine(h, h0) for h, h0 in pairs]
                values += [losses.distance(h, h0) for h, h0 in pairs]
                if self.head is not None:
                    values += [self.head(losses.entropy, [state]) for state in (last, last0)]
                row[0] = len(last)
                row[1 : 1 + len(values)] = torch.stack([value.sum() for value in values])
        return sums
