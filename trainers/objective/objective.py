"""What the two networks say about a batch, and what the terms of the loss make of it.

The two are one: with its adapter, and with the adapter disabled. The forwards to make are in the batch (see
`collation.py`), the values of the terms in `losses.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from trl.models.utils import disable_gradient_checkpointing

from ..circuit_breaker_config import CircuitBreakerConfig
from ..collator import CIRCUIT_BREAKER, RETAIN
from ..speed.reference_cache import ReferenceCache
from . import losses
from .hidden_states import LogitsHead, get_decoder, hidden_states_at
from .terms import NORM, Plan


class Objective:
    """
    The terms of the loss, token by token.

    Args:
        network ([`~peft.PeftModel`]):
            The model with its adapter, as it is without what a distributed engine wraps it in.
        plan ([`~trainers.objective.terms.Plan`]):
            The terms, and what they read.
        args ([`CircuitBreakerConfig`]):
            Settings of the terms and of the forwards.
        cache ([`~trainers.speed.reference_cache.ReferenceCache`], *optional*):
            Where states of the frozen network are kept.
    """

    def __init__(
        self, network: PeftModel, plan: Plan, args: CircuitBreakerConfig, cache: ReferenceCache | None = None
    ):
        self.network = network
        self.plan = plan
        self.args = args
        self.cache = cache
        self.head = LogitsHead(network.get_base_model(), args.logits_chunk_size) if args.masked_logits else None

    def values(self, model: nn.Module, inputs: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
        """
        Values of the terms that apply to a batch, of shape `(tokens,)`.

        Args:
            model ([`~torch.nn.Module`]):
                The network with its adapter, as it is called: it may be wrapped.
            inputs (`dict[str, Any]`):
                The batch.
        """
        with self.frozen():
            frozen = self.states(self.network, inputs["frozen"])
        if self.cache is not None:
            frozen = self._with_known(frozen, inputs["known"])
        adapted = self.states(model, inputs["adapted"])
        for term in self.plan.classes:
            if term in adapted:
                # States are let go of as soon as a term has read them
                states, reference = adapted.pop(term), frozen.pop(term, None)
                yield term, self._values(term, states, reference, inputs["targets"][term], inputs["harmful"][term])

    def states(self, model: nn.Module, forwards: list[dict[str, Any]]) -> dict[str, list[torch.Tensor]]:
        """What each term reads of the network, in some forwards."""
        states = {}
        for forward in forwards:
            reads = {term: (self.plan.layers(term), tokens) for term, tokens in forward["reads"].items()}
            states |= hidden_states_at(
                model,
                get_decoder(self.network),
                forward["inputs"],
                forward["blocks"],
                reads,
                full_logits=self.head is None,
            )
        return states

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the context the network is what it was before training."""
        # Not `PeftModel.disable_adapter`: it asks every module for its state first, which takes thrice as long
        adapters = self.network.base_model
        with torch.no_grad(), self._kept_states():
            adapters.disable_adapter_layers()
            try:
                yield
            finally:
                adapters.enable_adapter_layers()

    def _kept_states(self) -> AbstractContextManager[None]:
        """Within the context no state is computed again for a backward, for there is none."""
        if not self.args.gradient_checkpointing:
            return nullcontext()  # without a walk over all modules
        return disable_gradient_checkpointing(self.network, self.args.gradient_checkpointing_kwargs)

    def _with_known(
        self, computed: dict[str, list[torch.Tensor]], known: dict[str, list[dict[str, Any]]]
    ) -> dict[str, list[torch.Tensor]]:
        """States of the frozen network in the order of the rows: those that were kept, and those just computed."""
        states = {}
        for term, rows in known.items():
            start, parts = 0, []
            for row in rows:
                part = row["states"]
                if part is None:
                    part = [state[start : start + row["number"]] for state in computed[term]]
                    start += row["number"]
                    self.cache.put(row["key"], part)
                parts.append(part)
            states[term] = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        return states

    def _logit_values(
        self, values: Callable[..., torch.Tensor], states: list[torch.Tensor], *others: torch.Tensor
    ) -> torch.Tensor:
        return values(*states, *others) if self.head is None else self.head(values, states, *others)

    def _values(
        self,
        term: str,
        adapted: list[torch.Tensor],
        frozen: list[torch.Tensor] | None,
        targets: torch.Tensor,
        harmful: torch.Tensor,
    ) -> torch.Tensor:
        """Values of a term, token by token."""
        if term == "rr":
            return losses.rr(adapted, frozen)
        if term == "retain_l2":
            return losses.retain_l2(adapted, frozen)
        if term == "twin":
            return losses.twin(adapted, frozen)
        if term == "triplet":
            return self._triplet_values(adapted, frozen, harmful)
        if term in ("retain_kl", "distill"):
            divergence = partial(losses.kl, temperature=self.args.kl_temperature)
            return self._logit_values(divergence, [*adapted, *frozen])
        value = losses.unlikelihood if term == "unlikelihood" else losses.cross_entropy
        return self._logit_values(value, adapted, targets)

    def _triplet_values(
        self, adapted: list[torch.Tensor], frozen: list[torch.Tensor], harmful: torch.Tensor
    ) -> torch.Tensor:
        (keep, drive), values = self.args.triplet_margins, torch.zeros_like(harmful, dtype=torch.float32)
        if not harmful.any():
            return values
        bad, good = ([h[mask] for h in adapted] for mask in (harmful, ~harmful))
        bad0, good0 = ([h0[mask] for h0 in frozen] for mask in (harmful, ~harmful))
        center = [h.float().mean(0, keepdim=True) for h in bad]
        values = values.masked_scatter(harmful, losses.triplet(bad, center, bad0, drive))
        return values.masked_scatter(~harmful, losses.triplet(good, good0, center, keep))

    @torch.no_grad()
    def measure(self, forwards: list[dict[str, Any]]) -> torch.Tensor:
        """
        How far the states that completions come from have moved, whatever the terms, and how sure the network is.

        Returns:
            `torch.Tensor`: for Ds and for Dr a row of sums over tokens: their number, the cosines and then the
            distances to the frozen states by target layer, and the entropies of the adapted and the frozen network.
        """
        training = self.network.training
        self.network.eval()  # without dropout, and without drawing its random numbers
        [forward] = forwards
        arguments = {
            "model": self.network,
            "decoder": get_decoder(self.network),
            "inputs": forward["inputs"],
            "num_blocks": forward["blocks"],
            "reads": {name: ((*self.plan.target_layers, NORM), at) for name, at in forward["reads"].items()},
        }
        with self._kept_states():
            adapted = hidden_states_at(**arguments)
        with self.frozen():
            frozen = hidden_states_at(**arguments)
        self.network.train(training)
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
