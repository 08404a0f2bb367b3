"""Near-duplicates among millions of rows, by their MinHash signatures: some hundred bytes of each."""

from collections.abc import Iterator

import numpy as np


_BANDS = 16


def find_near_duplicates(signatures: np.ndarray, buckets: np.ndarray, threshold: float) -> np.ndarray:
    """Find for each row an earlier row that it nearly duplicates.

    Indexes for locality-sensitive hashing need some kilobytes per row; this sorts arrays instead.

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
