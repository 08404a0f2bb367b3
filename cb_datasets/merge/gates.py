"""Gates of the merged dataset (V2): the Dr ratio, required properties of every row, and train-eval contamination.

Training rows may share nothing with the eval split or with any evaluation prompt:

    train row   "Find the tide tables of Brest, please."    group "find the tide tables of brest please"
    eval prompt "Please find the tide tables of Brest!"     another group, but the same request: a leak
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..checks.gates import Gate, adversarial_safe, at_least, at_most, count_where
from ..checks.row_counts import RowCounts, profile_of
from ..checks.thresholds import MergedThresholds
from ..row_groups import RowGroup, map_groups, row_batches, row_groups_of
from ..sample import TEXT_CLASSES
from .index import DistinctTexts
from .prompt_index import PromptIndex, request_texts


# Sources with multi-turn traces: their rows must state which turn is the completion.
MULTI_TURN_SOURCES = ("tau2", "ultrachat")
_TURN = re.compile(r"/turn_(\d+)$")


@dataclass
class HeldOut:
    """Groups, ids and requests of evaluation, which training must not contain."""

    groups: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)  # of samples and prompts, of pairs, and of records at the source
    requests: set[str] = field(default_factory=set)

    def add_rows(self, rows: Iterable[dict]) -> None:
        """Hold out samples of the eval split, or evaluation prompts."""
        for row in rows:
            self.groups.add(row["group"])
            self.ids.update(_ids_of(row))
            self.requests.update(request_texts(row))

    def add(self, other: "HeldOut") -> None:
        self.groups |= other.groups
        self.ids |= other.ids
        self.requests |= other.requests

    def prompt_index(self, max_similarity: float) -> PromptIndex:
        """Index of the held-out requests that finds near-duplicates of them."""
        return PromptIndex(self.requests - {""}, max_similarity)


def _ids_of(row: dict) -> tuple[str, str, str]:
    return row["id"], row["pair"], row["provenance"]["record_id"]


def turn_is_stated(row: dict) -> bool:
    """Whether the `pair` of a row ends with the turn of its completion: the one after the row's context."""
    stated = _TURN.search(row["pair"])
    return stated is not None and int(stated[1]) == len(row["messages"])


def lacks_tools(row: dict) -> bool:
    """Whether a row has no tools although its class needs them."""
    return row["priority_class"] not in TEXT_CLASSES and row["tools"] in (None, "", "[]")


def merged_gates(
    train: Path, evaluation: Path, prompts: Iterable[dict], limits: MergedThresholds, num_proc: int | None = 1
) -> list[Gate]:
    """Gates of the merged dataset, in one pass over each split and over the prompts.

    Args:
        train, evaluation (`Path`): Parquet files with the samples of the two splits.
        prompts (`Iterable[dict]`): All evaluation prompts.
        limits ([`MergedThresholds`]): The thresholds.
        num_proc (`int`, *optional*, defaults to `1`): Number of processes.
    """
    held_out, facts, leaks = HeldOut(), _Facts(), _Leaks()

    def read_evaluation(group: RowGroup) -> tuple[_Facts, HeldOut]:
        facts, held_out = _Facts(), HeldOut()
        for rows in row_batches(group):
            facts.add(_facts_of(rows))
            held_out.add_rows(rows)
        return facts, held_out

    # The train split is compared with everything held out, so the eval split and the prompts are read first.
    for _, (read, found) in map_groups(read_evaluation, row_groups_of(evaluation), num_proc, "Checking eval"):
        facts.add(read)
        held_out.add(found)
    held_out.add_rows(prompts)
    requests = DistinctTexts(held_out.prompt_index(limits.max_similarity).are_known, np.bool_)

    def read_train(group: RowGroup) -> tuple[_Facts, _Leaks, dict[str, list[str]]]:
        facts, leaks = _Facts(), _Leaks()
        asked: dict[str, list[str]] = {}
        for rows in row_batches(group):
            facts.add(_facts_of(rows))
            leaks.add(_leaks_of(rows, held_out))
            asked.update(("\n".join(texts), texts) for texts in map(request_texts, rows))
        return facts, leaks, asked

    for _, (read, leaked, asked) in map_groups(read_train, row_groups_of(train), num_proc, "Checking train"):
        facts.add(read)
        leaks.add(leaked)
        # Siblings share their request, and are looked up once: so here, not in the processes.
        for text, texts in asked.items():
            requests.position(text, texts)
    num_requests = int(requests.values().sum())
    return [*_gates_of_rows(facts, limits), *_gates_of_leaks(leaks, num_requests, len(facts.ids), limits)]


