"""Full-text substring search without reading rows: a positional index of the words of all texts, cached on disk.

    a text        Use search_web, please.    ->   use | " " | search_web | ", " | please | .
    a search      e search_we                ->   a word that ends with "e" | " " | one that begins with "search_we"

Texts and queries are split into words and the characters between them. Only the first and the last piece of a query
can be parts of words, so a search finds the matching words in the vocabulary, and then checks the positions of the
rarest piece. Case is ignored; nothing else is.

The index consists of self-contained segments of some tens of thousands of rows, so that building it takes little
memory. A text that many rows share, such as a system prompt, is stored once per segment.
"""

import json
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

from ..row_groups import STREAM_ROWS
from .cached_table import CachedTable


# Tokens after which a new segment is started.
SEGMENT_TOKENS = 4_000_000
THREADS = 4
_TOKEN = re.compile(r"\w+|\W+")

_SEGMENT = pyarrow.schema(
    {
        "words": pyarrow.list_(pyarrow.string()),  # the vocabulary, sorted; the first word, "", separates texts
        "tokens": pyarrow.list_(pyarrow.int32()),  # all texts, concatenated, as positions in `words`
        "places": pyarrow.list_(pyarrow.int32()),  # positions in `tokens` of each word, concatenated
        "first_place": pyarrow.list_(pyarrow.int32()),  # start of each word in `places`
        "first_token": pyarrow.list_(pyarrow.int32()),  # start of each text in `tokens`
        "texts": pyarrow.list_(pyarrow.int32()),  # numbers of the texts of each row, concatenated
        "first_text": pyarrow.list_(pyarrow.int32()),  # start of each row in `texts`
    }
)


class Search(CachedTable):
    """Search index over messages, completions and ids."""

    NAME = "words"
    DESCRIPTION = "Reading rows for the search"
    SCHEMA = _SEGMENT

    def rows_with(self, text: str, seconds: float = 0.2) -> np.ndarray:
        """Whether each row contains a text in a message, in its completion or in its id, ignoring case.

        Raises:
            NotReady: If the index is not built within a number of seconds.
        """
        segments = map(_Segment, self.batches(seconds))
        pieces = _TOKEN.findall(text.casefold())
        with ThreadPoolExecutor(THREADS) as pool:
            return np.concatenate([np.zeros(0, bool), *pool.map(lambda segment: segment.rows_with(pieces), segments)])

    def _compute_batches(self) -> Iterator[pyarrow.RecordBatch]:
        segment = _SegmentBuilder()
        for texts in _texts_of_rows(self._files):
            segment.add_texts(texts)
            self._bar.update()
            if len(segment.tokens) > SEGMENT_TOKENS:
                yield segment.to_record_batch()
                segment = _SegmentBuilder()
        if segment.texts:
            yield segment.to_record_batch()


