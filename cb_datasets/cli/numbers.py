"""Callback of options that take a number with a point: NaN and infinity are refused.

Bounds do not do that: no NaN is below a minimum. Every such option has the callback, which a test holds.
"""

import math
from typing import Any

import typer


def finite(param: typer.CallbackParam, value: Any) -> Any:
    """The value, unless one of its numbers is none or has no end."""
    for number in value if isinstance(value, list) else [] if value is None else [value]:
        if not math.isfinite(number):
            raise ValueError(f"{param.opts[0]}: must be a finite number, got {number}.")
    return value
