"""Texts that say nearly the same, told by MinHash (Broder 1997) of their character shingles.

    "Please find the tide tables of Brest."      shingles of 5 characters: "pleas", "lease", "ease ", ...
    "Please, find the tide tables of Brest!!"    the same ones: case, punctuation and spacing are set aside

How alike two texts are is the Jaccard similarity of their shingles: 1 for these two, about 0.7 if one word of a dozen
differs.
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
_NO_WORD = re.compile(r"[\W_]+")
# Making its permutations takes longer than using them, so one MinHash is filled again and again.
_SKETCH = MinHash(NUM_PERM, hashfunc=zlib.crc32)


def normalized(text: str) -> str:
    """A text without what makes no difference: case, punctuation, spacing."""
    return _NO_WORD.sub(" ", text.casefold()).strip()


def shingles(text: str) -> set[bytes]:
    """The runs of [`SHINGLE`] characters in a normalized text; a shorter text is one run."""
    return {text[at : at + SHINGLE].encode() for at in range(max(1, len(text) - SHINGLE + 1))}


def signature(text: str) -> np.ndarray:
    """The MinHash values of a normalized text, `(NUM_PERM,)`."""
    return _sketch(text).hashvalues.astype(np.uint32)


def _sketch(text: str) -> MinHash:
    """The MinHash of a text, good until the next one is asked for."""
    _SKETCH.clear()
    _SKETCH.update_batch(shingles(text))
    return _SKETCH


def request_text(row: dict) -> str:
    """What a prompt or a sample asks: all that the user says, without the injection, normalized."""
    messages = clean_messages(row) if row["injection"] else row["messages"]
    return normalized(" ".join(message["content"] or "" for message in messages if message["role"] == "user"))


class PromptIndex:
    """Finds, among evaluation prompts, one that asks nearly what a training row asks.

    Only evaluation prompts are held, so memory does not grow with the training set.

    Args:
        requests (`Iterable[str]`): What the evaluation prompts ask, see [`request_text`].
        threshold (`float`): Jaccard similarity from which on two requests count as one.
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

    def find(self, request: str) -> str | None:
        """The most similar evaluation request, if one is as similar as the threshold says."""
        if request in self._known:
            return request
        sketch = _sketch(request)
        candidates = np.array(self._index.query(sketch), np.int64)
        # What is far off by the estimate is left out; the rest is compared exactly.
        estimates = (self._signatures[candidates] == sketch.hashvalues).mean(axis=1)
        candidates = candidates[estimates >= self.threshold - _ESTIMATE_ERROR]
        own = shingles(request)
        near = [(_jaccard(own, shingles(self._requests[number])), self._requests[number]) for number in candidates]
        similarity, found = max(near, default=(0.0, None))
        return found if similarity >= self.threshold else None


def _bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many values find 99 in 100 of the pairs that are just as similar as the threshold says.

    The library's own choice weighs what it misses against what it offers in vain; here that costs time only.
    """
    fits = [rows for rows in range(1, NUM_PERM // 2) if 1 - (1 - threshold**rows) ** (NUM_PERM // rows) >= 0.99]
    rows = max(fits, default=1)
    return NUM_PERM // rows, rows


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def near_repeats(signatures: np.ndarray, buckets: np.ndarray, threshold: float) -> np.ndarray:
    """Which earlier row each row nearly is.

    The library's index takes some kilobytes a row; this sorts arrays in place of it.

    Args:
        signatures (`np.ndarray` of shape `(rows, NUM_PERM)`, `uint32`): MinHash values, most wanted rows first.
        buckets (`np.ndarray` of shape `(rows,)`, `uint64`): Rows of different buckets are never compared.
        threshold (`float`): Share of equal MinHash values, an estimate of the Jaccard similarity (standard error 0.03
            at 0.95), from which on two rows count as one.

    Returns:
        `np.ndarray` of shape `(rows,)`, `int64`: The number of an earlier row that was found to be so alike, or -1.
        That row may itself repeat one that is earlier still.
    """
    repeated = np.full(len(signatures), -1)
    for band in np.split(signatures, _BANDS, axis=1):
        for rows in _groups(_mixed(buckets, band)):
            rows = rows[repeated[rows] < 0]
            while len(rows) > 1:
                first, rows = rows[0], rows[1:]
                alike = (signatures[rows] == signatures[first]).mean(axis=1) >= threshold
                alike &= buckets[rows] == buckets[first]
                repeated[rows[alike]] = first
                rows = rows[~alike]
    return repeated


def _mixed(buckets: np.ndarray, band: np.ndarray) -> np.ndarray:
    """One number for a bucket and the values of a band (FNV-1a, on 64 bits)."""
    mixed = buckets.copy()
    for column in band.T:
        mixed = (mixed ^ column) * np.uint64(0x100000001B3)
    return mixed


def _groups(keys: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each key that occurs more than once, in order."""
    order = np.argsort(keys, kind="stable")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1, [len(keys)]])
    sizes = np.diff(bounds)
    for start, size in zip(bounds[:-1][sizes > 1], sizes[sizes > 1], strict=True):
        yield order[start : start + size]
