"""Whether a text is degenerate, whatever it is about.

    tide tide tide tide tide tide tide                repeated
    The answer is 4.<|start_header_id|> so            a stray control token
    ��� of ����                                       broken UTF-8
    ancesPGthe \u043a Units_TRY forEachに .GetInt     random tokens

A breaker that garbles its output makes no wrong call either, so safety metrics alone would rate it well. Repetition is
found by patterns. Random tokens look like text to patterns; a linear classifier of hashed byte n-grams knows how
letters follow each other in text and code, and how rarely a text has more than two scripts. Its weights ship with the
package; `tools/train_gibberish.py` trains them. On text that it has not seen (answers of two data sets,
gettext catalogues of ten languages, code) one in a hundred is a false alarm; of random tokens of three vocabularies it
finds 88 to 93 % at 60 characters, 93 to 97 % at 80, and all from 120 on.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..control_tokens import leaks_control_token


WEIGHTS = Path(__file__).with_name("assets") / "gibberish_v1.npz"
HASH_BITS = 16
# A text of n characters is random tokens if its logit is above SLOPE / sqrt(n) + LIMIT: the mean over a short text
# varies more. At these values one real text in a hundred is taken for random tokens, at any length.
_SLOPE, _LIMIT = 14.0, -0.5
_SHORTEST, _LONGEST = 60, 4000  # characters: too little is seen of a shorter text, and enough of a longer one
_GRAMS = range(2, 6)  # lengths of n-grams, in bytes
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of Fibonacci hashing (Knuth 1973, section 6.4)

# A word with a letter in it. Numbers repeat in tables, and on each day of a dry month.
_WORD = r"\b(?=[\d_]*+[^\W\d_])\w++"
_REPEATED_WORD = re.compile(rf"({_WORD})(?:\W+\1\b){{5,}}|\b([\d_]++)(?:\W+\2\b){{31,}}")
# Left out before letters are judged, because lists of names follow no language: mail addresses, clock times, and lines
# of up to three plain words, if there are as many as no random tokens have.
_ADDRESS_OR_TIME = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.\w{1,24})+|\b\d\d?:\d\d\b")
_ITEM_WORDS, _ITEMS = 3, 4
_REPEATED_PIECE = re.compile(r"(\S{2,20}?)\1{7,}")
_REPLACEMENT = "\ufffd"


def is_degenerate(text: str) -> bool:
    """Whether plain text is degenerate: a repeated word or piece of one, few distinct words, stray control tokens,
    broken UTF-8, or random tokens.

    A property apart from the outcome. Lines drawn with one character are not degenerate, and short answers are not
    judged by their variety. Linear in the length of the text.
    """
    if leaks_control_token(text) or text.count(_REPLACEMENT) > 1 + len(text) // 200:
        return True
    folded = text.casefold()
    piece = _REPEATED_PIECE.search(folded)
    if piece and len(set(piece[1])) > 1:
        return True
    return bool(_REPEATED_WORD.search(folded)) or _has_few_words(folded) or is_random_tokens(text)


def _has_few_words(text: str) -> bool:
    # Numbers may be all alike, in a table of zeros, and may be all that is different, in a list of records.
    return _are_few(re.findall(_WORD, text)) and _are_few(re.findall(r"\w+", text))


def _are_few(words: list[str]) -> bool:
    if len(words) < 12:
        return False
    most_common = Counter(words).most_common(1)[0][1]
    return len(set(words)) < 5 or len(set(words)) / len(words) < 0.25 or most_common / len(words) > 0.5


def is_random_tokens(text: str) -> bool:
    """Whether a text looks like tokens drawn at random, by its first [`_LONGEST`] characters; lists are left out."""
    seen = _without_lists(text[:_LONGEST])
    return len(seen) >= _SHORTEST and randomness(seen) > _SLOPE / len(seen) ** 0.5 + _LIMIT


def _without_lists(text: str) -> str:
    lines = _ADDRESS_OR_TIME.sub("", text).split("\n")
    items = sum(map(_is_item, lines))
    return "\n".join(line for line in lines if items < _ITEMS or not _is_item(line))


def _is_item(line: str) -> bool:
    words = [word for word in re.findall(r"\w+", line) if not word.isdecimal()]
    return 0 < len(words) <= _ITEM_WORDS and all(word.isalpha() and word[1:] == word[1:].lower() for word in words)


def randomness(text: str) -> float:
    """Logit that a text is random tokens:

    w_scripts log(1 + scripts) + b + mean_i w[hash(g_i)]        g_i the n-grams of 2 to 5 bytes
    """
    grams, per_script, bias = _weights()
    return float(grams[gram_hashes(text)].mean() + per_script * np.log1p(num_scripts(text)) + bias)


def gram_hashes(text: str) -> np.ndarray:
    """Hashes of all n-grams of a text's bytes, each of [`HASH_BITS`] bits. Digits are alike, and so is whitespace."""
    normalized = re.sub(r"\s+", " ", re.sub(r"\d", "0", text))
    data = np.frombuffer(f" {normalized} ".encode("utf-8", "replace"), np.uint8).astype(np.uint64)
    codes, hashes = data, []
    for length in _GRAMS:
        codes = codes[:-1] * np.uint64(256) + data[length - 1 :]
        hashes.append(((codes + np.uint64(length)) * _MULTIPLIER) >> np.uint64(64 - HASH_BITS))
    return np.concatenate(hashes)


def num_scripts(text: str) -> int:
    """Number of scripts of a text's letters. Han and the Japanese syllabaries count as one."""
    return len({_script(letter) for letter in set(text) if letter.isalpha()})


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "OTHER").split()[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK", "FULLWIDTH": "LATIN", "HALFWIDTH": "CJK"}.get(name, name)


@lru_cache(maxsize=1)
def _weights() -> tuple[np.ndarray, float, float]:
    with np.load(WEIGHTS) as stored:
        grams = stored["grams"].astype(np.float32) * stored["scale"]
        return grams, float(stored["per_script"]), float(stored["bias"])
