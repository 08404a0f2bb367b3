"""Character shingles of texts: as sets, hashed, and as MinHash signatures (Broder 1997).

    "Please find the tide tables of Brest."      shingles of 5 characters: "pleas", "lease", "ease ", ...
    "Please, find the tide tables of Brest!!"    the same shingles: case, punctuation and spacing are ignored

The similarity of two texts is the Jaccard similarity of their shingle sets: 1 for these two, about 0.7 if one word of
a dozen differs. Texts are hashed many at a time, as arrays.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np


SHINGLE = 5
NUM_PERM = 64
# Texts to hash at a time: their arrays stay in the processor's cache.
BATCH_TEXTS = 256
_NO_WORD = re.compile(r"[\W_]+")
# For `str.translate`: what each ASCII character becomes.
_ASCII_WORDS = "".join(" " if _NO_WORD.match(each) else each for each in map(chr, range(128)))
# A character takes at most four bytes.
_SHINGLE_BYTES = 4 * SHINGLE


def _permutations() -> np.ndarray:
    """Multipliers, which are odd, and summands of the maps `h -> a * h + b` modulo 2 ** 32; the same in every run."""
    random = np.random.RandomState(1)
    multipliers = random.randint(0, 1 << 31, NUM_PERM, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return np.array([multipliers, random.randint(0, 1 << 32, NUM_PERM, dtype=np.uint32)])


def _crc_tables() -> tuple[np.ndarray, list[np.uint32]]:
    """What a byte adds to the CRC-32 of a text, by its distance from the end; and the CRC-32 of zeros, by length."""
    zeros = [zlib.crc32(bytes(length)) for length in range(_SHINGLE_BYTES + 1)]
    tables = [
        [zlib.crc32(bytes([byte, *bytes(distance)])) ^ zeros[distance + 1] for byte in range(256)]
        for distance in range(_SHINGLE_BYTES)
    ]
    return np.array(tables, np.uint32), [np.uint32(crc) for crc in zeros]


_PERMUTATIONS = _permutations()
_OF_BYTE, _OF_ZEROS = _crc_tables()


def normalized(text: str) -> str:
    """A text in lower case, with every run of punctuation and whitespace replaced by one space."""
    text = text.casefold()
    if text.isascii():  # as most texts are: in half the time
        return " ".join(text.translate(_ASCII_WORDS).split())
    return _NO_WORD.sub(" ", text).strip()


def shingles(text: str) -> set[bytes]:
    """All substrings of [`SHINGLE`] characters of a normalized text; a shorter text is one shingle."""
    return {text[at : at + SHINGLE].encode() for at in range(max(1, len(text) - SHINGLE + 1))}


def hashed_shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The CRC-32 of every shingle of every normalized text, repeated ones included.

    Args:
        texts (`Sequence[str]`): Normalized texts.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The hashes (`uint32`), text by text; and where each text's begin (`int64`).
    """
    content = np.frombuffer("".join(texts).encode(), np.uint8)
    # Every byte that does not continue a character begins one.
    begins = np.append(np.flatnonzero(content & 0xC0 != 0x80), len(content))
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    counts = np.maximum(sizes - SHINGLE + 1, 1)
    starts = np.cumsum(counts) - counts
    # The character at which each shingle begins, and the one at which it ends.
    first = ranges(np.cumsum(sizes) - sizes, counts)
    last = first + np.repeat(np.minimum(sizes, SHINGLE), counts)
    return _crc32(content, begins[first], begins[last]), starts


def _crc32(content: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The CRC-32 of parts of some bytes, none longer than a shingle.

    The CRC of equally long texts is linear: each byte adds (by XOR) what it would among zeros.
    """
    hashes = np.empty(len(begins), np.uint32)
    lengths = ends - begins
    for length in np.flatnonzero(np.bincount(lengths)):
        same = np.flatnonzero(lengths == length)
        hashed = np.full(len(same), _OF_ZEROS[length])
        for place in range(length):
            hashed ^= _OF_BYTE[length - 1 - place][content[begins[same] + place]]
        hashes[same] = hashed
    return hashes


def signatures(texts: Sequence[str]) -> np.ndarray:
    """The MinHash values of normalized texts, `(texts, NUM_PERM)`: as the library `datasketch` computes them."""
    found = np.empty((len(texts), NUM_PERM), np.uint32)
    for at in range(0, len(texts), BATCH_TEXTS):
        hashes, starts = hashed_shingles(texts[at : at + BATCH_TEXTS])
        mixed = _mix(hashes)
        for number, (multiplier, summand) in enumerate(_PERMUTATIONS.T):
            found[at : at + BATCH_TEXTS, number] = np.minimum.reduceat(mixed * multiplier + summand, starts)
    return found


def _mix(hashes: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3, a map of 32 bits onto themselves: similar CRCs become unlike numbers."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers `start, start + 1, ...` of each range, one range after another."""
    return np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
