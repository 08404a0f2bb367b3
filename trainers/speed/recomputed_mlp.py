"""A gated MLP that saves one tensor less for its backward.

    Transformers    down_proj(silu(gate) * up)      saves gate, up, silu(gate), and the product for LoRA of down_proj
    here            the same numbers                saves gate, up and the product; silu(gate) is recomputed

These four are the widest tensors of a decoder layer.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.activations import ACT2FN

from .same_forward import computes_the_same


class GatedProduct(torch.autograd.Function):
    """`silu(gate) * up`."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def _forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    """Forward of a gated MLP, whichever class it is of."""
    return mlp.down_proj(GatedProduct.apply(mlp.gate_proj(x), mlp.up_proj(x)))


def recompute_gates(decoder: nn.Module) -> None:
    """Replace the forward of a decoder's gated MLPs by the one above. MLPs that compute something else keep theirs."""
    for module in decoder.modules():
        if isinstance(getattr(module, "act_fn", None), (nn.SiLU, type(ACT2FN["silu"]))) and _is_plain(type(module)):
            module.forward = partial(_forward, module)


def _is_plain(module_type: type[nn.Module]) -> bool:
    """Whether the forward of a class is `down_proj(silu(gate_proj(x)) * up_proj(x))`, tested with simple functions."""
    x = torch.linspace(-2, 2, 8)
    layers = {
        "gate_proj": lambda x: x + 1,
        "up_proj": lambda x: 2 * x,
        "down_proj": lambda x: x - 3,
        "act_fn": F.silu,
    }
    return computes_the_same(module_type, layers, x, F.silu(x + 1) * (2 * x) - 3)
