"""The columns of numbers that merge keeps of each row while it decides; the rows themselves are not kept in memory.

    row     split  row_class         is_ds  order     pair      content    bucket     signature   leaks
    0       train  harmful_flip      yes    0x3f0c..  0x91aa..  0x5c1e..   0x77d0..   312         no
    1       train  adversarial_safe  no     0xb04e..  0x91aa..  0x0a93..   0x1f62..   312         no

Rows of one pair are siblings. Rows with the same `content` are exact duplicates; rows of one `bucket` whose signatures
are similar are near-duplicates.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from builders.trace import to_json

from ..sample import PRIORITY_WEIGHTS
from .near_duplicates import NUM_PERM, normalized, request_texts, signature


SPLITS = ("train", "eval")
CLASSES = tuple(PRIORITY_WEIGHTS)


def hash64(text: str) -> int:
    """The first 64 bits of a text's SHA-256, the same in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


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


def read_index(rows: Iterable[tuple[dict, str, bool]], seed: int, leaks: Callable[[list[str]], bool]) -> MergeIndex:
    """Read every row once and build the index.

    Args:
        rows (`Iterable[tuple[dict, str, bool]]`): Each sample, the split it belongs to, and whether it is in
            quarantine.
        seed (`int`): Seed of the hashes `order` and `pair`.
        leaks (`Callable[[list[str]], bool]`): Whether a row that asks these texts is held out. It is called once per
            distinct request, since siblings share theirs.
    """
    # `array` grows in place at a few bytes a value; a list of ints takes several times as much memory.
    columns: dict[str, array] = {name: array("Q") for name in ("order", "pair", "group", "content", "bucket")}
    columns |= {name: array("i") for name in ("split", "row_class", "signature")}
    columns |= {name: array("b") for name in ("is_ds", "quarantined", "leaks")}
    wordings = _Wordings()
    looked_up: dict[int, bool] = {}
    for row, split, quarantined in rows:
        texts = request_texts(row)
        request, key = texts[0], hash64(texts[0])
        if split == "train" and key not in looked_up:
            looked_up[key] = leaks(texts)
        values = {
            "split": SPLITS.index(split),
            "row_class": CLASSES.index(row["priority_class"]) if row["priority_class"] in CLASSES else -1,
            "is_ds": row["set"] == "circuit_breaker",
            "quarantined": quarantined,
            "leaks": split == "train" and looked_up[key],
            "order": hash64(f"{seed}/{row['id']}"),
            "pair": hash64(f"{seed}/{row['pair']}"),
            "group": hash64(row["group"]),
            "content": hash64(to_json([_without_ids(row["messages"]), row["tools"], row["assistant_raw"]])),
            "bucket": hash64(_bucket(row, split)),
            "signature": wordings.position(_wording(row, request)),
        }
        for name, value in values.items():
            columns[name].append(value)
    dtypes = {"Q": np.uint64, "i": np.int32, "b": np.bool_}
    arrays: dict[str, np.ndarray] = {
        name: np.array(column, dtypes[column.typecode]) for name, column in columns.items()
    }
    return MergeIndex(**arrays, signatures=wordings.signatures())


class _Wordings:
    """MinHash values of each distinct wording, computed once because thousands of rows share a wording."""

    def __init__(self) -> None:
        self._positions: dict[int, int] = {}
        self._values = array("I")

    def position(self, text: str) -> int:
        """The position of a text in `signatures`; a new text is appended."""
        key = hash64(text)
        if key not in self._positions:
            self._positions[key] = len(self._positions)
            self._values.frombytes(signature(text).tobytes())
        return self._positions[key]

    def signatures(self) -> np.ndarray:
        """All signatures, `(wordings, NUM_PERM)`."""
        return np.asarray(self._values, np.uint32).reshape(-1, NUM_PERM)


def _wording(row: dict, request: str) -> str:
    """The text in which near-duplicates may differ a little: the request and, if there is no call, the answer."""
    return request if row["tool_calls_structured"] else f"{request} {normalized(row['assistant_raw'])}"


def _bucket(row: dict, split: str) -> str:
    """The parts in which near-duplicates may not differ: split, class, call, injection, and all non-user messages."""
    spans = [row["messages"][span["message"]]["content"][span["start"] : span["end"]] for span in row["injection"]]
    history = [message for message in _without_ids(row["messages"]) if message["role"] != "user"]
    calls = [[call["name"], call["arguments"]] for call in row["tool_calls_structured"]]
    return to_json([split, row["priority_class"], calls, [normalized(span) for span in spans], history])


def _without_ids(messages: list[dict]) -> list[dict]:
    """Messages without call ids, which differ from run to run and are not rendered by chat templates."""
    return [
        {
            "role": message["role"],
            "content": message["content"],
            "calls": [call["function"] for call in message["tool_calls"]],
        }
        for message in messages
    ]
