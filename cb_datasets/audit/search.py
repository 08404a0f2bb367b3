"""Full-text search that reads no row: an index of the words of all texts, built once and kept in a file.

    a text        Use search_web, please.    ->   use | " " | search_web | ", " | please | .
    a search      e search_we                ->   a word that ends with "e" | " " | one that begins with "search_we"

A text is cut into words and what stands between them, and so is what is searched for. Only the ends of that may be
parts of words, so a search is a look at the list of words, and then at the places of the rarest word it asks for. Case
is set aside; nothing else is.

The index is a few segments, each of some tens of thousands of rows and whole in itself, so that building one takes
little memory. A text that many rows have, such as a system prompt, is in a segment once.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet

from ..files import STREAM_ROWS
from .cached_table import CachedTable


SEGMENT_TOKENS = 4_000_000
THREADS = 4
_TOKEN = re.compile(r"\w+|\W+")

_SEGMENT = pyarrow.schema(
    {
        "words": pyarrow.list_(pyarrow.string()),  # every token there is, sorted; the first, "", stands between texts
        "tokens": pyarrow.list_(pyarrow.int32()),  # all texts, one after another, as numbers of words
        "places": pyarrow.list_(pyarrow.int32()),  # where in `tokens` each word stands, word after word
        "first_place": pyarrow.list_(pyarrow.int32()),  # of each word
        "first_token": pyarrow.list_(pyarrow.int32()),  # of each text
        "texts": pyarrow.list_(pyarrow.int32()),  # of each row, row after row
        "first_text": pyarrow.list_(pyarrow.int32()),  # of each row
    }
)


class Search(CachedTable):
    """Finds rows by what is said in them."""

    NAME = "words"
    WHAT = "Reading rows for the search"
    SCHEMA = _SEGMENT

    def rows_with(self, text: str, seconds: float = 0.2) -> np.ndarray:
        """Whether each row holds a text, in any case of letters, in a message, in its completion or in its id.

        Raises:
            NotReady: If the index is not there in so many seconds.
        """
        segments = map(_Segment, self.batches(seconds))
        pieces = _TOKEN.findall(text.casefold())
        with ThreadPoolExecutor(THREADS) as pool:
            return np.concatenate([np.zeros(0, bool), *pool.map(lambda segment: segment.rows_with(pieces), segments)])

    def _make(self) -> Iterator[pyarrow.RecordBatch]:
        growing = _GrowingSegment()
        for texts in _texts_of_rows(self._files):
            growing.add(texts)
            self._bar.update()
            if len(growing.tokens) > SEGMENT_TOKENS:
                yield growing.batch()
                growing = _GrowingSegment()
        if growing.texts:
            yield growing.batch()


def _texts_of_rows(files: list[Path]) -> Iterator[list[str]]:
    """For each row its id, its completion and what its messages say."""
    for file in files:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            names = [name for name in ("id", "assistant_raw", "messages") if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(STREAM_ROWS, columns=names):
                columns = [batch[name].to_pylist() for name in names if name != "messages"]
                said = batch["messages"]
                contents, starts = pc.struct_field(said.values, "content").to_pylist(), said.offsets.to_pylist()
                for at, texts in enumerate(zip(*columns, strict=True)):
                    yield [text for text in (*texts, *contents[starts[at] : starts[at + 1]]) if text is not None]


class _GrowingSegment:
    """A segment while rows are added to it."""

    def __init__(self) -> None:
        self.tokens = array("i", [0])
        self.texts = array("i")
        self._words = {"": 0}
        self._numbers: dict[str, int] = {}  # of texts
        self._first_token, self._first_text = array("i"), array("i")

    def add(self, texts: list[str]) -> None:
        self._first_text.append(len(self.texts))
        for text in texts:
            number = self._numbers.setdefault(text, len(self._numbers))
            self.texts.append(number)
            if number == len(self._first_token):
                self._first_token.append(len(self.tokens))
                words = self._words
                self.tokens.extend([words.setdefault(word, len(words)) for word in _TOKEN.findall(text.casefold())])
                self.tokens.append(0)

    def batch(self) -> pyarrow.RecordBatch:
        words = sorted(self._words)
        rank = np.empty(len(words), np.int32)
        rank[[self._words[word] for word in words]] = np.arange(len(words))
        tokens = rank[np.asarray(self.tokens)]
        values = {
            "words": words,
            "tokens": tokens,
            "places": np.argsort(tokens, kind="stable").astype(np.int32),
            "first_place": np.cumsum(np.bincount(tokens + 1, minlength=len(words) + 1)).astype(np.int32),
            "first_token": np.asarray(self._first_token),
            "texts": np.asarray(self.texts),
            "first_text": np.asarray(self._first_text),
        }
        columns = [
            pyarrow.ListArray.from_arrays([0, len(values[field.name])], pyarrow.array(values[field.name]))
            for field in _SEGMENT
        ]
        return pyarrow.record_batch(columns, schema=_SEGMENT)


class _Segment:
    """Rows that are searched together, read from the file as far as a search needs them."""

    def __init__(self, batch: pyarrow.RecordBatch) -> None:
        words = batch["words"].values
        _, ends, letters = words.buffers()
        self._word_ends = np.frombuffer(ends, np.int32)[words.offset : words.offset + len(words) + 1]
        self._letters = np.frombuffer(letters, np.uint8)
        self._tokens, self._places, self._first_place, self._first_token, self._texts, self._first_text = (
            batch[field.name].values.to_numpy() for field in list(_SEGMENT)[1:]
        )

    def rows_with(self, pieces: list[str]) -> np.ndarray:
        """Whether each row holds the pieces, one after another; of the first and the last it may hold more."""
        wanted = [self._words_with(piece.encode(), at, len(pieces)) for at, piece in enumerate(pieces)]
        counts = [int((self._first_place[words + 1] - self._first_place[words]).sum()) for words in wanted]
        rarest = int(np.argmin(counts))
        places = self._places_of(wanted[rarest]) - rarest
        for at, words in enumerate(wanted):
            if at != rarest:
                fits = np.zeros(len(self._first_place) - 1, bool)
                fits[words] = True
                # Both ends of `tokens` are no word, so what reaches over an end does not fit.
                places = places[fits[self._tokens.take(places + at, mode="clip")]]
        return np.logical_or.reduceat(self._texts_at(places)[self._texts], self._first_text)

    def _texts_at(self, places: np.ndarray) -> np.ndarray:
        """Whether each text holds one of these places; looked up one by one while they are few."""
        if len(places) > len(self._first_token):
            marked = np.zeros(len(self._tokens), bool)
            marked[places] = True
            return np.logical_or.reduceat(marked, self._first_token)
        found = np.zeros(len(self._first_token), bool)
        found[np.searchsorted(self._first_token, places, side="right") - 1] = True
        return found

    def _places_of(self, words: np.ndarray) -> np.ndarray:
        counts = self._first_place[words + 1] - self._first_place[words]
        before = np.cumsum(counts) - counts
        return self._places[np.arange(counts.sum()) + np.repeat(self._first_place[words] - before, counts)]

    def _words_with(self, piece: bytes, at: int, pieces: int) -> np.ndarray:
        """Numbers of the words that a piece may stand for: in the middle the very word, at an end those that end or
        begin with it, and alone those that hold it.
        """
        if at > 0:
            first = self._position(piece)
            return np.arange(first, self._position(piece + (b"\xff" if at == pieces - 1 else b"\0")))
        letters = np.flatnonzero(self._letters[: len(self._letters) - len(piece) + 1] == piece[0])
        for number, letter in enumerate(piece):
            letters = letters[self._letters[letters + number] == letter]
        words = np.searchsorted(self._word_ends, letters, side="right") - 1
        ends = self._word_ends[words + 1]
        within = ends >= letters + len(piece) if pieces == 1 else ends == letters + len(piece)
        words = words[within]
        return words[np.flatnonzero(np.diff(words, prepend=-1))]

    def _position(self, piece: bytes) -> int:
        """How many words come before a piece."""
        return bisect_left(range(len(self._word_ends) - 1), piece, key=self._word)

    def _word(self, number: int) -> bytes:
        return self._letters[self._word_ends[number] : self._word_ends[number + 1]].tobytes()
