"""Hidden states at a few layers, without the forward of the rest of the model.

Layers are numbered as `output_hidden_states=True` numbers them: 0 is what enters the first decoder block (the
embeddings) and `l` is the output of block `l - 1`, `model.layers[l - 1]`. The last entry of that tuple is the
exception: the library returns it after the final norm. Here every layer is read before the norm, unless `final_norm`
asks for the tuple's own last entry.

    layers (3, 4) of a model of 32 blocks; blocks 4 to 31 and the LM head do not run:

        embeddings -> layers[0] -> layers[1] -> layers[2] -> layers[3]
            0             1            2            3            4
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


def get_decoder(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The stack of decoder blocks of a causal language model, inside its adapter if it has one."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).get_decoder()


@contextmanager
def first_blocks(decoder: nn.Module, num_blocks: int) -> Iterator[None]:
    """Within the context the decoder ends after its first `num_blocks` blocks."""
    blocks = decoder.layers
    decoder.layers = blocks[:num_blocks]
    try:
        yield
    finally:
        decoder.layers = blocks


@contextmanager
def recorded(decoder: nn.Module, layers: Sequence[int], final_norm: bool) -> Iterator[dict[int, torch.Tensor]]:
    """Within the context a forward of the decoder writes its states at `layers` into the dictionary."""
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

            at_norm = final_norm and layer == max(layers)
            module = decoder.norm if at_norm else decoder.layers[layer - 1]
            handles.append(module.register_forward_hook(record_output))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def hidden_states_at(
    model: nn.Module,
    decoder: nn.Module,
    layers: Sequence[int],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    tokens: torch.Tensor,
    final_norm: bool = False,
) -> list[torch.Tensor]:
    """
    Hidden states of some tokens at some layers.

    Blocks above the deepest of `layers` do not run, and the LM head gets no token to work on. The forward goes through
    `model`, so that whatever wraps the network (an adapter, a distributed engine) sees an ordinary forward.

    Args:
        model ([`~torch.nn.Module`]):
            Causal language model to call; may be wrapped.
        decoder ([`~torch.nn.Module`]):
            Its stack of blocks, see [`get_decoder`].
        layers (`Sequence[int]`):
            Layers to read.
        input_ids (`torch.Tensor`):
            Shape `(batch, length)`, padded on the right.
        attention_mask (`torch.Tensor`):
            Shape `(batch, length)`.
        tokens (`torch.Tensor`):
            Shape `(batch, length)`: nonzero at the tokens to return.
        final_norm (`bool`, *optional*, defaults to `False`):
            Whether the deepest of `layers` is read after the final norm, as the last entry of the library's tuple is.

    Returns:
        `list[torch.Tensor]`: for each layer, in the order of `layers`, a tensor of shape `(tokens, hidden_size)`.
    """
    no_logits = torch.empty(0, dtype=torch.long, device=input_ids.device)
    with first_blocks(decoder, max(layers)), recorded(decoder, layers, final_norm) as states:
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=no_logits)
    # Selected here and not in the hooks: under activation checkpointing hooks run inside the checkpointed function,
    # which must compute the same without them when it is run again.
    positions = tokens.flatten().nonzero().squeeze(1)
    return [states[layer].flatten(0, 1).index_select(0, positions) for layer in layers]
