"""What merge remembers of each row while it decides: numbers, never the row.

    row     split  kind              is_ds  order     pair      content    bucket     signature   leaks
    0       train  harmful_flip      yes    0x3f0c..  0x91aa..  0x5c1e..   0x77d0..   312         no
    1       train  adversarial_safe  no     0xb04e..  0x91aa..  0x0a93..   0x1f62..   312         no

Rows of one pair are siblings. Rows with one `content` are the same word for word; rows of one `bucket` whose
signatures are alike are nearly the same.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from builders.trace import to_json

from ..sample import PRIORITY_WEIGHTS
from .near_duplicates import NUM_PERM, normalized, request_text, signature


SPLITS = ("train", "eval")
CLASSES = tuple(PRIORITY_WEIGHTS)


def number_of(text: str) -> int:
    """64 bits of a text's hash, the same in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


@dataclass(frozen=True)
class MergeIndex:
    """One value of each column for each row, in the order in which the rows are read.

    Args:
        split, kind (`np.ndarray`): Positions in `SPLITS` and `CLASSES`; a class of no name is -1.
        is_ds, is_out, leaks (`np.ndarray`, `bool`): Whether a row is of Ds; is in quarantine; asks, on the train side,
            what is held out.
        order, pair, group (`np.ndarray`, `uint64`): Hashes of the id, the pair and the group; the first two depend on
            the seed, so that sorting by them is drawing at random.
        content, bucket (`np.ndarray`, `uint64`): Hashes of what the model sees and writes, and of all but how the
            request or the answer is worded.
        signature (`np.ndarray`): Row of `signatures` with the MinHash values of that wording.
        signatures (`np.ndarray` of shape `(wordings, NUM_PERM)`, `uint32`): One row for each wording.
    """

    split: np.ndarray
    kind: np.ndarray
    is_ds: np.ndarray
    is_out: np.ndarray
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


def read_index(rows: Iterable[tuple[dict, str, bool]], seed: int, leaks: Callable[[str], bool]) -> MergeIndex:
    """Read every row once.

    Args:
        rows (`Iterable[tuple[dict, str, bool]]`): Each sample, the split it belongs to, and whether it is in
            quarantine.
        seed (`int`): Decides `order` and `pair`.
        leaks (`Callable[[str], bool]`): Whether a request is held out. Siblings ask the same, so each is asked about
            once.
    """
    columns: dict[str, array] = {name: array("Q") for name in ("order", "pair", "group", "content", "bucket")}
    columns |= {name: array("i") for name in ("split", "kind", "signature")}
    columns |= {name: array("b") for name in ("is_ds", "is_out", "leaks")}
    wordings = _Wordings()
    looked_up: dict[int, bool] = {}
    for row, split, is_out in rows:
        request = request_text(row)
        key = number_of(request)
        if split == "train" and key not in looked_up:
            looked_up[key] = leaks(request)
        told = {
            "split": SPLITS.index(split),
            "kind": CLASSES.index(row["priority_class"]) if row["priority_class"] in CLASSES else -1,
            "is_ds": row["set"] == "circuit_breaker",
            "is_out": is_out,
            "leaks": split == "train" and looked_up[key],
            "order": number_of(f"{seed}/{row['id']}"),
            "pair": number_of(f"{seed}/{row['pair']}"),
            "group": number_of(row["group"]),
            "content": number_of(to_json([_without_ids(row["messages"]), row["tools"], row["assistant_raw"]])),
            "bucket": number_of(_bucket(row, split)),
            "signature": wordings.position(_wording(row, request)),
        }
        for name, value in told.items():
            columns[name].append(value)
    kinds = {"Q": np.uint64, "i": np.int32, "b": np.bool_}
    arrays: dict[str, np.ndarray] = {
        name: np.array(column, kinds[column.typecode]) for name, column in columns.items()
    }
    return MergeIndex(**arrays, signatures=wordings.signatures())


class _Wordings:
    """MinHash values of each wording, worked out once: rows by the thousand say the same."""

    def __init__(self) -> None:
        self._positions: dict[int, int] = {}
        self._values = array("I")

    def position(self, text: str) -> int:
        key = number_of(text)
        if key not in self._positions:
            self._positions[key] = len(self._positions)
            self._values.frombytes(signature(text).tobytes())
        return self._positions[key]

    def signatures(self) -> np.ndarray:
        return np.asarray(self._values, np.uint32).reshape(-1, NUM_PERM)


def _wording(row: dict, request: str) -> str:
    """What may differ a little between near-duplicates: the request and, where there is no call, the answer."""
    return request if row["tool_calls_structured"] else f"{request} {normalized(row['assistant_raw'])}"


def _bucket(row: dict, split: str) -> str:
    """What may not: side and class, call, injection, and everything in the context that the user did not say."""
    spans = [row["messages"][span["message"]]["content"][span["start"] : span["end"]] for span in row["injection"]]
    history = [message for message in _without_ids(row["messages"]) if message["role"] != "user"]
    calls = [[call["name"], call["arguments"]] for call in row["tool_calls_structured"]]
    return to_json([split, row["priority_class"], calls, [normalized(span) for span in spans], history])


def _without_ids(messages: list[dict]) -> list[dict]:
    """Messages without what no chat template shows: ids of calls differ from run to run."""
    return [
        {
            "role": message["role"],
            "content": message["content"],
            "calls": [call["function"] for call in message["tool_calls"]],
        }
        for message in messages
    ]
