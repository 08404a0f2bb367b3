"""RMSNorm in few passes over memory.

    Transformers    weight * (x * rsqrt(mean(x ** 2) + eps))      eight tensors as large as `x`, backward included
    here            the same numbers                              four

On a GPU PyTorch's own kernel is used. In half precision it multiplies by the weight before rounding, not after.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .same_forward import computes_the_same


class RMSNormProduct(torch.autograd.Function):
    """`weight * x * rsqrt(mean(x ** 2) + eps)` of tokens, `x` of shape `(tokens, size)` in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # in the order of Transformers, for equal bits
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad_weight = (grad * x).mul_(scale).sum(0) if ctx.needs_input_grad[1] else None
        grad_x = grad * weight
        along = torch.bmm(grad_x.unsqueeze(1), x.unsqueeze(2)).squeeze(
            2
        )  # row-wise dot products without a temporary of the size of `x`
        along.mul_(scale.square()).div_(x.shape[-1])
        return grad_x.addcmul_(x, along, value=-1).mul_(scale), grad_weight, None


def _forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """Forward of a norm, whichever class it is of."""
    weight, eps = norm.weight, norm.variance_epsilon
    if x.is_cuda:
        with torch.autocast("cuda", enabled=False):
            return F.rms_norm(x, weight.shape, weight, eps)
    if x.dtype == weight.dtype == torch.float32:
        return RMSNormProduct.apply(x.flatten(0, -2), weight, eps).unflatten(0, x.shape[:-1])
    return type(norm).forward(norm, x)


def fuse_norms(decoder: nn.Module) -> None:
    """Replace the forward of a decoder's RMSNorms by the one above. Norms that compute something else keep theirs."""
    for module in decoder.modules():
        if hasattr(module, "variance_epsilon") and _is_plain(type(module)):
            module.forward = partial(_forward, module)


def _is_plain(module_type: type[nn.Module]) -> bool:
    """Whether the forward of a class of norms is the one above, tested on a few numbers."""
    x, weight, eps = torch.linspace(-2, 3, 8)[None], torch.linspace(1, 2, 8), 0.1
    return computes_the_same(
        module_type, {"weight": weight, "variance_epsilon": eps}, x, RMSNormProduct.apply(x, weight, eps)
    )
