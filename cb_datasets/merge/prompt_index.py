"""Which evaluation request, if any, a training request nearly repeats.

    held out     "find the tide tables of brest please"
    training     "please find the tide tables of brest"         similarity 0.82: found
                 "please find the opening hours of the museum"  not found

No pair is missed. Two texts of similarity `t` share at least the fraction `t` of the shingles of each, so at least one
of the rarest `1 - t` of both (the prefix filter of Chaudhuri et al. 2006). Only these are looked up, most of which are
in no evaluation request at all, and whatever they lead to is compared exactly.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..sample import clean_messages
from .shingles import BATCH_TEXTS, hashed_shingles, normalized, ranges, shingles


# "Yes, go on." is no request by itself.
_MIN_WORDS = 5
# Sizes of tables by the last bits of a hash, and an odd number that spreads texts over the smaller one.
_SLOTS, _KNOWN = 2**18, 2**22
_MIXER = np.uint32(0x9E3779B1)
# Pairs of texts to compare at a time.
_BATCH_PAIRS = 4096


def request_texts(row: dict) -> list[str]:
    """The request of a prompt or a sample, normalized and without the injection.

    The first text is all user messages. If there are several, the last one is a text of its own, so that a known
    request is found behind other turns too; one of fewer than [`_MIN_WORDS`] words is not, because it says little.
    """
    messages = clean_messages(row) if row["injection"] else row["messages"]
    texts = [normalized(message["content"] or "") for message in messages if message["role"] == "user"]
    last = texts[-1:] if len(texts) > 1 and len(texts[-1].split()) >= _MIN_WORDS else []
    return [" ".join(text for text in texts if text), *last]


class _Shingles(NamedTuple):
    """The sets of hashed shingles of some texts: those of text `n` are `hashes[bounds[n] : bounds[n + 1]]`."""

    hashes: np.ndarray
    bounds: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.bounds)

    @property
    def owners(self) -> np.ndarray:
        """The text of each hash."""
        return np.repeat(np.arange(len(self.bounds) - 1), self.sizes)


def _shingle_sets(texts: Sequence[str]) -> _Shingles:
    hashes, starts = hashed_shingles(texts)
    owners = np.repeat(np.arange(len(texts)), np.diff(np.append(starts, len(hashes))))
    # With counts, which it sorts for: five times as fast as the hash table that it makes without.
    keys, _ = np.unique(_keys(owners, hashes), return_counts=True)
    bounds = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32))
    return _Shingles(_second(keys), bounds)


def _keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pairs of numbers of 32 bits as numbers of 64: `first` decides their order."""
    return (first.astype(np.uint64) << np.uint64(32)) | second.astype(np.uint64)


