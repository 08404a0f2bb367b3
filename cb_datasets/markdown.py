"""Markdown in which names and reasons that come from the data stay text: escaped cells, tables, code."""

import re
from collections.abc import Iterable, Sequence

from .terminal import shown_line


# Characters that end a cell, begin HTML, an entity, code or emphasis, or escape the next character; the place between
# the text and the address of a link or image; an underscore at the edge of a word, where it begins emphasis.
_SPECIAL = re.compile(r"[\\|<&`*~]|(?<=\])[(\[]|(?<![^\W_])_|_(?![^\W_])")


class Markdown(str):
    """Markdown of our own, which is not escaped."""


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    r"""A table of GitHub's Markdown.

    Args:
        header (`Sequence`): Column headers.
        rows (`Iterable[Sequence]`): One cell per column; `a|b` is written as `a\|b`, a line break as a space.
    """
    cells = [[cell(value) for value in line] for line in (header, *rows)]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """A value as text in a cell or a sentence; [`Markdown`] as it is."""
    if isinstance(value, Markdown):
        return str(value)
    return _SPECIAL.sub(r"\\\g<0>", _line(value))


def code(value: object) -> str:
    """A value as code in a cell or a sentence."""
    text = _line(value).replace("|", r"\|")
    runs = re.findall("`+", text)
    # Code ends at a run of as many backticks as opened it; a blank beside one at the edge is not shown.
    fence, edge = "`" * (max(map(len, runs), default=0) + 1), " " if runs else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def _line(value: object) -> str:
    return shown_line(" ".join(str(value).split()))
