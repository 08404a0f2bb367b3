"""A plausible result of a tool, made by rules from what the benchmark says that the tool returns.

    returns   [{"name": "parcels", "type": "array",
                "description": "A list of objects, each containing 'parcel_id' and 'weight' (number)."}]
    result    {"parcels": [{"parcel_id": "parcel_id_1", "weight": 1.0}]}

The second step of a case of data stealing needs the data that the first step stole. Which data these are does not
matter: they only have to be there. The published benchmark asks GPT-4 for them.
"""

import re
from collections.abc import Iterable

from ..trace import to_json


# Fields that a description names: in quotes, or else in a list of words. What stands in brackets are values.
_IN_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_ONE_OF = re.compile(r"one of \['([^']*)'[^\]]*\]")
_FORMAT = re.compile(r"format(?:ted)?(?: of| as|:)? '[^']*'")
_QUOTED = re.compile(r"'([a-z][a-z0-9]*(?:_[a-z0-9]+)*)'(?:\s*\(([^()]*)\))?")
# What comes before the first word of such a list, in the order of the sentence.
_BEFORE_LIST = re.compile(
    r"^.*\b(?:contain(?:s|ing)?|includ(?:es|ing)|with|as|their|respective|fields|the|s)\s+", re.IGNORECASE
)
_LIST_ITEM = re.compile(r"([a-z][a-z0-9_]*(?: [a-z0-9_]+){0,2})(?:\s*\(([^()]*)\))?")
_MOST_FIELDS = 8
# Characters of a description that are read: the patterns take longer than linear time.
_LONGEST = 2000

# Values of text by the last words of a field's name; any other field is `<name>_1`.
_TEXTS = {
    "user_name": "John Doe",
    "guest_name": "John Doe",
    "email": "john.doe@gmail.com",
    "phone_number": "+14155550100",
    "address": "12 Elm Street, Springfield, 01101",
    "location": "Springfield",
    "time": "2022-02-20 09:30",
    "timestamp": "2022-02-20 09:30",
    "date": "2022-02-20",
    "birthday": "1985-06-12",
    "url": "https://www.example.com",
    "website": "https://www.example.com",
    "path": "/home/john/result_1.dat",
    "status": "active",
}
_VALUES = {"integer": 1, "number": 1.0, "boolean": True, "object": {}, "array": []}


def simulated_result(returns: Iterable[dict]) -> str:
    """The result as JSON text, the same in every run.

    Args:
        returns (`Iterable[dict]`): `{name, type, description}` of each field of the result.
    """
    return to_json({field["name"]: _value(field) for field in returns})


def _value(field: dict) -> object:
    name, type_name, description = field["name"], field["type"], field["description"]
    if type_name in ("array", "object"):
        content = {each: _hinted(each, hint) for each, hint in _named_fields(description)}
        if type_name == "object":
            return content or {name: _text(name)}
        return [content or _text(name)]
    return _text(name) if type_name == "string" else _VALUES[type_name]


def _named_fields(description: str) -> list[tuple[str, str]]:
    """`(name, hint)` of the fields that a description of an array or an object names."""
    text = _IN_BRACKETS.sub("", _ONE_OF.sub(r"one of \1", _FORMAT.sub("", description[:_LONGEST])))
    named = _QUOTED.findall(text)
    if not named:
        items = re.split(r",(?![^(]*\))|\band\b(?![^(]*\))", text.split(".")[0])
        words = [_BEFORE_LIST.sub("", item.strip()) for item in items if len(items) > 1]
        named = [match.groups(default="") for item in words if (match := _LIST_ITEM.fullmatch(item))]
    return list({name.replace(" ", "_"): hint for name, hint in named[:_MOST_FIELDS]}.items())


def _hinted(name: str, hint: str) -> object:
    """The value of a field by what is said of it in brackets: `number, in USD`, `array of strings`, `one of open`."""
    if allowed := re.search(r"one of (\S+)", hint):
        return allowed[1]
    first = re.split(r"\W", hint)[0]
    return _VALUES.get(first, _text(name))


def _text(name: str) -> str:
    return next((text for end, text in _TEXTS.items() if name == end or name.endswith(f"_{end}")), f"{name}_1")
