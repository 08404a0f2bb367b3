"""Base models in four bits, as QLoRA trains on them."""

from torch import nn


def keep_differentiable(model: nn.Module) -> None:
    """
    Keep 4-bit weights of bitsandbytes in the form that gradients pass through.

    On a CPU with AVX512-BF16, the first evaluation pass packs them for kernels that have no backward pass, and every
    gradient after that is wrong without an error (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (its type is unknown)
