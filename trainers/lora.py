"""LoRA with fewer passes over memory.

    PEFT       result + lora_B(lora_A(x)) * scaling        four tensors as large as the output, one after another
    here       result += (lora_A(x) * scaling) @ B.T       one: scaled while it is narrow, added by the product itself

No arithmetic hides such passes, and of those that a block makes a third are LoRA's.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners import lora


class LoraLinear(lora.Linear):
    """PEFT's linear layer with LoRA, its update added in place. What is not plain LoRA goes PEFT's own way."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plain = not (self.disable_adapters or self.merged or args or kwargs)
        if not plain or not all(map(self._is_plain, self.active_adapters)):
            return super().forward(x, *args, **kwargs)
        # Flat, because to write into a view of the output would have its gradient copied
        flat = x.flatten(0, -2)
        result = self.base_layer(flat)
        for name in self.active_adapters:
            lora_A, weight = self.lora_A[name], self.lora_B[name].weight
            narrow = lora_A(self.lora_dropout[name](self._cast_input_dtype(flat, lora_A.weight.dtype)))
            # In place there is no autocast
            result.addmm_((narrow * self.scaling[name]).to(result.dtype), weight.to(result.dtype).t())
        return result.unflatten(0, x.shape[:-1])

    def _is_plain(self, adapter: str) -> bool:
        return adapter in self.lora_A and adapter not in self.lora_variant and self.lora_B[adapter].bias is None


def add_in_place(model: PeftModel) -> None:
    """Let the model's LoRA layers be [`LoraLinear`]. Layers over quantized weights stay as they are."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = LoraLinear
