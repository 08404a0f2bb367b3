"""Groups of rows that say nearly the same: of one function, or with one question.

    simple_python_7    "How high is the tide in Brest at 7?"                tides_height
    live_simple_40     "Tide in Ostend, please"                             tides_height      the same function
    irrelevance_12     "how high is the tide in brest at 7"                 cook_rice         the same question

All three are one group, `bfcl/cook_rice`, named for the first of its functions.
"""

from collections.abc import Iterable, Sequence

from ..fujitsu.text import normalize_query
from .rows import Row


# Shorter questions ("What is your name?") are asked of everything, and would join unrelated functions.
_LONG_QUESTION = 8


def group_names(rows: Sequence[Row]) -> list[str]:
    """The group of each row."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in rows:
        first, *others = _keys(row)
        for other in others:
            # The smaller of two is the name of both, whatever the order of the rows.
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [f"bfcl/{root(_keys(row)[0]).removeprefix(_FUNCTION)}" for row in rows]


_FUNCTION, _QUESTION = "1 ", "2 "  # functions come first, so that a group has the name of one


def _keys(row: Row) -> list[str]:
    """What a row shares with those of its group."""
    functions = [f"{_FUNCTION}{name}" for name in row.subjects] or [f"{_FUNCTION}none"]
    return [*functions, *_long_questions(row)]


def _long_questions(row: Row) -> Iterable[str]:
    last = next((turn[-1]["content"] for turn in row.turns[-1:] if turn), "")
    question = normalize_query(last)
    return [f"{_QUESTION}{question}"] if len(question.split()) >= _LONG_QUESTION else []
