"""What a kind of layer computes, told by trying it: classes of many models share a computation, and not a name."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def computes_the_same(kind: type[nn.Module], members: dict[str, Any], x: torch.Tensor, expected: torch.Tensor) -> bool:
    """
    Whether the forward of a kind of layer makes of `x` what is expected, to the last bit.

    Args:
        kind (`type[torch.nn.Module]`):
            Class of the layer.
        members (`dict[str, Any]`):
            All that the forward may use of its layer.
        x, expected (`torch.Tensor`):
            Input and output.
    """
    try:
        return torch.equal(kind.forward(SimpleNamespace(**members), x), expected)
    except (AttributeError, TypeError):  # it wants more than these
        return False
