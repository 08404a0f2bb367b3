"""Hidden states at a few layers, without the forward of the rest of the model.

Layers are numbered as `output_hidden_states=True` numbers them: 0 is what enters the first decoder block (the
embeddings) and `l` is the output of block `l - 1`, `model.layers[l - 1]`. The last entry of that tuple is the
exception: the library returns it after the final norm. Here every layer is read before the norm, and [`NORM`] is what
comes out of the norm, whichever block runs last.

    layers (3, 4) of a model of 32 blocks; blocks 4 to 31 and the LM head do not run:

        embeddings -> layers[0] -> layers[1] -> layers[2] -> layers[3]
            0             1            2            3            4
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .terms import NORM


class Decoder(nn.Module):
    """Type of a decoder stack. The library types its attributes as those of any module."""

    layers: nn.ModuleList
    norm: nn.Module


def get_base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """A causal language model without the adapter around it, if it has one."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def get_decoder(model: PreTrainedModel | PeftModel) -> Decoder:
    """The decoder stack of a causal language model, inside its adapter if it has one."""
    return cast(Decoder, get_base_model(model).get_decoder())


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
        # Decoder blocks return a tensor (a tuple until transformers 5). The embeddings are taken where they enter the
        # first block, because some models scale them on the way.
        if layer == 0:

            def record_input(module, args, layer=layer):
                states[layer] = args[0]

            handles.append(decoder.layers[0].register_forward_pre_hook(record_input))
        else:

            def record_output(module, args, output, layer=layer):
                states[layer] = output

            module = decoder.norm if layer == NORM else decoder.layers[layer - 1]
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

    Layers above `num_layers` do not run, and the LM head gets no token to work on. The forward goes through `model`,
    so that whatever wraps the network (an adapter, a distributed engine) sees an ordinary forward.

    Args:
        model ([`~torch.nn.Module`]):
            Causal language model to call; may be wrapped.
        decoder ([`~torch.nn.Module`]):
            Its stack of blocks, see [`get_decoder`].
        inputs (`Mapping[str, Any]`):
            Arguments of the forward: of a padded batch, or of a packed row (see `packing.py`).
        num_layers (`int`):
            Number of decoder layers that run.
        gather (`Mapping[str, tuple[Sequence[int], torch.Tensor]]`):
            For each name its layers, and the positions of its tokens among all tokens of the input, flattened.
        full_logits (`bool`, *optional*, defaults to `False`):
            Whether names with the layers `(NORM,)` get logits, which the model then computes for all tokens.

    Returns:
        `dict[str, list[torch.Tensor]]`: for each name, in the order of its layers, tensors of shape `(tokens,
        hidden_size)`, or `(tokens, vocabulary)` for logits.
    """
    layers = sorted({layer for wanted, _ in gather.values() for layer in wanted})
    no_logits = torch.empty(0, dtype=torch.long, device=inputs["input_ids"].device)
    for_logits = {name for name, (wanted, _) in gather.items() if full_logits and tuple(wanted) == (NORM,)}
    with first_layers(decoder, num_layers), recorded(decoder, layers) as states:
        output = model(**inputs, use_cache=False, logits_to_keep=0 if for_logits else no_logits)
    # Selected here and not in the hooks: under activation checkpointing hooks run inside the checkpointed function,
    # which must compute the same without them when it is run again.
    return {
        name: [
            (output.logits if name in for_logits else states[layer]).flatten(0, 1).index_select(0, tokens)
            for layer in wanted
        ]
        for name, (wanted, tokens) in gather.items()
    }


class LogitsHead:
    """
    The LM head on chosen tokens, a chunk of them at a time.

    A vocabulary of 128,256 makes half a gigabyte of a thousand tokens' logits, and a loss keeps several such tensors
    for its backward. Here they exist for one chunk, forward and backward.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model whose head it is.
        chunk_size (`int`):
            Tokens in a chunk.

    Raises:
        ValueError: If the model does more to its logits than multiply by the head's weight.
    """

    def __init__(self, model: PreTrainedModel, chunk_size: int):
        self.linear = model.get_output_embeddings()
        self.chunk_size = chunk_size
        decoder = get_decoder(model)
        probe = torch.tensor([[1, 2]], device=model.device)
        with torch.no_grad(), first_layers(decoder, 0), recorded(decoder, [NORM]) as states:
            logits = model(input_ids=probe, use_cache=False).logits
        # A process that has not been given its weights yet may hold anything, NaN included
        if not torch.equal(self._logits(self._weight(), states[NORM]).nan_to_num(), logits.nan_to_num()):
            raise ValueError(
                f"{type(model).__name__} computes its logits by more than its LM head, so they cannot be had for the "
                "chosen tokens alone. Set `masked_logits: false`."
            )

    def __call__(
        self, values: Callable[..., torch.Tensor], states: Sequence[torch.Tensor], *others: torch.Tensor
    ) -> torch.Tensor:
        """
        Values of a loss, token by token.

        Args:
            values (`Callable`):
                `(*logits, *others) -> values`, with logits of shape `(tokens, vocabulary)`.
            states (`Sequence[torch.Tensor]`):
                States after the final norm, shape `(tokens, hidden_size)`, for each of the logits.
            others (`torch.Tensor`):
                Further arguments, of `tokens` entries each.
        """
        weight = self._weight()

        def chunk_values(*parts: torch.Tensor) -> torch.Tensor:
            logits = (self._logits(weight, part) for part in parts[: len(states)])
            return values(*logits, *parts[len(states) :])

        chunks = list(zip(*(tensor.split(self.chunk_size) for tensor in (*states, *others)), strict=True))
        if len(chunks) == 1:
            return chunk_values(*chunks[0])
        return torch.cat([checkpoint(chunk_values, *chunk, use_reentrant=False) for chunk in chunks])

    def _weight(self) -> torch.Tensor:
        weight = self.linear.weight
        return weight.full_tensor() if isinstance(weight, DTensor) else weight

    def _logits(self, weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states.to(weight.dtype), weight, self.linear.bias)
