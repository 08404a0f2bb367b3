"""Limits of budgets as text: `--budget suffix.steps=30`."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


# Limits that may be 0, where they are not of the tampering; all others are at least 1, and fractions above 0.
_MAY_BE_ZERO = ("prompts", "steps", "prefix_tokens", "suffix_tokens", "prefix_vectors", "suffix_vectors")

_Value = int | float | tuple[float, ...]


def with_limits(
    defaults: Mapping[str, Any], limits: Iterable[str], max_new_tokens: int, seed: int, may_be_zero: bool = True
) -> dict[str, Any]:
    """Budgets by rung, with some limits changed.

    Args:
        defaults (`Mapping[str, dataclass]`): The default budget of each rung.
        limits (`Iterable[str]`): `RUNG.LIMIT=VALUE`, for example `suffix.steps=30`.
        max_new_tokens (`int`): Maximum length of a completion, in every rung.
        seed (`int`): Seed of every rung.
        may_be_zero (`bool`, *optional*, defaults to `True`): Whether steps and numbers of prompts or tokens may be 0.

    Raises:
        ValueError: If there is no such rung or limit, or the value is not of its type.
    """
    changed: dict[str, dict[str, _Value]] = {rung: {} for rung in defaults}
    for text in limits:
        rung, limit, value = _parsed(text, defaults, _MAY_BE_ZERO if may_be_zero else ())
        changed[rung][limit] = value
    common = {"max_new_tokens": max_new_tokens, "seed": seed}
    budgets = {}
    for rung, values in changed.items():
        own = {key: value for key, value in common.items() if hasattr(defaults[rung], key)}
        budgets[rung] = dataclasses.replace(defaults[rung], **own, **values)
    return budgets


def _parsed(text: str, defaults: Mapping[str, Any], zero_allowed: Iterable[str]) -> tuple[str, str, _Value]:
    """Rung, limit and value of one changed limit."""
    name, _, value = text.partition("=")
    rung, _, limit = name.partition(".")
    if rung not in defaults:
        raise ValueError(f"--budget {text!r}: must be RUNG.LIMIT=VALUE with a rung of {', '.join(defaults)}.")
    known = [each.name for each in dataclasses.fields(defaults[rung])]
    known = [each for each in known if each not in ("max_new_tokens", "seed")]
    if limit not in known:
        raise ValueError(f"--budget {text!r}: the limits of {rung} are {', '.join(known)}.")
    default = getattr(defaults[rung], limit)
    try:
        parsed: _Value = tuple(map(float, value.split(","))) if isinstance(default, tuple) else type(default)(value)
    except ValueError:
        raise ValueError(f"--budget {text!r}: {value!r} is no number.") from None
    least = 0 if limit in zero_allowed else 1
    if parsed < least if isinstance(parsed, int) else not _are_positive(parsed):
        raise ValueError(
            f"--budget {text!r}: must be {f'at least {least}' if isinstance(parsed, int) else 'positive'}."
        )
    return rung, limit, parsed


def _are_positive(value: float | tuple[float, ...]) -> bool:
    # Not `<= 0`, of which a NaN is none.
    return all(0 < each < float("inf") for each in (value if isinstance(value, tuple) else (value,)))
