"""Markdown tables with escaped cells: names of families and reasons come from the data."""

import re
from collections.abc import Iterable, Sequence


# Characters that end a cell, begin HTML, or escape the next character.
_SPECIAL = re.compile(r"[\\|<]")


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
    """A value, escaped for a cell."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(value).split()))