def _second(keys: np.ndarray) -> np.ndarray:
    return keys.astype(np.uint32)


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
        starts = range(0, len(self._requests), BATCH_TEXTS)
        parts = [_shingle_sets(self._requests[at : at + BATCH_TEXTS]) for at in starts]
        sizes = np.concatenate([np.zeros(0, np.int64), *(part.sizes for part in parts)])
        hashes = np.concatenate([np.zeros(0, np.uint32), *(part.hashes for part in parts)])
        self._sets = _Shingles(hashes, np.append(0, np.cumsum(sizes)))
        # The shingles of all requests, ascending, and in how many each occurs.
        self._vocabulary, self._frequency = np.unique(hashes, return_counts=True)
        # By the last bits of a hash: whether a shingle with these occurs in any request.
        self._may_occur = np.zeros(_KNOWN, bool)
        self._may_occur[hashes % _KNOWN] = True
        self._taken = np.zeros(_SLOTS, np.int32)
        # Each rare shingle of each request as a pair of its hash and the request, ascending.
        rare = [np.zeros(0, np.uint64)]
        for start, part in zip(starts, parts, strict=True):
            chosen = self._rarest(part)
            rare.append(_keys(part.hashes[chosen], start + part.owners[chosen]))
        self._rare = np.sort(np.concatenate(rare))

    def __len__(self) -> int:
        return len(self._requests)

    def find(self, requests: list[str]) -> str | None:
        """Return the evaluation request most similar to the first text that has one, or `None` if none is similar.

        Args:
            requests (`list[str]`): What one row asks, see [`request_texts`].
        """
        return self.find_all([requests])[0]

    def are_known(self, rows: Sequence[list[str]]) -> np.ndarray:
        """Whether each of many rows has a text that [`find`] finds."""
        return np.array([match is not None for match in self.find_all(rows)], bool)

    def find_all(self, rows: Sequence[list[str]]) -> list[str | None]:
        """As [`find`] for each of many rows, in a fraction of the time."""
        texts = list({text: None for requests in rows for text in requests if text not in self._known})
        similar: dict[str, str] = {}
        for at in range(0, len(texts), BATCH_TEXTS):
            if possible := self._possible(texts[at : at + BATCH_TEXTS]):
                similar |= self._most_similar(possible)
        similar |= {text: text for requests in rows for text in requests if text in self._known}
        return [next((similar[text] for text in requests if text in similar), None) for requests in rows]

    def _possible(self, texts: list[str]) -> list[str]:
        """Without those of which so many shingles occur in no evaluation request that none can be similar enough.

        Most texts end here, in a time that is linear in their length.
        """
        hashes, starts = hashed_shingles(texts)
        sizes = np.diff(starts, append=len(hashes))
        owners = np.repeat(np.arange(len(texts)), sizes)
        new = np.flatnonzero(~self._may_occur[hashes % _KNOWN])
        # Shingles that a text repeats count once: each takes a slot, and only the last in a slot counts.
        slots = (hashes[new] + owners[new].astype(np.uint32) * _MIXER) % _SLOTS
        self._taken[slots] = new
        new = new[self._taken[slots] == new]
        num_new = np.bincount(owners[new], minlength=len(texts))
        return [text for text, few in zip(texts, num_new <= (1 - self.threshold) * sizes + 1, strict=True) if few]

    def _most_similar(self, texts: list[str]) -> dict[str, str]:
        """The most similar evaluation request of each text that has one."""
        best: dict[str, tuple[float, str]] = {}
        for text_number, number in zip(*self._candidates(_shingle_sets(texts)), strict=True):
            text, request = texts[text_number], self._requests[number]
            similarity = _jaccard(shingles(text), shingles(request))
            if similarity >= self.threshold:
                best[text] = max(best.get(text, (0.0, "")), (similarity, request))
        return {text: request for text, (_, request) in best.items()}

    def _candidates(self, texts: _Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a text and an evaluation request that may be similar enough: their numbers, in two arrays."""
        rare = self._rarest(texts)
        hashes, owners = texts.hashes[rare], texts.owners[rare]
        begins = np.searchsorted(self._rare, _keys(hashes, np.zeros(1, np.uint64)))
        hits = np.searchsorted(self._rare, _keys(hashes, np.full(1, 2**32 - 1, np.uint64)), "right") - begins
        at = ranges(begins, hits)
        pairs = np.unique(_keys(np.repeat(owners, hits), _second(self._rare[at])))
        text, request = (pairs >> np.uint64(32)).astype(np.int64), _second(pairs).astype(np.int64)
        one, other = texts.sizes[text], self._sets.sizes[request]
        # One more and one fewer, since two shingles of a text may have one hash.
        near = np.minimum(one, other) + 1 >= self.threshold * (np.maximum(one, other) - 1)
        text, request = text[near], request[near]
        near = np.zeros(len(text), bool)
        for start in range(0, len(text), _BATCH_PAIRS):
            some = slice(start, start + _BATCH_PAIRS)
            near[some] = self._is_near(texts, text[some], request[some])
        return text[near], request[near]

    def _rarest(self, texts: _Shingles) -> np.ndarray:
        """Which shingles of each text to look up: those that occur in the fewest evaluation requests."""
        at = np.searchsorted(self._vocabulary, texts.hashes)
        at[at == len(self._vocabulary)] = 0
        is_known = self._vocabulary[at] == texts.hashes if len(self._vocabulary) else np.zeros(len(at), bool)
        frequency = np.zeros(len(at), np.int64)
        frequency[is_known] = self._frequency[at[is_known]]
        owners = texts.owners
        order = np.lexsort((texts.hashes, frequency, owners))
        rank = np.arange(len(order)) - texts.bounds[owners]
        return order[rank <= (1 - self.threshold) * texts.sizes[owners] + 1]

    def _is_near(self, texts: _Shingles, text: np.ndarray, request: np.ndarray) -> np.ndarray:
        """Whether the hashed shingles of each pair are similar enough."""
        known = _keys(texts.owners, texts.hashes)
        sizes = self._sets.sizes[request]
        wanted = _keys(np.repeat(text, sizes), self._sets.hashes[ranges(self._sets.bounds[request], sizes)])
        at = np.searchsorted(known, wanted)
        at[at == len(known)] = 0
        common = np.add.reduceat(known[at] == wanted, np.cumsum(sizes) - sizes, dtype=np.int64)
        return common + 1 >= self.threshold * (texts.sizes[text] + sizes - common - 1)


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)
