"""The losses of circuit breaking as pure functions of tensors.

Notation, after Representation Rerouting (https://huggingface.co/papers/2406.04313, section 3 and Algorithm 1): `h` is
a hidden state of the network with its adapter, `h0` that of the same network with the adapter disabled, both at one
layer `l` of the layers `L` that a term reads, and at one token `i` of the tokens that count. Ds is the circuit breaker
set, Dr the retain set:

    loss = c_s(t) * rr(Ds) + c_r(t) * retain_l2(Dr)

The functions take one `(tokens, hidden_size)` tensor per layer, with only the tokens that count, so there is no mask
and nothing to divide by zero. All arithmetic is in float32: in bfloat16 `cos(x, x)` comes out as 0.992.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def token_cosine(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`cos(h, h0)` of each token."""
    return F.cosine_similarity(hidden.float(), reference.float(), dim=-1)


def rr_loss(cosines: Sequence[torch.Tensor], num_items: torch.Tensor | float) -> torch.Tensor:
    """
    Representation Rerouting, the loss on Ds (section 3, L_s of Algorithm 1):

        rr = 1 / (|L| N) * sum_l sum_i ReLU(cos(h_li, h0_li))

    It pushes the states of a harmful completion until they are orthogonal to what they were, and no further.

    Args:
        cosines (`Sequence[torch.Tensor]`):
            For each target layer, the cosines of [`token_cosine`], shape `(tokens,)`.
        num_items (`torch.Tensor` or `float`):
            N. The number of tokens, or, when this batch is one of several whose losses are averaged, the mean number
            per batch: the average is then the mean over all their tokens.
    """
    return sum(F.relu(cosine).sum() for cosine in cosines) / (len(cosines) * num_items)


def retain_l2_loss(
    hidden: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], num_items: torch.Tensor | float
) -> torch.Tensor:
    """
    Distance to the frozen states, the loss on Dr (section 3, L_r of Algorithm 1):

        retain_l2 = 1 / (|L| N) * sum_l sum_i || h_li - h0_li ||_2

    Args:
        hidden (`Sequence[torch.Tensor]`):
            For each layer, the states with the adapter, shape `(tokens, hidden_size)`.
        reference (`Sequence[torch.Tensor]`):
            The same states without the adapter.
        num_items (`torch.Tensor` or `float`):
            N. The number of tokens for a mean over tokens; the number of positions, padding included, for the mean of
            the published code, in which a padded position counts as a distance of 0. Averaged over batches as in
            [`rr_loss`].
    """
    # `vector_norm` has gradient 0 at distance 0, where every run starts; the square root of a sum of squares has NaN.
    distances = (
        torch.linalg.vector_norm(h.float() - h0.float(), dim=-1).sum() for h, h0 in zip(hidden, reference, strict=True)
    )
    return sum(distances) / (len(hidden) * num_items)


def linear_schedule(step: int, total_steps: int, alpha: float) -> tuple[float, float]:
    """
    Coefficients of Algorithm 1 at optimizer step `t` of `T`: the breaker fades to half while the retain term grows.

        c_s = alpha * (1 - t / 2T)        c_r = alpha * t / 2T

    Args:
        step (`int`):
            t. The first optimizer step is step 1, whatever the gradient accumulation.
        total_steps (`int`):
            T.
        alpha (`float`):
            Size of both.

    Returns:
        `tuple[float, float]`: c_s and c_r.
    """
    progress = step / (2 * total_steps)
    return alpha * (1 - progress), alpha * progress
