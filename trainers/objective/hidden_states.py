"""Hidden states at a few layers, without running the layers above them.

States are numbered as `output_hidden_states=True` numbers them: 0 is the input of the first decoder layer (the
embeddings), and `l` is the output of `model.layers[l - 1]`. The library returns the last entry of that tuple after the
final norm. Here no state has passed the norm but [`NORM`], the output of the norm after the last layer that runs.

    states (3, 4) of a model with 32 decoder layers; layers[4] to layers[31] and the LM head do not run:

        embeddings -> layers[0] -> layers[1] -> layers[2] -> layers[3]
            0             1            2            3            4
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .terms import NORM


class Decoder(nn.Module):
    """Type of a stack of decoder layers: for type checkers, which know no attributes of a module."""

    layers: nn.ModuleList


def get_base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The causal language model inside an adapter, or the model itself if it has none."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def get_decoder(model: PreTrainedModel | PeftModel) -> Decoder:
    """
    The stack of decoder layers of a causal language model, with or without an adapter.

    Raises:
        ValueError: If the model has none that this module can read.
    """
    # `get_decoder` returns the stack of most models, but the whole of Llama 4
    for module in get_base_model(model).get_decoder().modules():
        if isinstance(getattr(module, "layers", None), nn.ModuleList) and _norms(module):
            return cast(Decoder, module)
    raise ValueError(
        f"{type(get_base_model(model)).__name__} is not supported: it has no module with decoder layers in "
        "`layers` and one final norm, so its hidden states cannot be read."
    )


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm after the last decoder layer."""
    return decoder.get_submodule(_norms(decoder)[0])


def _norms(decoder: nn.Module) -> list[str]:
    """Name of the final norm: `norm`, or that of the only norm beside the layers."""
    names = [name for name, _ in decoder.named_children() if "norm" in name]
    return ["norm"] if "norm" in names else names if len(names) == 1 else []


@contextmanager
def first_layers(decoder: Decoder, num_layers: int) -> Iterator[None]:
    """Truncates the decoder to its first `num_layers` layers within the context."""
    layers = decoder.layers
    decoder.layers = layers[:num_layers]
    try:
        yield
    finally:
        decoder.layers = layers


