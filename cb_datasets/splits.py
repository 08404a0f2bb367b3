"""The split of a row, and the choice of some rows among many: decided by hashes, the same in every run."""

import hashlib
import json
from collections import Counter

from datasets import Dataset, DatasetDict, concatenate_datasets


# Name of the reason for which a trace is in neither split: some of its groups are held out, and some are not.
ON_BOTH_SIDES = "on_both_sides"
# The splits that sources hold out themselves, where they do.
USUAL_HELD_OUT = ("test", "dev")


def is_held_out(group: str, fraction: float) -> bool:
    """Whether a group is in the eval split: decided by a hash of its name, the same in every run and on every machine.

    Args:
        group (`str`): A trace's group.
        fraction (`float`): Expected fraction of groups that are held out; also the threshold of the hash.
    """
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) < fraction * 2**64


def split_by_group(traces: DatasetDict, eval_fraction: float, held_out: str) -> dict[str, Dataset]:
    """Traces by split. A group that has one trace in eval is there with all its traces.

    Args:
        traces ([`~datasets.DatasetDict`]): Traces of a builder. Its `train` split is divided by group.
        eval_fraction (`float`): Fraction of groups that go to eval.
        held_out (`str`): The source's own split (`test`, `dev`) that joins eval, where the source has it.

    Raises:
        ValueError: If the source has no such split, and it is no usual one; or neither that nor `train`.
    """
    splits_named = ", ".join(traces)
    if held_out not in traces and held_out not in USUAL_HELD_OUT:
        raise ValueError(f"--held-out {held_out}: the source has the splits {splits_named}. Name one of them.")
    if not {"train", held_out} & set(traces):
        raise ValueError(f"The source has the splits {splits_named}: neither train nor {held_out}.")
    own = next(iter(traces.values()))
    train, own_held_out = (traces.get(split, own.select([])) for split in ("train", held_out))
    held_groups = set(own_held_out["group"])
    is_eval = [group in held_groups or is_held_out(group, eval_fraction) for group in train["group"]]
    splits = {
        "train": train.select([index for index, held in enumerate(is_eval) if not held]),
        "eval": train.select([index for index, held in enumerate(is_eval) if held]),
    }
    splits["eval"] = concatenate_datasets([splits["eval"], own_held_out])
    return splits


def drop_on_both_sides(traces: DatasetDict, eval_fraction: float) -> tuple[DatasetDict, Counter[str]]:
    """Traces whose groups are all on one side, and the verdicts of the others, counted.

    A pair of a user's case and an attacker's is about both, and neither may be in train and eval: such traces name
    `further_groups` in their metadata. What is left, [`split_by_group`] splits by the group alone.

        group of the user   of the attacker
        train               train               train
        eval                eval                eval
        train               eval                on both sides: dropped

    Args:
        traces ([`~datasets.DatasetDict`]): Traces of a builder. Other splits than `train` are kept as they are.
        eval_fraction (`float`): Fraction of groups that go to eval.
    """
    if "train" not in traces:
        return traces, Counter()
    train = traces["train"]
    held = [{is_held_out(group, eval_fraction) for group in groups} for groups in _groups_of(train)]
    kept = [index for index, sides in enumerate(held) if len(sides) == 1]
    if len(kept) == len(train):
        return traces, Counter()
    dropped = train.select([index for index, sides in enumerate(held) if len(sides) > 1])
    return DatasetDict({**traces, "train": train.select(kept)}), Counter(dropped["verdict"])


def _groups_of(traces: Dataset) -> list[list[str]]:
    """The groups of each trace, its own first."""
    # Only metadata that name further groups are parsed: those of other sources are long, and many.
    return [
        [group, *(json.loads(metadata)["further_groups"] if '"further_groups": ' in metadata else ())]
        for group, metadata in zip(traces["group"], traces["metadata"], strict=True)
    ]


def choose(rows: Dataset, count: int | None, seed: int, key: str = "pair", per_tool: int = 0) -> Dataset:
    """`count` rows chosen by a hash of `pair`, so that every step that chooses takes the same siblings.

    Args:
        rows ([`~datasets.Dataset`]): Rows to choose from.
        count (`int`, *optional*): Number of rows; all if `None`.
        seed (`int`): Another seed chooses others.
        key (`str`, *optional*, defaults to `"pair"`): Column that is hashed.
        per_tool (`int`, *optional*, defaults to `0`): Number of prompts per expected tool, where available, that
            are chosen before any others.
    """
    if count is None or count >= len(rows):
        return rows
    return rows.select(sorted(chosen_order(rows, seed, key, per_tool)[:count]))


def chosen_order(rows: Dataset, seed: int, key: str = "pair", per_tool: int = 0) -> list[int]:
    """Indices of the rows in the order in which [`choose`] takes them."""
    keys = [hashlib.sha256(f"{seed}/{value}".encode()).digest() for value in rows[key]]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    if per_tool:
        tools = [target["expected_tool"] for target in rows["target"]]
        later, seen = {}, Counter[str | None]()
        for row in order:
            later[row] = seen[tools[row]] >= per_tool
            seen[tools[row]] += 1
        order.sort(key=later.__getitem__)
    return order
