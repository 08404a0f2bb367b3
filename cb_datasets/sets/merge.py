"""Ds and Dr -> one dataset with a train and an eval split, checked, and everything counted that was left out."""

import hashlib
from collections import Counter
from pathlib import Path

from datasets import Dataset

from builders.trace import to_json

from ..files import ROWS_FILE, load_rows, to_dataset
from ..sample import SAMPLE_FEATURES
from .yields import counted


def merge(folders: list[Path], quarantined: set[str], seed: int) -> tuple[dict[str, Dataset], dict]:
    """Merge set folders.

    Rows in quarantine are left out, and so is a row that says word for word what an earlier one says. Order is that
    of a hash of the ids, so that it depends on `seed` and not on the order of the folders.

    Args:
        folders (`list[Path]`): Set folders, Ds and Dr.
        quarantined (`set[str]`): Ids that failed validation.
        seed (`int`): Decides the order.

    Returns:
        `tuple[dict[str, Dataset], dict]`: The rows of `train` and `eval`, and the counts.
    """
    seen: set[bytes] = set()
    drops: Counter[str] = Counter()
    kept: list[dict] = []
    for folder in folders:
        for row in load_rows(folder, SAMPLE_FEATURES):
            content = hashlib.sha256(to_json([row["messages"], row["tools"], row["assistant_raw"]]).encode()).digest()
            if row["id"] in quarantined:
                drops["quarantined"] += 1
            elif content in seen:
                drops["duplicate"] += 1
            else:
                seen.add(content)
                kept.append(row)
    kept.sort(key=lambda row: hashlib.sha256(f"{seed}/{row['id']}".encode()).digest())
    splits = {
        split: to_dataset([row for row in kept if row["split"] == split], SAMPLE_FEATURES)
        for split in ("train", "eval")
    }
    return splits, _stats(splits, drops, folders)


def _stats(splits: dict[str, Dataset], drops: Counter, folders: list[Path]) -> dict:
    return {
        "splits": {split: _counts(rows) for split, rows in splits.items()},
        "drops": dict(sorted(drops.items())),
        "inputs": {
            f"{folder.parent.name}/{folder.name}": hashlib.sha256((folder / ROWS_FILE).read_bytes()).hexdigest()
            for folder in folders
        },
    }


def _counts(rows: Dataset) -> dict:
    sets = Counter(rows["set"])
    n_ds, n_dr = sets["circuit_breaker"], sets["retain"]
    return {
        "rows": len(rows),
        "circuit_breaker": n_ds,
        "retain": n_dr,
        "dr_ratio": round(n_dr / n_ds, 3) if n_ds else None,
        "classes": counted(rows["priority_class"]),
        "sources": counted(provenance["source_dataset"] for provenance in rows["provenance"]),
        "completions": counted(provenance["completion_source"] for provenance in rows["provenance"]),
        "categories": counted(category or "none" for category in rows["category"]),
        "groups": len(set(rows["group"])),
        "pairs": len(set(rows["pair"])),
    }
