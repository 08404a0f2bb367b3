"""Comparison of packed with padded rows on the given model, before anything is trained.

A model whose layers mix tokens other than by attention (DeltaNet, Mamba, convolutions) lets packed rows run into each
other, and would train on wrong states without an error. Two short rows are enough to see it:

    row 0    a b c ... t   u v ... z          packed    a b c ... t   A B ... E   u v ... z
    row 1    a b c ... t   A B ... E          A to E must not depend on u to z, nor u to z on A to E
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import nn

from ..objective.hidden_states import get_base_model, get_decoder, hidden_states_at
from ..objective.terms import NORM
from .packed_attention import ATTENTION, REMEDY
from .packing import MIN_SHARED, Layout, packed, padded


# Largest relative difference of a row's hidden states that rounding explains, over dozens of layers.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}


def use_packed_attention(model: PeftModel, num_layers: int, share_prefixes: bool, max_length: int) -> None:
    """
    Set the attention implementation of a model to that of packed rows.

    Args:
        model ([`~peft.PeftModel`]):
            The model, not yet wrapped by a distributed engine.
        num_layers (`int`):
            Number of decoder layers to compare.
        share_prefixes (`bool`):
            Whether packed rows share prefixes.
        max_length (`int`):
            Largest number of tokens of a row.

    Raises:
        ValueError: If packed rows do not have the hidden states of padded ones.
    """
    _refuse_by_config(model, max_length)
    if not _has_weights(model):
        model.set_attn_implementation(ATTENTION)
        return
    first, second, shared = MIN_SHARED + 20, MIN_SHARED + 5, MIN_SHARED
    vocab_size = get_base_model(model).get_input_embeddings().weight.shape[0]
    tokens = [number % vocab_size for number in range(3, 3 + first)]
    sequences = [tokens, [*tokens[:shared], *(token + 1 for token in reversed(tokens[: second - shared]))]]
    # Written out attention: SDPA leaves out the soft cap of Gemma 2, and gpt-oss does not run with it
    model.set_attn_implementation("eager")
    with _evaluation(model):
        expected = _states(model, num_layers, padded(sequences, pad_token_id=0, length=first))
        model.set_attn_implementation(ATTENTION)
        try:
            states = _states(model, num_layers, packed(sequences, share_prefixes))
        except Exception as error:
            raise ValueError(
                f"{type(get_base_model(model)).__name__} cannot run packed rows: {str(error).removesuffix(REMEDY)}"
                f"{_layer_types(model)} {REMEDY}"
            ) from error
    difference = max(
        ((own.float() - row.float()).norm() / row.float().norm()).item()
        for own, row in zip(states, expected, strict=True)
    )
    tolerance = TOLERANCES.get(expected[0].dtype, TOLERANCES[torch.bfloat16])
    if not difference <= tolerance:  # NaN differs, too
        raise ValueError(
            f"{type(get_base_model(model)).__name__} computes other hidden states for packed rows than for padded "
            f"ones: they differ by {difference:.2g} relatively, where rounding explains {tolerance:.0e}."
            f"{_layer_types(model)} {REMEDY}"
        )


def _refuse_by_config(model: PeftModel, max_length: int) -> None:
    """Raise an error for what two short rows do not show, and the configuration says."""
    config = get_base_model(model).config.get_text_config()
    reasons = []
    chunk_size = getattr(config, "attention_chunk_size", None)
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()) and chunk_size < max_length:
        reasons.append(
            f"its attention is in chunks of {chunk_size} tokens (`attention_chunk_size`), and rows have up to "
            f"{max_length} (`max_length`)"
        )
    if getattr(config, "attn_temperature_tuning", False):
        reasons.append(
            "it scales queries by their position in the whole packed row instead of their own "
            "(`attn_temperature_tuning`)"
        )
    if reasons:
        raise ValueError(
            f"{type(get_base_model(model)).__name__} cannot run packed rows: {', and '.join(reasons)}."
            f"{_layer_types(model)} {REMEDY}"
        )


def _has_weights(model: nn.Module) -> bool:
    """Whether this process has the model's weights. With FSDP the others receive theirs from it later."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return False
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the state of the random numbers is restored."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        model.train(training)


def _states(model: PeftModel, num_layers: int, layout: Layout) -> list[torch.Tensor]:
    """States of each row at the last of the layers, and after the final norm."""
    device = get_base_model(model).get_input_embeddings().weight.device
    inputs = send_to_device(layout.inputs, device)
    layers = (num_layers, NORM)
    gather = {str(row): (layers, torch.from_numpy(own).to(device)) for row, own in enumerate(layout.positions)}
    states = hidden_states_at(model, get_decoder(model), inputs, num_layers, gather)
    return [state for row in states.values() for state in row]


def _layer_types(model: PeftModel) -> str:
    """A sentence about what the layers are, where the configuration says it."""
    config = get_base_model(model).config.get_text_config()
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not types:
        return ""
    others = sorted(set(types) - _ATTENTION_LAYERS)
    if others:
        return f" Not all of its layers are full or sliding attention: {', '.join(others)} (`layer_types`)."
    return f" Its layers are {', '.join(sorted(set(types)))} (`layer_types`)."
