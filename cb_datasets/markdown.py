"""Tables as Markdown, whose cells may say anything: names of families and reasons come with the data."""

import re
from collections.abc import Iterable, Sequence


# What ends a cell, begins markup of HTML, or takes the meaning of what follows.
_SPECIAL = re.compile(r"[\\|<]")


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    r"""A table of GitHub's Markdown.

    Args:
        header (`Sequence`): The heads of the columns.
        rows (`Iterable[Sequence]`): A cell for each column; `a|b` is written as `a\|b`, a line break as a blank.
    """
    cells = [[cell(value) for value in line] for line in (header, *rows)]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    """What a cell shows, written so that it shows it."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(value).split()))
