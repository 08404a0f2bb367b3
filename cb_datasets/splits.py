"""The split of a row, and the choice of some rows among many: decided by hashes, the same in every run."""

import hashlib
from collections import Counter

from datasets import Dataset, DatasetDict, concatenate_datasets


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
        ValueError: If the source has neither split.
    """
    if not {"train", held_out} & set(traces):
        raise ValueError(f"The source has the splits {', '.join(traces)}: neither train nor {held_out}.")
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
