"""Prompts in, completions out: `Dataset.map` over shards that survive whatever kills the process.

A finished shard is one Parquet file in a folder that is named by the hash of everything the completions depend on
(`shards.py`). A rerun does the missing shards only; a changed model, prompt or setting has another folder and never
meets old shards. The shard is the unit of work: a killed one is made again whole, because what a seed draws may depend
on which prompts are drawn together.
"""

import dataclasses
import errno
import hashlib
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
from datasets import Dataset

from builders.trace import to_json

from ..chat import DATE_STRING, MAX_LENGTH, template_hash
from ..formats import format_of
from .backend import Backend, Sampling
from .progress import Progress
from .shard import COMPLETION_FEATURES, PROMPT_COLUMNS, complete_shard
from .shards import Shards


# Prompts in a shard where the backend does not say: what a CPU does in minutes.
SHARD_SIZE = 100

_HERE = Path(__file__).parent

# Hash of the code that makes completions, as it was loaded: `Dataset.map` does not see edits of imported functions.
_CODE_HASH = hashlib.sha256(
    b"".join(path.read_bytes() for path in [*sorted(_HERE.glob("*.py")), _HERE.parent / "chat.py"])
).hexdigest()[:16]

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEMORY_IS_FULL = ("OutOfMemoryError", "out of memory", "can't allocate memory")

_logger = logging.getLogger(__name__)


def complete(
    prompts: Dataset,
    backend: Backend,
    sampling: Sampling,
    work_dir: Path,
    *,
    shard_size: int | None = None,
    max_length: int = MAX_LENGTH,
    description: str = "Completing",
    accepts: Callable[[dict], bool] | None = None,
    rank: int | None = None,
    world: int = 1,
) -> Dataset:
    """Completions of `prompts`, `sampling.num_samples` rows each, in order.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES` (further columns are ignored), with unique ids. A
            prompt with `target.prefill` is gone on from there, and its completion's text begins with the prefill.
        backend ([`Backend`]): The model.
        sampling ([`Sampling`]): How to draw.
        work_dir (`Path`): Where shards are kept.
        shard_size (`int`, *optional*): Prompts in a shard: the most work that a crash can lose, and the most that a
            backend can batch. Defaults to the backend's `shard_size`, or to 100 where it has none.
        max_length (`int`, *optional*, defaults to [`MAX_LENGTH`]): Prompt and prefill must leave room for
            `max_new_tokens` below it, and below what the model takes; longer ones are not asked (`prompt_too_long`).
        description (`str`, *optional*, defaults to `"Completing"`): Label of the progress bar.
        accepts (`Callable[[dict], bool]`, *optional*): Whether a completion is one that is looked for; counted in the
            progress bar.
        rank, world (`int`, *optional*): Do only shards `rank, rank + world, ...`, as one of `world` tasks.

    Returns:
        [`~datasets.Dataset`]: Rows of `COMPLETION_FEATURES`; with a rank, those of its shards.

    Raises:
        ValueError: If there are no prompts, or two with one id; if a shard could not be made (the shards before it
            are kept).
    """
    if len(prompts) == 0:
        raise ValueError("There are no prompts to complete.")
    if not 0 <= (rank or 0) < world or (rank is None and world != 1):
        raise ValueError(f"Rank and world go together, with 0 <= rank < world; got {rank} and {world}.")
    prompts = prompts.select_columns(PROMPT_COLUMNS)
    ids = list(prompts["id"])
    if len(set(ids)) != len(ids):
        raise ValueError("Prompt ids are not unique.")
    size = getattr(backend, "shard_size", SHARD_SIZE) if shard_size is None else shard_size
    max_length = min(max_length, backend.max_length)
    settings = _settings(prompts, backend, sampling, size, max_length)
    shards = Shards(work_dir, settings, ids, size, sampling.num_samples)
    mine = range(rank or 0, len(shards), world)
    missing = [index for index in mine if not shards.has(index)]
    total = sum(len(shards.parts[index]) for index in mine)
    to_do = sum(len(shards.parts[index]) for index in missing)
    with Progress(description, total, total - to_do, accepts) as progress:
        for index in missing:
            part = shards.parts[index]
            with _naming(shards, index):
                seed = sampling.seed + part.start * sampling.num_samples
                made = complete_shard(prompts.select(part), backend, sampling, seed, max_length)
                shards.save(index, made)
            progress.add(len(part), made)
    if rank is not None:
        left = len(shards) - shards.finished()
        _logger.warning("%s: %d of %d shards are still missing.", description, left, len(shards))
    # A task of more tasks than there are shards has none.
    none = COMPLETION_FEATURES.arrow_schema.empty_table()
    return Dataset(pyarrow.concat_tables([none, *(shards.read(index) for index in mine)], promote_options="none"))


def _settings(prompts: Dataset, backend: Backend, sampling: Sampling, shard_size: int, max_length: int) -> dict:
    """Everything that decides the completions."""
    rows = hashlib.sha256()
    for batch in prompts.with_format("arrow").iter(batch_size=100):
        for row in batch.to_pylist():
            rows.update(to_json([row["id"], row["messages"], row["tools"], row["target"]["prefill"]]).encode())
    return {
        "backend": type(backend).__name__,
        "model": backend.model,
        "revision": backend.revision,
        "sampling": dataclasses.asdict(sampling),
        "prompts": rows.hexdigest(),
        "template_hash": template_hash(backend.tokenizer),
        "end_tokens": list(format_of(backend.tokenizer.chat_template).end_tokens),
        "date_string": DATE_STRING,
        "shard_size": shard_size,
        "max_length": max_length,
        "code": _CODE_HASH,
    }


@contextmanager
def _naming(shards: Shards, index: int) -> Iterator[None]:
    """Whatever fails is one error that names the shard, what is kept, and what to do."""
    try:
        yield
    except Exception as error:
        part = shards.parts[index]
        reason, remedy = _reason_and_remedy(error)
        raise ValueError(
            f"shard {index} of {len(shards)} (prompts {part.start}-{part[-1]}): {reason}; {shards.finished()} shards "
            f"are kept in {shards.folder}; {remedy} and run the same command again."
        ) from error


def _reason_and_remedy(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
        return os.strerror(error.errno).lower(), "free space"
    said = " ".join("".join(traceback.format_exception_only(error)).split())
    # GPUs, CPUs and engines in processes of their own each have another class for it.
    if isinstance(error, MemoryError) or any(words in said for words in _MEMORY_IS_FULL):
        return f"out of memory ({said})", "ask fewer prompts at once (--batch-size) or free memory"
    return said, "mend the cause"
