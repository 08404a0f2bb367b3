"""LoRA with fewer passes over memory, and with fewer multiplications where its rank is large for the layer.

    PEFT       result + lora_B(lora_A(x)) * scaling        four tensors as large as the output, one after another
    narrow     result += (lora_A(x) * scaling) @ B.T       one: scaled at rank r, added by the matrix product itself
    merged     x @ (W + scaling * B @ A).T                 the update is added to the weight, not to the output

LoRA's part of the gradient of `x` is added by a matrix product, too. Elementwise passes cost memory bandwidth, and a
third of those in a decoder layer are LoRA's.

Multiplications of t tokens, forward and backward, in a layer from n to m features: `t(2mn + 3r(m + n))` if narrow,
`3tmn + 3rmn` if merged. With many tokens the merged form pays from `r = mn / 3(m + n)` on: rank 16 at 96 x 96, rank
683 at 4096 x 4096.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners import lora
from torch import nn
from torch.autograd.function import once_differentiable


class LoraProduct(torch.autograd.Function):
    """`x @ W.T + bias + (dropped @ A.T * scaling) @ B.T`. Without dropout, `dropped` is `None` and stands for `x`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        source = x if dropped is None else dropped
        narrow = F.linear(source, A).mul_(scaling)
        ctx.save_for_backward(source, weight, A, B, narrow)
        ctx.scaling, ctx.dropped = scaling, dropped is not None
        return F.linear(x, weight, bias).addmm_(narrow, B.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        source, weight, A, B, narrow = ctx.saved_tensors
        grad_narrow = (grad @ B).mul_(ctx.scaling)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_dropped = None
        if ctx.dropped:
            grad_dropped = grad_narrow @ A
        elif grad_x is not None:
            grad_x.addmm_(grad_narrow, A)
        if not ctx.needs_input_grad[4]:  # in the adversary's search
            return grad_x, grad_dropped, None, None, None, None, None
        return grad_x, grad_dropped, None, None, grad_narrow.t() @ source, grad.t() @ narrow, None


class MergedLoraProduct(torch.autograd.Function):
    """`x @ (W + scaling * B @ A).T + bias`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        merged = torch.addmm(weight, B, A, alpha=scaling)
        ctx.save_for_backward(x, merged, A, B)
        ctx.scaling = scaling
        return F.linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, merged, A, B = ctx.saved_tensors
        grad_x = grad @ merged if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[3]:  # in the adversary's search
            return grad_x, None, None, None, None, None
        grad_merged = (grad.t() @ x).mul_(ctx.scaling)
        return grad_x, None, None, B.t() @ grad_merged, grad_merged @ A.t(), None


class LoraLinear(lora.Linear):
    """PEFT's linear layer with LoRA, computed as above. Anything but plain LoRA falls back to PEFT's forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if args or kwargs or not self._is_plain(dtype):
            return super().forward(x, *args, **kwargs)
        [name] = self.active_adapters
        dropout, flat = self.lora_dropout[name], x.flatten(0, -2).to(dtype)
        weights = self.base_layer.weight, self.base_layer.bias, self.lora_A[name].weight, self.lora_B[name].weight
        tensors = [None if weight is None else weight.to(dtype) for weight in weights]
        has_dropout = not isinstance(dropout, nn.Identity)
        base = cast(nn.Linear, self.base_layer)
        if not has_dropout and merging_pays(len(flat), self.r[name], base.in_features, base.out_features):
            result = MergedLoraProduct.apply(flat, *tensors, self.scaling[name])
        else:
            result = LoraProduct.apply(flat, dropout(flat) if has_dropout else None, *tensors, self.scaling[name])
        return result.unflatten(0, x.shape[:-1])

    def _is_plain(self, dtype: torch.dtype) -> bool:
        """Whether one adapter of plain LoRA is active over a frozen `nn.Linear`, computing in `dtype`."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        [name] = self.active_adapters
        return (
            name in self.lora_A
            and name not in self.lora_variant
            and self.lora_B[name].bias is None
            and type(self.base_layer) is nn.Linear
            and not any(parameter.requires_grad for parameter in self.base_layer.parameters())
            # Outside of autocast PEFT computes the adapter in the dtype of its weights
            and (
                torch.is_autocast_enabled(self.base_layer.weight.device.type)
                or self.lora_A[name].weight.dtype == dtype
            )
        )


def merging_pays(tokens: int, rank: int, inputs: int, outputs: int) -> bool:
    """Whether the merged form takes fewer multiplications than the narrow one, see above."""
    narrow = tokens * (2 * inputs * outputs + 3 * rank * (inputs + outputs))
    return 3 * inputs * outputs * (tokens + rank) < narrow


def fuse_lora(model: PeftModel) -> None:
    """Turn the model's LoRA layers into [`LoraLinear`] in place, except those over quantized weights."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = LoraLinear