@contextmanager
def recorded(decoder: Decoder, layers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Records the decoder's states at `layers` in the dictionary, for forwards within the context."""
    states: dict[int, torch.Tensor] = {}
    handles = []
    for layer in layers:
        # Decoder layers return a tensor, or a tuple with it (Falcon-H1). Embeddings are recorded as the input of the
        # first layer, because some models scale them before.
        if layer == 0:

            def record_input(module, args, layer=layer):
                states[layer] = args[0]

            handles.append(decoder.layers[0].register_forward_pre_hook(record_input))
        else:

            def record_output(module, args, output, layer=layer):
                states[layer] = output[0] if isinstance(output, tuple) else output

            module = final_norm(decoder) if layer == NORM else decoder.layers[layer - 1]
            handles.append(module.register_forward_hook(record_output))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def hidden_states_at(
    model: nn.Module,
    decoder: Decoder,
    inputs: Mapping[str, Any],
    num_layers: int,
    gather: Mapping[str, tuple[Sequence[int], torch.Tensor]],
    full_logits: bool = False,
) -> dict[str, list[torch.Tensor]]:
    """
    Hidden states of some tokens at some layers, for several names at once.

    Layers above `num_layers` do not run, and the LM head gets no tokens. The forward goes through `model`, so that its
    wrappers (an adapter, a distributed engine) run as in any forward.

    Args:
        model ([`~torch.nn.Module`]):
            Causal language model to call; may be wrapped.
        decoder ([`~torch.nn.Module`]):
            Its stack of decoder layers, see [`get_decoder`].
        inputs (`Mapping[str, Any]`):
            Keyword arguments of the forward, for a padded batch or a packed row (see `packing.py`).
        num_layers (`int`):
            Number of decoder layers that run.
        gather (`Mapping[str, tuple[Sequence[int], torch.Tensor]]`):
            For each name the layers, and the positions of the tokens among the flattened tokens of the input.
        full_logits (`bool`, *optional*, defaults to `False`):
            Whether names with the layers `(NORM,)` get logits instead, which the model then computes for all tokens.

    Returns:
        `dict[str, list[torch.Tensor]]`: for each name, in the order of its layers, tensors of shape `(tokens,
        hidden_size)`, or `(tokens, vocabulary)` for logits.
    """
    layers = sorted({layer for own_layers, _ in gather.values() for layer in own_layers})
    no_logits = torch.empty(0, dtype=torch.long, device=inputs["input_ids"].device)
    for_logits = {name for name, (own_layers, _) in gather.items() if full_logits and tuple(own_layers) == (NORM,)}
    with first_layers(decoder, num_layers), recorded(decoder, layers) as states:
        output = model(**inputs, use_cache=False, logits_to_keep=0 if for_logits else no_logits)
    # Selected here and not in the hooks, which are gone when activation checkpointing recomputes a layer: what is
    # recomputed must be the same without them.
    return {
        name: [
            (output.logits if name in for_logits else states[layer]).flatten(0, 1).index_select(0, tokens)
            for layer in own_layers
        ]
        for name, (own_layers, tokens) in gather.items()
    }


class LogitsHead:
    """
    The LM head, applied to selected tokens in chunks.

    With a vocabulary of 128,256 the logits of a thousand tokens take half a gigabyte, and a loss keeps several such
    tensors for its backward. Here they exist for one chunk at a time, in the forward and in the backward.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model with the head.
        chunk_size (`int`):
            Tokens in a chunk.

    Raises:
        ValueError: If the model's logits are not just the output of its LM head.
    """

    def __init__(self, model: PreTrainedModel, chunk_size: int):
        self.linear = model.get_output_embeddings()
        if isinstance(self.linear, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise ValueError(
                "The adapter trains the LM head, and with `masked_logits` the frozen network would share it. Leave "
                "the head out of `modules_to_save` and `target_modules`, or set `masked_logits: false`."
            )
        self.chunk_size = chunk_size
        decoder = get_decoder(model)
        probe = torch.tensor([[1, 2]], device=model.device)
        with torch.no_grad(), first_layers(decoder, 0), recorded(decoder, [NORM]) as states:
            logits = model(input_ids=probe, use_cache=False).logits
        # With FSDP some processes receive their weights later and hold arbitrary values until then, NaN included
        if not torch.equal(self._logits(self._weight(), states[NORM]).nan_to_num(), logits.nan_to_num()):
            raise ValueError(
                f"{type(model).__name__} computes its logits by more than its LM head, so they cannot be computed for "
                "selected tokens alone. Set `masked_logits: false`."
            )

    def __call__(
        self, values: Callable[..., torch.Tensor], states: Sequence[torch.Tensor], *columns: torch.Tensor
    ) -> torch.Tensor:
        """
        Values of a loss, token by token.

        Args:
            values (`Callable`):
                `(*logits, *columns) -> values`, with logits of shape `(tokens, vocabulary)`.
            states (`Sequence[torch.Tensor]`):
                States after the final norm, shape `(tokens, hidden_size)`, one tensor for each of the logits.
            columns (`torch.Tensor`):
                Further arguments of `values`, with one entry per token.
        """
        weight = self._weight()

        def chunk_values(*chunk: torch.Tensor) -> torch.Tensor:
            logits = (self._logits(weight, state) for state in chunk[: len(states)])
            return values(*logits, *chunk[len(states) :])

        # Checkpointed, so that the backward recomputes the logits of one chunk after another
        chunks = list(zip(*(tensor.split(self.chunk_size) for tensor in (*states, *columns)), strict=True))
        if len(chunks) == 1:
            return chunk_values(*chunks[0])
        return torch.cat([checkpoint(chunk_values, *chunk, use_reentrant=False) for chunk in chunks])

    def _weight(self) -> torch.Tensor:
        """The weight of the head, gathered once per call where FSDP2 shards it."""
        weight = self.linear.weight
        return weight.full_tensor() if isinstance(weight, DTensor) else weight

    def _logits(self, weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states.to(weight.dtype), weight, self.linear.bias)
