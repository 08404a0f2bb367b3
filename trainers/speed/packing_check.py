"""Comparison of packed with padded rows on the given model, before anything is trained.

A model whose layers mix tokens other than by attention (DeltaNet, Mamba, convolutions) lets packed rows run into each
other, and would train on wrong states without an error. Two short rows are enough to see it:

    row 0    p p p ... p   a a a a a a a a     packed    p p p ... p   b b b b b   a a a a a a a a
    row 1    p p p ... p   b b b b b           a must not depend on b: only the tokens a and b are compared

Only as many layers run as it takes to have one of each composition. In half precision differences grow with every
layer of experts, where rounding can change the choice of an expert; a row that runs into another differs at once.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import nn

from ..objective.hidden_states import get_base_model, get_decoder, hidden_states_at
from .packed_attention import ATTENTION, REMEDY
from .packing import MIN_SHARED, Layout, packed, padded


# Largest relative difference of a row's hidden states that rounding explains: in half precision, a changed choice of
# experts in one token of five.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_TOLERANCE = 0.2

# Tokens of the two rows after the common ones.
OWN_TOKENS = (8, 5)

_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}


def use_packed_attention(model: PeftModel, num_layers: int, max_length: int) -> None:
    """
    Set the attention implementation of a model to that of packed rows.

    Args:
        model ([`~peft.PeftModel`]):
            The model, not yet wrapped by a distributed engine.
        num_layers (`int`):
            Number of decoder layers that the loss depends on.
        max_length (`int`):
            Largest number of tokens of a row.

    Raises:
        ValueError: If packed rows do not have the hidden states of padded ones.
    """
    _refuse_by_config(model, max_length)
    if not _has_weights(model):
        model.set_attn_implementation(ATTENTION)
        return
    depth = _depth(get_decoder(model).layers[:num_layers])
    common = list(range(3, 3 + MIN_SHARED))
    sequences = [[*common, *range(start, start + own)] for start, own in zip((30, 40), OWN_TOKENS, strict=True)]
    # Written out attention: SDPA leaves out the soft cap of Gemma 2, and gpt-oss does not run with it
    model.set_attn_implementation("eager")
    with _evaluation(model):
        expected = _states(model, depth, padded(sequences, pad_token_id=0, length=len(sequences[0])))
        model.set_attn_implementation(ATTENTION)
        try:
            states = _states(model, depth, packed(sequences, share_prefixes=True))
        except Exception as error:
            raise ValueError(
                f"{type(get_base_model(model)).__name__} cannot run packed rows: {str(error).removesuffix(REMEDY)}"
                f"{_layer_types(model)} {REMEDY}"
            ) from error
    difference = max(_difference(*pair) for pair in zip(states, expected, strict=True))
    tolerance = TOLERANCES.get(expected[0].dtype, HALF_TOLERANCE)
    if not difference <= tolerance:  # NaN differs, too
        raise ValueError(
            f"{type(get_base_model(model)).__name__} computes other hidden states for packed rows than for padded "
            f"ones: a relative difference of {difference:.2g}, where rounding explains at most {tolerance}."
            f"{_layer_types(model)} {REMEDY}"
        )


def _depth(layers: Iterable[nn.Module]) -> int:
    """Number of layers, from the first on, that have a layer of each composition."""
    compositions = [frozenset(type(module) for module in layer.modules()) for layer in layers]
    return 1 + max(map(compositions.index, compositions))


def _difference(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative difference, by the root mean square over tokens: the norms of tokens differ by orders of magnitude."""
    states, expected = states.float(), expected.float()
    return ((states - expected).norm(dim=-1) / expected.norm(dim=-1)).square().mean().sqrt().item()


def _refuse_by_config(model: PeftModel, max_length: int) -> None:
    """Raise an error for what two short rows do not show, and the configuration says."""
    config = get_base_model(model).config.get_text_config()
    reasons = []
    chunk_size: int = getattr(config, "attention_chunk_size", None) or max_length
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


def _states(model: PeftModel, depth: int, layout: Layout) -> list[torch.Tensor]:
    """States of the tokens that are each row's own, after `depth` layers."""
    device = next(model.parameters()).device
    gather = {
        str(row): ((depth,), torch.from_numpy(positions[MIN_SHARED:]).to(device))
        for row, positions in enumerate(layout.positions)
    }
    inputs = send_to_device(layout.inputs, device)
    return [state for [state] in hidden_states_at(model, get_decoder(model), inputs, depth, gather).values()]


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
