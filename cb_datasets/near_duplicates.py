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

from .sample import clean_messages


SHINGLE = 5
NUM_PERM = 128
_BANDS = 16
_NO_WORD = re.compile(r"[\W_]+")
# All signatures share one set of permutations; making them anew for each would take longer than using them.
_EMPTY = MinHash(NUM_PERM, hashfunc=zlib.crc32)


def normalized(text: str) -> str:
    """A text without what makes no difference: case, punctuation, spacing."""
    return _NO_WORD.sub(" ", text.casefold()).strip()


def shingles(text: str) -> set[bytes]:
    """The runs of [`SHINGLE`] characters in a normalized text; a shorter text is one run."""
    return {text[at : at + SHINGLE].encode() for at in range(max(1, len(text) - SHINGLE + 1))}


def signature(text: str) -> MinHash:
    """The MinHash of a normalized text."""
    made = _EMPTY.copy()
    made.update_batch(shingles(text))
    return made


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
        # Candidates are compared exactly below, so the index may offer too many, but must not miss one.
        self._index = MinHashLSH(threshold, NUM_PERM, weights=(0.1, 0.9))
        self._held = {request: shingles(request) for request in requests}
        for request in self._held:
            self._index.insert(request, signature(request))

    def __len__(self) -> int:
        return len(self._held)

    def find(self, request: str) -> str | None:
        """The most similar evaluation request, if one is as similar as the threshold says."""
        if request in self._held:
            return request
        own = shingles(request)
        near = [(_jaccard(own, self._held[found]), found) for found in self._index.query(signature(request))]
        similarity, found = max(near, default=(0.0, None))
        return found if similarity >= self.threshold else None


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def near_repeats(signatures: np.ndarray, buckets: np.ndarray, threshold: float) -> np.ndarray:
    """Which rows are nearly what an earlier row is.

    The library's index takes some kilobytes a row; this one sorts arrays in place of it and takes 128 bytes.

    Args:
        signatures (`np.ndarray` of shape `(rows, NUM_PERM)`, `uint32`): MinHash values, most wanted rows first.
        buckets (`np.ndarray` of shape `(rows,)`, `uint64`): Rows of different buckets are never compared.
        threshold (`float`): Share of equal MinHash values, an estimate of the Jaccard similarity (standard error 0.02
            at 0.95), from which on two rows count as one.

    Returns:
        `np.ndarray` of shape `(rows,)`, `bool`
    """
    repeated = np.zeros(len(signatures), bool)
    for band in np.split(signatures, _BANDS, axis=1):
        for rows in _groups(_mixed(buckets, band)):
            rows = rows[~repeated[rows]]
            while len(rows) > 1:
                first, rows = rows[0], rows[1:]
                alike = (signatures[rows] == signatures[first]).mean(axis=1) >= threshold
                alike &= buckets[rows] == buckets[first]
                repeated[rows[alike]] = True
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
    changes = np.flatnonzero(np.diff(keys[order])) + 1
    for rows in np.split(order, changes):
        if len(rows) > 1:
            yield rows
