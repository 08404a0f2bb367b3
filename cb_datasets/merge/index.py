"""The columns of numbers that merge keeps of each row while it decides; the rows themselves are not kept in memory.

    row     split  row_class         is_ds  order     pair      content    bucket     signature   leaks
    0       train  harmful_flip      yes    0x3f0c..  0x91aa..  0x5c1e..   0x77d0..   312         no
    1       train  adversarial_safe  no     0xb04e..  0x91aa..  0x0a93..   0x1f62..   312         no

Rows of one pair are siblings. Rows with the same `content` are exact duplicates; rows of one `bucket` whose signatures
are similar are near-duplicates.
"""

import hashlib
import marshal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..row_groups import STREAM_ROWS
from ..sample import PRIORITY_WEIGHTS
from .prompt_index import request_texts
from .shingles import NUM_PERM, normalized, signatures


SPLITS = ("train", "eval")
CLASSES = tuple(PRIORITY_WEIGHTS)


# The columns, except `signatures`.
_DTYPES: dict[str, type] = {
    **dict.fromkeys(("order", "pair", "group", "content", "bucket"), np.uint64),
    **dict.fromkeys(("split", "row_class", "signature"), np.int32),
    **dict.fromkeys(("is_ds", "quarantined", "leaks"), np.bool_),
}


def hash64(text: str) -> int:
    """The first 64 bits of a text's SHA-256, the same in every run."""
    return _first_bits(text.encode())


