"""Private-use characters, which mark or stand for text in prompts, and functions over all strings of a JSON value."""

from collections.abc import Callable, Iterator
from typing import Any


def private_use_characters(text: str) -> Iterator[str]:
    """Private-use characters that are not in a text, those of the basic plane not even as an escape of JSON.

    Raises:
        ValueError: If there are no more.
    """
    for code in range(0xE000, 0xF900):
        if chr(code) not in text and f"u{code:04x}" not in text:
            yield chr(code)
    # Only text made for the purpose contains all of these.
    yield from sorted(set(map(chr, range(0xF0000, 0xFFFFE))) - set(text))
    raise ValueError("A prompt contains all private-use characters; none is left to mark anything in it.")


def strings_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings_in(item)


def map_strings(value: Any, function: Callable[[str], str]) -> Any:
    """A copy of a JSON value with the function applied to all strings, keys included."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {function(key): map_strings(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, function) for item in value]
    return value
