"""Near-duplicate texts, found by MinHash (Broder 1997) over character shingles.

    "Please find the tide tables of Brest."      shingles of 5 characters: "pleas", "lease", "ease ", ...
    "Please, find the tide tables of Brest!!"    the same shingles: case, punctuation and spacing are ignored

The similarity of two texts is the Jaccard similarity of their shingle sets: 1 for these two, about 0.7 if one word of
a dozen differs.
"""

import re
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from datasketch import MinHash, MinHashLSH

from ..sample import clean_messages


SHINGLE = 5
NUM_PERM = 64
_BANDS = 16
# Three standard errors of an estimate of 0.8.
_ESTIMATE_ERROR = 0.15
# "Yes, go on." is no request by itself.
_MIN_WORDS = 5
_NO_WORD = re.compile(r"[\W_]+")
# Generating the permutations takes longer than applying them, so one MinHash is cleared and reused.
_SKETCH = MinHash(NUM_PERM, hashfunc=zlib.crc32)


def normalized(text: str) -> str:
    """A text in lower case, with every run of punctuation and whitespace replaced by one space."""
    return _NO_WORD.sub(" ", text.casefold()).strip()


def shingles(text: str) -> set[bytes]:
    """All substrings of [`SHINGLE`] characters of a normalized text; a shorter text is one shingle."""
    return {text[at : at + SHINGLE].encode() for at in range(max(1, len(text) - SHINGLE + 1))}


def signature(text: str) -> np.ndarray:
    """The MinHash values of a normalized text, `(NUM_PERM,)`."""
    return _sketch(text).hashvalues.astype(np.uint32)


def _sketch(text: str) -> MinHash:
    """The MinHash of a text, valid until the next call."""
    _SKETCH.clear()
    _SKETCH.update_batch(shingles(text))
    return _SKETCH


def request_texts(row: dict) -> list[str]:
    """The request of a prompt or a sample, normalized and without the injection.

    The first text is all user messages. If there are several, the last one is a text of its own, so that a known
    request is found behind other turns too; one of fewer than [`_MIN_WORDS`] words is not, because it says little.
    """
    messages = clean_messages(row) if row["injection"] else row["messages"]
    texts = [normalized(message["content"] or "") for message in messages if message["role"] == "user"]
    last = texts[-1:] if len(texts) > 1 and len(texts[-1].split()) >= _MIN_WORDS else []
    return [" ".join(text for text in texts if text), *last]


class PromptIndex:
    """Index of evaluation requests that returns the most similar one to a training request.

    Only evaluation requests are held in memory, so it does not grow with the training set.

    Args:
        requests (`Iterable[str]`): Requests of the evaluation prompts, see [`request_texts`].
        threshold (`float`): Minimum Jaccard similarity of near-duplicates.
    """

    def __init__(self, requests: Iterable[str], threshold: float) -> None:
        self.threshold = threshold
        self._requests = sorted(set(requests))
        self._known = set(self._requests)
        self._signatures = np.zeros((len(self._requests), NUM_PERM), np.uint32)
        self._index = MinHashLSH(threshold, NUM_PERM, params=_bands(threshold))
        for number, request in enumerate(self._requests):
            self._signatures[number] = signature(request)
            self._index.insert(number, _sketch(request))

    def __len__(self) -> int:
        return len(self._requests)

    def find(self, requests: list[str]) -> str | None:
        """Return the evaluation request most similar to the first text that has one, or `None` if none is similar.

        Args:
            requests (`list[str]`): What one row asks, see [`request_texts`].
        """
        return next(filter(None, map(self._most_similar, requests)), None)

    def _most_similar(self, request: str) -> str | None:
        if request in self._known:
            return request
        sketch = _sketch(request)
        candidates = np.array(self._index.query(sketch), np.int64)
        # Discard candidates whose estimate is far below the threshold; compare the others exactly.
        estimates = (self._signatures[candidates] == sketch.hashvalues).mean(axis=1)
        candidates = candidates[estimates >= self.threshold - _ESTIMATE_ERROR]
        own = shingles(request)
        near = [(_jaccard(own, shingles(self._requests[number])), self._requests[number]) for number in candidates]
        similarity, most_similar = max(near, default=(0.0, None))
        return most_similar if similarity >= self.threshold else None


def _bands(threshold: float) -> tuple[int, int]:
    """Number of LSH bands and of values per band that find 99 % of the pairs whose similarity is the threshold.

    The library's own choice trades misses against false candidates. Here a false candidate only costs time, because
    candidates are compared exactly.
    """
    fits = [rows for rows in range(1, NUM_PERM // 2) if 1 - (1 - threshold**rows) ** (NUM_PERM // rows) >= 0.99]
    rows = max(fits, default=1)
    return NUM_PERM // rows, rows


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def find_near_duplicates(signatures: np.ndarray, buckets: np.ndarray, threshold: float) -> np.ndarray:
    """Find for each row an earlier row that it nearly duplicates.

    `MinHashLSH` needs some kilobytes per row; this sorts arrays instead.

    Args:
        signatures (`np.ndarray` of shape `(rows, NUM_PERM)`, `uint32`): MinHash values. Of two near-duplicates the
            earlier row is the original.
        buckets (`np.ndarray` of shape `(rows,)`, `uint64`): Rows of different buckets are never compared.
        threshold (`float`): Minimum fraction of equal MinHash values, an estimate of the Jaccard similarity (standard
            error 0.03 at 0.95).

    Returns:
        `np.ndarray` of shape `(rows,)`, `int64`: The number of the earlier row, or -1. The earlier row may itself be a
        near-duplicate of another one.
    """
    duplicate_of = np.full(len(signatures), -1)
    for band in np.split(signatures, _BANDS, axis=1):
        # Only rows that agree in a whole band are compared, as in LSH.
        for rows in _groups(_hash_band(buckets, band)):
            rows = rows[duplicate_of[rows] < 0]
            while len(rows) > 1:
                first, rows = rows[0], rows[1:]
                alike = (signatures[rows] == signatures[first]).mean(axis=1) >= threshold
                # The band hash may collide across buckets.
                alike &= buckets[rows] == buckets[first]
                duplicate_of[rows[alike]] = first
                rows = rows[~alike]
    return duplicate_of


def _hash_band(buckets: np.ndarray, band: np.ndarray) -> np.ndarray:
    """One 64-bit hash (FNV-1a) per row of its bucket and its values in a band."""
    hashed = buckets.copy()
    for column in band.T:
        hashed = (hashed ^ column) * np.uint64(0x100000001B3)
    return hashed


def _groups(keys: np.ndarray) -> Iterator[np.ndarray]:
    """The row numbers, ascending, of each key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(keys)]])
    sizes = np.diff(bounds)
    for start, size in zip(bounds[:-1][sizes > 1], sizes[sizes > 1], strict=True):
        yield order[start : start + size]
