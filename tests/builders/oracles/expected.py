"""Allowed outcomes of a record, determined only by its content.

An oracle parses the bytes of a (possibly damaged) input file by the published description of its format, and returns
the allowed outcomes of every record: a verdict with its decision turn, a named drop, or an error. It is independent of
the builders' code. If the description is ambiguous, several outcomes are allowed and the record is undetermined.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


Outcomes = frozenset[str]

ERROR: Outcomes = frozenset({"error"})
SILENT: Outcomes = frozenset({"silent"})  # read, and yields nothing: the header of a table


def verdict(name: str, turn: int | None = None) -> Outcomes:
    return frozenset({f"{name}@{turn}"})


def drop(*reasons: str) -> Outcomes:
    return frozenset(f"drop:{reason}" for reason in reasons)


@dataclass(frozen=True)
class Unit:
    """One record, or the damaged text in its place.

    Args:
        file (`str`): Name of its file in error messages.
        places (`range` or `tuple[str, ...]`): Lines of the file, or keys and indices in it; an error about this record
            must name one of them. An empty tuple means the file as a whole.
        content (`str`, *optional*): The parsed record as comparable text; `None` if it cannot be parsed.
        outcomes (`Outcomes`): Allowed outcomes.
    """

    file: str
    places: range | tuple[str, ...]
    content: str | None
    outcomes: Outcomes

    @property
    def is_determined(self) -> bool:
        """Whether only one outcome is allowed, or only drops: a record with several problems has several reasons."""
        return len(self.outcomes) == 1 or all(outcome.startswith("drop:") for outcome in self.outcomes)


def parse_json(text: str) -> Any:
    """Parse a JSON text by RFC 8259.

    Raises:
        ValueError: If it is not valid JSON, an object repeats a key, or a value cannot be stored in a text column: a
            number that overflows (`1e999`), an unpaired surrogate, nesting that is too deep.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def parse_json_mended(text: str) -> Any:
    """As [`parse_json`], with U+FFFD for each unpaired surrogate."""
    try:
        # Pairs are one character of Python's; what is left is unpaired.
        written = json.dumps(json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique), ensure_ascii=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return parse_json("".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in written))


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("one key, two values")
    return dict(pairs)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def comparable(value: Any) -> str:
    """Text that is equal for two values only if they are identical, including key order and number types."""
    return json.dumps(value, ensure_ascii=False)


def json_lines(
    file: str, data: bytes, judge: Callable[[dict], Outcomes], parse: Callable[[str], Any] = parse_json
) -> list[Unit]:
    """One unit for every line that is not blank; `judge(record)` returns the allowed outcomes of an object."""
    units = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = range(number, number + 1)
        try:
            record, has_mark = parse_bytes(line, parse)
        except ValueError:
            units.append(Unit(file, place, None, ERROR))
            continue
        if not isinstance(record, dict):
            units.append(Unit(file, place, None, ERROR))
            continue
        # A byte order mark belongs at the start of a file; elsewhere it may be skipped or refused.
        outcomes = judge(record) | (ERROR if has_mark and number > 1 else frozenset())
        units.append(Unit(file, place, comparable(record), outcomes))
    return units


def parse_bytes(data: bytes, parse: Callable[[str], Any] = parse_json) -> tuple[Any, bool]:
    """Parse JSON bytes; also return whether they begin with a byte order mark.

    Raises:
        ValueError: If the bytes are not valid JSON.
    """
    text = data.decode("utf-8")
    return parse(text.removeprefix("\ufeff")), text.startswith("\ufeff")