def _first_bits(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def _hash_of(value: list | str | None) -> int:
    """A hash of texts and lists of texts. Version 0 of the serialization writes equal values alike."""
    return _first_bits(marshal.dumps(value, 0))


@lru_cache(maxsize=4096)
def _hash_of_tools(tools: str | None) -> int:
    """Cached, because many rows have the same tools, which are long."""
    return _hash_of(tools)


@dataclass(frozen=True)
class MergeIndex:
    """Columns of equal length with one value per row, in the order in which the rows are read.

    Args:
        split, row_class (`np.ndarray`): Positions in `SPLITS` and `CLASSES`; an unknown class is -1.
        is_ds, quarantined, leaks (`np.ndarray`, `bool`): Whether a row is of Ds; is in quarantine; is in the train
            split with a request that is held out.
        order, pair, group (`np.ndarray`, `uint64`): Hashes of the id, the pair and the group. The first two depend on
            the seed, so sorting by them shuffles.
        content, bucket (`np.ndarray`, `uint64`): Hash of what the model sees and writes, and hash of the same without
            the wording of the request or the answer.
        signature (`np.ndarray`): Position in `signatures` of the MinHash values of that wording.
        signatures (`np.ndarray` of shape `(wordings, NUM_PERM)`, `uint32`): MinHash values of each distinct wording.
    """

    split: np.ndarray
    row_class: np.ndarray
    is_ds: np.ndarray
    quarantined: np.ndarray
    leaks: np.ndarray
    order: np.ndarray
    pair: np.ndarray
    group: np.ndarray
    content: np.ndarray
    bucket: np.ndarray
    signature: np.ndarray
    signatures: np.ndarray

    def __len__(self) -> int:
        return len(self.order)


def read_index(batches: Iterable["Batch"]) -> MergeIndex:
    """The index of all rows, from batches of them in order."""
    # `bytearray` grows in place; a list of arrays takes twice the memory at the end.
    columns = {name: bytearray() for name in _DTYPES}
    positions: dict[int, int] = {}
    wordings = bytearray()
    for batch in batches:
        known = len(positions)
        in_index = np.array([positions.setdefault(key, len(positions)) for key in batch.wordings], np.int32)
        wordings += batch.signatures[in_index >= known].tobytes()
        for name, column in columns.items():
            values = in_index[batch.columns[name]] if name == "signature" else batch.columns[name]
            column += values.astype(_DTYPES[name]).tobytes()
    arrays: dict[str, np.ndarray] = {name: np.frombuffer(column, _DTYPES[name]) for name, column in columns.items()}
    return MergeIndex(**arrays, signatures=np.frombuffer(wordings, np.uint32).reshape(-1, NUM_PERM))


class Batch(NamedTuple):
    """Some rows of the index. Their `signature` is a position in `wordings`, which are hashes, and `signatures`."""

    columns: dict[str, np.ndarray]
    wordings: list[int]
    signatures: np.ndarray


def read_batch(
    rows: Iterable[tuple[dict, str, bool]], seed: int, leaks: Callable[[list[list[str]]], np.ndarray]
) -> Batch:
    """Read some rows.

    Args:
        rows (`Iterable[tuple[dict, str, bool]]`): Each sample, the split it belongs to, and whether it is in
            quarantine.
        seed (`int`): Seed of the hashes `order` and `pair`.
        leaks (`Callable[[list[list[str]]], np.ndarray]`): Whether rows that ask these texts are held out. It is called
            with distinct requests only, since siblings share theirs.
    """
    wordings, requests = DistinctTexts(signatures, np.uint32), DistinctTexts(leaks, np.bool_)
    values, request = [], []
    for row, split, quarantined in rows:
        texts, messages = request_texts(row), _without_ids(row["messages"])
        request.append(requests.position("\n".join(texts), texts))
        wording = _wording(row, texts[0])
        values.append(
            {
                "split": SPLITS.index(split),
                "row_class": CLASSES.index(row["priority_class"]) if row["priority_class"] in CLASSES else -1,
                "is_ds": row["set"] == "circuit_breaker",
                "quarantined": quarantined,
                "order": hash64(f"{seed}/{row['id']}"),
                "pair": hash64(f"{seed}/{row['pair']}"),
                "group": hash64(row["group"]),
                "content": _hash_of([messages, _hash_of_tools(row["tools"]), row["assistant_raw"]]),
                "bucket": _hash_of(_bucket(row, split, messages)),
                "signature": wordings.position(wording, wording),
            }
        )
    columns: dict[str, np.ndarray] = {
        name: np.array([each[name] for each in values], dtype) for name, dtype in _DTYPES.items() if name != "leaks"
    }
    columns["leaks"] = requests.values()[request] & (columns["split"] == SPLITS.index("train"))
    return Batch(columns, wordings.keys, wordings.values().reshape(-1, NUM_PERM))


class DistinctTexts:
    """A value of each distinct text, computed for many at a time and once for each: thousands of rows share a text.

    Args:
        compute (`Callable[[list], np.ndarray]`): The values of some texts.
        dtype (`type`): That of the values.
    """

    def __init__(self, compute: Callable[[list], np.ndarray], dtype: type) -> None:
        self._compute, self._dtype = compute, dtype
        self._positions: dict[int, int] = {}
        self._pending: list = []
        self._values = bytearray()  # grows in place

    def position(self, text: str, item: object) -> int:
        """The position of a text in `values`; of a new one, `item` is what its value is computed of."""
        key = hash64(text)
        if key not in self._positions:
            self._positions[key] = len(self._positions)
            self._pending.append(item)
            if len(self._pending) == STREAM_ROWS:
                self._flush()
        return self._positions[key]

    @property
    def keys(self) -> list[int]:
        """A hash of each text."""
        return list(self._positions)

    def values(self) -> np.ndarray:
        """The values of all texts, one after another."""
        self._flush()
        return np.frombuffer(self._values, self._dtype)

    def _flush(self) -> None:
        if self._pending:
            self._values += np.ascontiguousarray(self._compute(self._pending), self._dtype).tobytes()
            self._pending.clear()


def _wording(row: dict, request: str) -> str:
    """The text in which near-duplicates may differ a little: the request and, if there is no call, the answer."""
    return request if row["tool_calls_structured"] else f"{request} {normalized(row['assistant_raw'])}"


def _bucket(row: dict, split: str, messages: list[tuple]) -> list:
    """The parts in which near-duplicates may not differ: split, class, call, injection, and all non-user messages."""
    spans = [row["messages"][span["message"]]["content"][span["start"] : span["end"]] for span in row["injection"]]
    history = [message for message in messages if message[0] != "user"]
    calls = [(call["name"], call["arguments"]) for call in row["tool_calls_structured"]]
    return [split, row["priority_class"], calls, [normalized(span) for span in spans], history]


def _without_ids(messages: list[dict]) -> list[tuple]:
    """Messages without call ids, which differ from run to run and are not rendered by chat templates."""
    return [
        (
            message["role"],
            message["content"],
            [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]],
        )
        for message in messages
    ]
