"""An adversary in embedding space: the perturbation of injected spans that makes the attacker's call most likely.

Continuous adversarial training (CAT, Xhonneux et al. 2024, https://huggingface.co/papers/2405.15589), here against the
injected span alone. Let e_j be the embeddings of the span's tokens, the slots, in prompts x, and o the opening of the
attacker's call through its tool's name. The adversary looks for

    delta* = argmin over ||delta_j|| <= eps * R  of  sum over prompts of 1/|o| sum_t -log f(o_t | x + delta, o_<t)

with R the mean norm of the model's embeddings, by K steps from delta = 0 (projected gradient descent):

    delta_j <- P( delta_j - a * eps * R * g_j / ||g_j|| ),        g = gradient of the sum,  a = 1.25 / K

with P the projection into the ball. The terms of the loss are then computed under delta*. Rows with the same attacked
prompt share its perturbation. Slots of different prompts are never the same tokens of a packed row, see `packing.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


# Lengths of the K steps add up to this multiple of the radius.
PATH_LENGTH = 1.25


def worst_perturbation(
    loss_of: Callable[[torch.Tensor], torch.Tensor], delta: torch.Tensor, radius: float, steps: int
) -> torch.Tensor:
    """
    The perturbation that an adversary finds.

    Args:
        loss_of (`Callable`):
            Maps a perturbation to the adversary's loss, a scalar.
        delta (`torch.Tensor`):
            Where it begins, shape `(num_slots, hidden_size)`.
        radius (`float`):
            Largest norm of the perturbation of a slot, `eps * R`.
        steps (`int`):
            K.

    Returns:
        `torch.Tensor`: Shape of `delta`, without gradient.
    """
    step_length = PATH_LENGTH * radius / steps
    for _ in range(steps):
        delta.requires_grad_()
        [gradient] = torch.autograd.grad(loss_of(delta), delta)
        delta = delta.detach() - step_length * nn.functional.normalize(gradient, dim=-1)
        delta = delta * (radius / torch.linalg.vector_norm(delta, dim=-1, keepdim=True)).clamp(max=1.0)
    return delta


@torch.no_grad()
def mean_norm(embedding: nn.Embedding) -> float:
    """Mean norm of all embeddings, as the layer gives them: some models scale them there."""
    # Some layers have more rows than the tokenizer has tokens; a chunk at a time, to be small beside the model
    ids = torch.arange(embedding.weight.shape[0], device=embedding.weight.device)
    norms = [torch.linalg.vector_norm(embedding(chunk).float(), dim=-1) for chunk in ids.split(4096)]
    return float(torch.cat(norms).mean())


@contextmanager
def perturbed(
    embedding: nn.Embedding, positions: torch.Tensor, slots: torch.Tensor, delta: torch.Tensor | None
) -> Iterator[None]:
    """
    Adds a perturbation to the output of the embedding layer, for the forward within the context.

    Args:
        embedding ([`~torch.nn.Module`]):
            The embedding layer.
        positions (`torch.Tensor`):
            Positions of the perturbed tokens among the flattened tokens, each once; shape `(tokens,)`.
        slots (`torch.Tensor`):
            For each of them the row of `delta`.
        delta (`torch.Tensor`, *optional*):
            Shape `(num_slots, hidden_size)`. `None` is no perturbation.
    """
    if delta is None or not len(positions):
        yield
        return

    # On the embeddings and not on a decoder layer: activation checkpointing recomputes layers when the hook is gone
    def add_delta(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        flat = output.flatten(0, 1)
        return flat.index_add(0, positions, delta[slots].to(output.dtype)).view_as(output)

    handle = embedding.register_forward_hook(add_delta)
    try:
        yield
    finally:
        handle.remove()
