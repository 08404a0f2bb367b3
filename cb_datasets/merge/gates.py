"""Gates of the merged dataset (V2): the ratio, what every row must have, and nothing that train and eval share.

All that training must not have seen is the eval split and every evaluation prompt:

    train row   "Find the tide tables of Brest, please."    group "find the tide tables of brest please"
    eval prompt "Please find the tide tables of Brest!"     another group, and still the same request: a leak
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..checks.gates import Gate, adversarial_safe, at_least, at_most, number
from ..checks.row_counts import RowCounts, profile_of
from ..checks.thresholds import MergedThresholds
from ..sample import TEXT_CLASSES
from .near_duplicates import PromptIndex, request_text


# Sources whose traces have many turns: which of them is trained on must be told.
SOURCES_OF_TURNS = ("tau2", "ultrachat")
_TURN = re.compile(r"/turn_(\d+)$")


@dataclass
class HeldOut:
    """What training must not have seen."""

    groups: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)  # of samples and prompts, of pairs, and of records at the source
    requests: set[str] = field(default_factory=set)

    def add(self, rows: Iterable[dict]) -> None:
        """Hold out samples of the eval split, or evaluation prompts."""
        for row in rows:
            self.groups.add(row["group"])
            self.ids.update(_ids_of(row))
            self.requests.add(request_text(row))

    def index(self, max_similarity: float) -> PromptIndex:
        """Finds near-duplicates of what is asked."""
        return PromptIndex(self.requests - {""}, max_similarity)


def _ids_of(row: dict) -> tuple[str, str, str]:
    return row["id"], row["pair"], row["provenance"]["record_id"]


def turn_is_stated(row: dict) -> bool:
    """Whether a row's `pair` says which turn of its trace the completion is: the one that follows its context."""
    stated = _TURN.search(row["pair"])
    return stated is not None and int(stated[1]) == len(row["messages"])


def lacks_tools(row: dict) -> bool:
    """Whether a row of a class that cannot do without tools has none."""
    return row["priority_class"] not in TEXT_CLASSES and row["tools"] in (None, "", "[]")


def merged_gates(
    train: Iterable[dict], evaluation: Iterable[dict], prompts: Iterable[dict], limits: MergedThresholds
) -> list[Gate]:
    """Gates of the merged dataset, in one pass over each of its parts.

    Args:
        train, evaluation (`Iterable[dict]`): Samples of the two splits.
        prompts (`Iterable[dict]`): All evaluation prompts.
        limits ([`MergedThresholds`]): What is demanded.
    """
    held_out, kinds, ids = HeldOut(), RowCounts(), set()
    n = repeated = unstated = toolless = of_turns = 0

    def seen(rows: Iterable[dict]) -> Iterable[dict]:
        nonlocal n, repeated, unstated, toolless, of_turns
        for row in rows:
            n += 1
            repeated += row["id"] in ids
            ids.add(row["id"])
            toolless += lacks_tools(row)
            if row["provenance"]["source_dataset"] in SOURCES_OF_TURNS:
                of_turns += 1
                unstated += not turn_is_stated(row)
            kinds[profile_of(row, subset=row["split"])] += 1
            yield row

    held_out.add(seen(evaluation))
    held_out.add(prompts)
    leaks = _leaks(seen(train), held_out, limits.max_similarity)
    gates = _gates_of_rows(kinds, limits)
    gates += [at_most(f"merged: {name}", count, 0, n) for name, count in leaks.items()]
    gates.append(at_most("merged: repeated ids", repeated, 0, n))
    gates.append(at_most("merged: rows without the tools they need", toolless, 0, n))
    if of_turns:
        gates.append(at_most("merged: TAU2 or UltraChat rows that do not say which turn", unstated, 0, of_turns))
    return gates


def _gates_of_rows(kinds: RowCounts, limits: MergedThresholds) -> list[Gate]:
    train = RowCounts({kind: count for kind, count in kinds.items() if kind.subset == "train"})
    n_ds = number(train, lambda kind: kind.set == "circuit_breaker")
    n_dr = number(train, lambda kind: kind.set == "retain")
    ratio = n_dr / n_ds if n_ds else None
    agentharm = number(kinds, lambda kind: kind.source == "agentharm")
    wrong = number(kinds, lambda kind: not kind.sound)
    return [
        at_least("merged: Dr rows for each Ds row", ratio, limits.dr_ratio, n_ds),
        at_least("merged: adversarial-safe rows", adversarial_safe(train), limits.min_adversarial_safe, n_dr),
        at_most("merged: rows that break a rule", wrong, 0, kinds.total()),
        at_most("merged: AgentHarm rows", agentharm, 0, kinds.total()),
    ]


def _leaks(train: Iterable[dict], held_out: HeldOut, max_similarity: float) -> dict[str, int]:
    """How many groups, rows and requests of the train split are held out."""
    index = held_out.index(max_similarity)
    groups: set[str] = set()
    rows = near = 0
    asked: set[int] = set()  # siblings ask the same: hashes of what has been looked up
    for row in train:
        if row["group"] in held_out.groups:
            groups.add(row["group"])
        rows += not held_out.ids.isdisjoint(_ids_of(row))
        request = request_text(row)
        if hash(request) not in asked:
            asked.add(hash(request))
            near += index.find(request) is not None
    return {
        "groups in train and eval": len(groups),
        "train rows with an id of eval": rows,
        f"requests in train and eval (similarity {max_similarity:g})": near,
    }
