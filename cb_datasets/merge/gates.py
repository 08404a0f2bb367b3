"""Gates of the merged dataset (V2): the Dr ratio, required properties of every row, and train-eval contamination.

Training rows may share nothing with the eval split or with any evaluation prompt:

    train row   "Find the tide tables of Brest, please."    group "find the tide tables of brest please"
    eval prompt "Please find the tide tables of Brest!"     another group, but the same request: a leak
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..checks.gates import Gate, adversarial_safe, at_least, at_most, count_where
from ..checks.row_counts import RowCounts, RowProfile, profile_of
from ..checks.thresholds import MergedThresholds
from ..processes import map_rows
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
    train: Iterable[dict],
    evaluation: Iterable[dict],
    prompts: Iterable[dict],
    limits: MergedThresholds,
    processes: int = 1,
) -> list[Gate]:
    """Gates of the merged dataset, in one pass over each split and over the prompts.

    Args:
        train, evaluation (`Iterable[dict]`): Samples of the two splits.
        prompts (`Iterable[dict]`): All evaluation prompts.
        limits ([`MergedThresholds`]): The thresholds.
        processes (`int`, *optional*, defaults to `1`): Number of processes.
    """
    held_out, counts, ids = HeldOut(), RowCounts(), set()
    n = repeated = unstated = without_tools = multi_turn = 0

    def profile(row: dict) -> RowProfile:
        return profile_of(row, subset=row["split"])

    def counted(rows: Iterable[dict]) -> Iterable[dict]:
        nonlocal n, repeated, unstated, without_tools, multi_turn
        for row, row_profile in map_rows(profile, rows, processes):
            n += 1
            repeated += row["id"] in ids
            ids.add(row["id"])
            without_tools += lacks_tools(row)
            if row["provenance"]["source_dataset"] in MULTI_TURN_SOURCES:
                multi_turn += 1
                unstated += not turn_is_stated(row)
            counts[row_profile] += 1
            yield row

    # The train split is compared with everything held out, so the eval split and the prompts are read first.
    held_out.add_rows(counted(evaluation))
    held_out.add_rows(prompts)
    leaks = _leaks(counted(train), held_out, limits.max_similarity)
    gates = _gates_of_rows(counts, limits)
    gates += [at_most(f"merged: {name}", count, 0, n) for name, count in leaks.items()]
    gates.append(at_most("merged: repeated ids", repeated, 0, n))
    gates.append(at_most("merged: rows without the tools they need", without_tools, 0, n))
    if multi_turn:
        gates.append(at_most("merged: TAU2 or UltraChat rows that do not say which turn", unstated, 0, multi_turn))
    return gates


def _gates_of_rows(counts: RowCounts, limits: MergedThresholds) -> list[Gate]:
    train = RowCounts({profile: count for profile, count in counts.items() if profile.subset == "train"})
    n_ds = count_where(train, lambda profile: profile.set == "circuit_breaker")
    n_dr = count_where(train, lambda profile: profile.set == "retain")
    ratio = n_dr / n_ds if n_ds else None
    agentharm = count_where(counts, lambda profile: profile.source == "agentharm")
    invalid = count_where(counts, lambda profile: not profile.is_valid)
    return [
        at_least("merged: train rows", train.total(), limits.min_train, train.total()),
        at_least("merged: Dr rows for each Ds row", ratio, limits.min_dr_ratio, n_ds),
        at_least("merged: adversarial-safe rows", adversarial_safe(train), limits.min_adversarial_safe, n_dr),
        at_most("merged: rows that break a rule", invalid, 0, counts.total()),
        at_most("merged: AgentHarm rows", agentharm, 0, counts.total()),
    ]


def _leaks(train: Iterable[dict], held_out: HeldOut, max_similarity: float) -> dict[str, int]:
    """Numbers of groups, rows and requests of the train split that are held out."""
    index = held_out.prompt_index(max_similarity)
    groups: set[str] = set()
    same_id = 0
    requests = DistinctTexts(index.are_known, np.bool_)
    for row in train:
        if row["group"] in held_out.groups:
            groups.add(row["group"])
        same_id += not held_out.ids.isdisjoint(_ids_of(row))
        texts = request_texts(row)
        requests.position(texts[0], texts)
    return {
        "groups in train and eval": len(groups),
        "train rows with an id of eval": same_id,
        f"requests in train and eval (similarity {max_similarity:g})": int(requests.values().sum()),
    }
