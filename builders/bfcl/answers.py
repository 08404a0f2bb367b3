"""The right call of a row, with all values that its arguments may have.

    BFCL          {"port": ["Brest", "Brest, France"], "hour": [7], "unit": ["", "m"]}
    expected      {"name": "tides_height", "arguments": {"port": "Brest", "hour": 7}, "optional": ["unit"],
                   "alternatives": {"port": ["Brest", "Brest, France"], "hour": [7], "unit": ["m"]}}

`arguments` is one right form, for whoever needs a call; `alternatives` decide whether another call is right.
"""

from itertools import product
from typing import Any


# How BFCL says that an argument may be left out.
_LEFT_OUT = ""

# Forms of one argument, counted over all combinations of an object's accepted values. BFCL has at most 128.
_MAX_FORMS = 1000


class NoAcceptedValue(Exception):
    """Raised if an argument must be given and no value of it is accepted."""


def expected_call(name: str, accepted: dict[str, list], parameters: dict, where: str) -> dict:
    """The right call, `{"name", "arguments", "alternatives", "optional"}`.

    Args:
        name (`str`): Name of the function.
        accepted (`dict[str, list]`): Argument -> accepted values, as BFCL writes them.
        parameters (`dict`): JSON Schema of the function's parameters.
        where (`str`): File and line of the row.

    Raises:
        NoAcceptedValue: If no call is right.
        ValueError: If the values of an accepted object are no lists.
    """
    alternatives = {
        argument: _distinct([form for value in _given(values) for form in _forms(value, where)], where)
        for argument, values in accepted.items()
    }
    optional = [argument for argument, values in accepted.items() if _LEFT_OUT in values]
    if any(not forms and argument not in optional for argument, forms in alternatives.items()):
        raise NoAcceptedValue
    stated = parameters.get("required")
    required = stated if isinstance(stated, list) else []
    needed = [argument for argument in accepted if argument in required or argument not in optional]
    arguments = {argument: forms[0] for argument, forms in alternatives.items() if forms and argument in needed}
    return {"name": name, "arguments": arguments, "alternatives": alternatives, "optional": optional}


def _given(values: list) -> list:
    """The accepted values of an argument that is not left out."""
    return [value for value in values if not (isinstance(value, str) and value == _LEFT_OUT)]


def _distinct(forms: list, where: str) -> list:
    """The forms in order, each once."""
    if len(forms) > _MAX_FORMS:
        raise ValueError(_too_many(where))
    kept: list[Any] = []
    for form in forms:
        if not any(_is_same(form, other) for other in kept):
            kept.append(form)
    return kept


def _forms(value: Any, where: str) -> list:
    """The plain values that one accepted value stands for.

    Those of an object are lists of accepted values, of which every combination is one; what these contain is plain.
    """
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return _combined([_forms(item, where) for item in value], where)
    if not isinstance(value, dict):
        return [value]
    if not all(isinstance(values, list) for values in value.values()):
        raise ValueError(f"{where}: the values of an object that its answer accepts are no lists. Fetch both again.")
    # Where a key may be left out, one of its forms is to do so.
    choices = [
        [{key: each} for each in _given(values)] + ([{}] if _LEFT_OUT in values else [])
        for key, values in value.items()
    ]
    return [{key: form for part in parts for key, form in part.items()} for parts in _combined(choices, where)]


def _combined(choices: list[list], where: str) -> list[list]:
    size = 1
    for each in choices:
        size *= len(each)
        if size > _MAX_FORMS:
            raise ValueError(_too_many(where))
    return [list(parts) for parts in product(*choices)]


def _too_many(where: str) -> str:
    return f"{where}: an argument has more than {_MAX_FORMS} accepted forms. Delete the row."


def _is_same(form: Any, other: Any) -> bool:
    return form == other and isinstance(form, bool) == isinstance(other, bool)
