"""Behavioural test of a layer class: the classes of many models share a computation, but neither a name nor a base."""

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def computes_the_same(
    module_type: type[nn.Module], members: dict[str, Any], x: torch.Tensor, expected: torch.Tensor
) -> bool:
    """
    Whether the forward of a class of layers takes an input alone and returns the expected output, bit for bit.

    Args:
        module_type (`type[torch.nn.Module]`):
            Class of the layer.
        members (`dict[str, Any]`):
            Attributes of the layer. A forward that needs others does not compute the same.
        x, expected (`torch.Tensor`):
            Input and output.
    """
    # A further argument may be optional and yet be given: the gate of Granite 4's norm
    if len(inspect.signature(module_type.forward).parameters) != 2:
        return False
    try:
        return torch.equal(module_type.forward(SimpleNamespace(**members), x), expected)
    except (AttributeError, TypeError):  # it needs other attributes or arguments
        return False
