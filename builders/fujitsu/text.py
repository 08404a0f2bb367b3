"""Text normalisation for the groups of traces: texts with the same normal form are in one group."""

import re
import unicodedata


_HYPHENS = re.compile("[\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d]")


def normalize_hyphens(text: str) -> str:
    """Replace every Unicode hyphen, dash and minus sign by "-"."""
    return _HYPHENS.sub("-", text)


def normalize_query(text: str) -> str:
    """Remove differences between near-identical queries: case, hyphen characters, punctuation, white space, and
    equivalent Unicode encodings of one character.
    """
    composed = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[^\w\s-]|_", " ", normalize_hyphens(composed))
    return " ".join(text.split())
