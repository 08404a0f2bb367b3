"""Checkpoints on disk: each is whole, with a list of its files, or is not resumed from.

adapter/checkpoint-100/                              what `Trainer` saves: adapter, optimizer, scheduler, random states
adapter/checkpoint-100/checkpoint.json               its files with their sizes, and when it was finished; written last
adapter/.checkpoint-4711@node1.tmp/checkpoint-200/   being written; renamed at the end, or removed by the next training
"""

import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cb_datasets.files import read_json, scratch_folder, sync, write_json


FILE_LIST = "checkpoint.json"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")


def put_in_place(unfinished: Path, checkpoint: Path) -> None:
    """
    List the files of a checkpoint that all processes have finished writing, and rename it.

    Args:
        unfinished (`Path`):
            Folder of the checkpoint, on the same disk.
        checkpoint (`Path`):
            Its name from now on. A checkpoint of that name is replaced.
    """
    sizes = {str(path.relative_to(unfinished)): path.stat().st_size for path in sync(unfinished)}
    finished = datetime.now(UTC).isoformat(timespec="microseconds")
    write_json(unfinished / FILE_LIST, {"finished": finished, "files": sizes})
    if checkpoint.exists():
        remove(checkpoint)
    unfinished.replace(checkpoint)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, which is gone at once: a kill leaves a temporary folder, not a part of a checkpoint."""
    with scratch_folder(checkpoint.parent, "removed") as scratch:
        checkpoint.replace(scratch / checkpoint.name)


def fault(checkpoint: Path) -> str | None:
    """Why a training cannot resume from a checkpoint; `None` if it is whole."""
    if not (checkpoint / FILE_LIST).is_file():
        return f"it has no {FILE_LIST}, so it was not finished"
    try:
        files = read_json(checkpoint / FILE_LIST)["files"]
    except (ValueError, KeyError):
        return f"its {FILE_LIST} is damaged"
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
    return None if SCHEDULER_NAME in files else "it has weights only (`save_only_model`)"


def sort_checkpoints(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """
    The checkpoints in a folder: the whole ones from the oldest to the newest, and the others with their faults.

    The newest is the one that was finished last: an earlier training in the same folder may have got further.
    """
    checkpoints = sorted(path for path in folder.glob("*") if _NAME.fullmatch(path.name) and path.is_dir())
    faults = {path: reason for path in checkpoints if (reason := fault(path)) is not None}
    whole = [path for path in checkpoints if path not in faults]
    return sorted(whole, key=lambda path: read_json(path / FILE_LIST)["finished"]), faults


def rotate(folder: Path, limit: int | None, keep: Collection[Path]) -> None:
    """
    Remove the oldest whole checkpoints in a folder. Others do not count, and stay.

    Args:
        folder (`Path`):
            Folder of the checkpoints.
        limit (`int`, *optional*):
            Number of checkpoints that stay (`save_total_limit`); all, if `None` or 0.
        keep (`Collection[Path]`):
            Checkpoints that stay in any case: the last and the best one.
    """
    whole, _ = sort_checkpoints(folder)
    surplus = len(whole) - max(limit, len(keep)) if limit and limit > 0 else 0
    for checkpoint in [path for path in whole if path not in keep][: max(surplus, 0)]:
        remove(checkpoint)