@dataclass
class _Facts:
    """What the gates count in some rows."""

    profiles: RowCounts = field(default_factory=RowCounts)
    ids: list[str] = field(default_factory=list)
    without_tools: int = 0
    turns: Counter[bool] = field(default_factory=Counter)  # of rows of multi-turn sources: whether they state theirs

    def add(self, other: "_Facts") -> None:
        self.profiles += other.profiles
        self.ids += other.ids
        self.without_tools += other.without_tools
        self.turns += other.turns


def _facts_of(rows: list[dict]) -> _Facts:
    multi_turn = (row for row in rows if row["provenance"]["source_dataset"] in MULTI_TURN_SOURCES)
    return _Facts(
        RowCounts(profile_of(row, subset=row["split"]) for row in rows),
        [row["id"] for row in rows],
        sum(map(lacks_tools, rows)),
        Counter(map(turn_is_stated, multi_turn)),
    )


@dataclass
class _Leaks:
    """What of evaluation stands in some rows of the train split."""

    groups: set[str] = field(default_factory=set)
    rows: int = 0  # with an id of evaluation

    def add(self, other: "_Leaks") -> None:
        self.groups |= other.groups
        self.rows += other.rows


def _leaks_of(rows: list[dict], held_out: HeldOut) -> _Leaks:
    groups = {row["group"] for row in rows} & held_out.groups
    return _Leaks(groups, sum(not held_out.ids.isdisjoint(_ids_of(row)) for row in rows))


def _gates_of_rows(facts: _Facts, limits: MergedThresholds) -> list[Gate]:
    counts, n, stated = facts.profiles, len(facts.ids), facts.turns
    train = RowCounts({profile: count for profile, count in counts.items() if profile.subset == "train"})
    n_ds = count_where(train, lambda profile: profile.set == "circuit_breaker")
    n_dr = count_where(train, lambda profile: profile.set == "retain")
    ratio = n_dr / n_ds if n_ds else None
    agentharm = count_where(counts, lambda profile: profile.source == "agentharm")
    invalid = count_where(counts, lambda profile: not profile.is_valid)
    gates = [
        at_least("merged: train rows", train.total(), limits.min_train, train.total()),
        at_least("merged: Dr rows for each Ds row", ratio, limits.min_dr_ratio, n_ds),
        at_least("merged: adversarial-safe rows", adversarial_safe(train), limits.min_adversarial_safe, n_dr),
        at_most("merged: rows that break a rule", invalid, 0, n),
        at_most("merged: AgentHarm rows", agentharm, 0, n),
        at_most("merged: repeated ids", n - len(set(facts.ids)), 0, n),
        at_most("merged: rows without the tools they need", facts.without_tools, 0, n),
    ]
    if stated:
        name = "merged: TAU2 or UltraChat rows that do not say which turn"
        gates.append(at_most(name, stated[False], 0, stated.total()))
    return gates


def _gates_of_leaks(leaks: _Leaks, num_requests: int, n: int, limits: MergedThresholds) -> list[Gate]:
    name = f"merged: requests in train and eval (similarity {limits.max_similarity:g})"
    return [
        at_most("merged: groups in train and eval", len(leaks.groups), 0, n),
        at_most("merged: train rows with an id of eval", leaks.rows, 0, n),
        at_most(name, num_requests, 0, n),
    ]