def _texts_of_rows(files: list[Path]) -> Iterator[list[str]]:
    """The id, the completion and the message contents of each row."""
    for file in files:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            names = [name for name in ("id", "assistant_raw", "messages") if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(STREAM_ROWS, columns=names):
                columns = [batch[name].to_pylist() for name in names if name != "messages"]
                # Flat contents and row offsets are much faster than converting the nested messages to Python.
                messages = batch["messages"]
                contents, starts = _contents(messages.values), messages.offsets.to_pylist()
                for at, texts in enumerate(zip(*columns, strict=True)):
                    yield [text for text in (*texts, *contents[starts[at] : starts[at + 1]]) if text is not None]


def _contents(messages: pyarrow.Array) -> list[str | None]:
    if isinstance(messages.type, pyarrow.JsonType):  # of a release
        return [json.loads(message).get("content") for message in messages.to_pylist()]
    return pc.struct_field(messages, "content").to_pylist()


class _SegmentBuilder:
    """Collects the texts of rows and builds their segment."""

    def __init__(self) -> None:
        self.tokens = array("i", [0])
        self.texts = array("i")
        self._words = {"": 0}
        self._text_numbers: dict[str, int] = {}
        self._first_token, self._first_text = array("i"), array("i")

    def add_texts(self, texts: list[str]) -> None:
        """Add the texts of one row; a text that the segment has already is not tokenized again."""
        self._first_text.append(len(self.texts))
        for text in texts:
            number = self._text_numbers.setdefault(text, len(self._text_numbers))
            self.texts.append(number)
            if number == len(self._first_token):
                self._first_token.append(len(self.tokens))
                words = self._words
                self.tokens.extend([words.setdefault(word, len(words)) for word in _TOKEN.findall(text.casefold())])
                self.tokens.append(0)

    def to_record_batch(self) -> pyarrow.RecordBatch:
        """The segment as one row of lists, see `_SEGMENT`."""
        # Words are numbered in order of occurrence while texts are added, and in sorted order in the segment.
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
    """One segment of the index; only the memory-mapped parts that a search touches are read."""

    def __init__(self, batch: pyarrow.RecordBatch) -> None:
        # The buffers of the string column, to search all words at once: their bytes, and the end of each.
        words = batch["words"].values
        _, ends, letters = words.buffers()
        self._word_ends = np.frombuffer(ends, np.int32)[words.offset : words.offset + len(words) + 1]
        self._letters = np.frombuffer(letters, np.uint8)
        self._tokens, self._places, self._first_place, self._first_token, self._texts, self._first_text = (
            batch[field.name].values.to_numpy() for field in list(_SEGMENT)[1:]
        )

    def rows_with(self, pieces: list[str]) -> np.ndarray:
        """Whether each row contains the pieces in sequence; the first may end and the last begin a longer word."""
        matches = [self._matching_words(piece.encode(), at, len(pieces)) for at, piece in enumerate(pieces)]
        counts = [int((self._first_place[words + 1] - self._first_place[words]).sum()) for words in matches]
        # Start from the rarest piece, whose places are the fewest candidates, and check the other pieces around it.
        rarest = int(np.argmin(counts))
        places = self._places_of(matches[rarest]) - rarest
        for at, words in enumerate(matches):
            if at != rarest:
                fits = np.zeros(len(self._first_place) - 1, bool)
                fits[words] = True
                # `tokens` begins and ends with a separator, so a clipped position, beyond either end, never matches.
                places = places[fits[self._tokens.take(places + at, mode="clip")]]
        return np.logical_or.reduceat(self._texts_at(places)[self._texts], self._first_text)

    def _texts_at(self, places: np.ndarray) -> np.ndarray:
        """Whether each text contains one of these places; few places are looked up one by one."""
        if len(places) > len(self._first_token):
            marked = np.zeros(len(self._tokens), bool)
            marked[places] = True
            return np.logical_or.reduceat(marked, self._first_token)
        contains = np.zeros(len(self._first_token), bool)
        contains[np.searchsorted(self._first_token, places, side="right") - 1] = True
        return contains

    def _places_of(self, words: np.ndarray) -> np.ndarray:
        """All positions of these words in `tokens`."""
        counts = self._first_place[words + 1] - self._first_place[words]
        before = np.cumsum(counts) - counts
        return self._places[np.arange(counts.sum()) + np.repeat(self._first_place[words] - before, counts)]

    def _matching_words(self, piece: bytes, at: int, pieces: int) -> np.ndarray:
        """Numbers of the words that match a piece: the equal word for a middle piece, words that end with the first
        piece, words that begin with the last, and words that contain a single piece.
        """
        # Words that begin with a piece are adjacent in the sorted vocabulary. No word contains the byte 0xff, which
        # UTF-8 does not use.
        if at > 0:
            first = self._position(piece)
            return np.arange(first, self._position(piece + (b"\xff" if at == pieces - 1 else b"\0")))
        # Substring search over the concatenated bytes of all words, one byte of the piece after another.
        letters = np.flatnonzero(self._letters[: len(self._letters) - len(piece) + 1] == piece[0])
        for number, letter in enumerate(piece):
            letters = letters[self._letters[letters + number] == letter]
        words = np.searchsorted(self._word_ends, letters, side="right") - 1
        ends = self._word_ends[words + 1]
        within = ends >= letters + len(piece) if pieces == 1 else ends == letters + len(piece)
        words = words[within]
        return words[np.flatnonzero(np.diff(words, prepend=-1))]

    def _position(self, piece: bytes) -> int:
        """Number of words that sort before a piece."""
        return bisect_left(range(len(self._word_ends) - 1), piece, key=self._word)

    def _word(self, number: int) -> bytes:
        return self._letters[self._word_ends[number] : self._word_ends[number + 1]].tobytes()
