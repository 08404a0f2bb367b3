"""Prompts in, completions out: `Dataset.map` over shards, resumable after a crash.

A finished shard is one Parquet file in a folder named by the hash of everything the completions depend on
(`shards.py`). A rerun generates only the missing shards; a changed model, prompt or setting has another folder and
never reuses old shards. The shard is the unit of work: an interrupted one is regenerated as a whole, because the
samples that a seed gives may depend on which prompts are batched together.
"""

import dataclasses
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

from ..chat import DATE_STRING, MAX_LENGTH, RENDERER_HASH
from ..disk_faults import DISK_IS_FULL
from ..formats import format_of
from ..template_probe import template_hash
from .backend import Backend, Sampling, seed_after
from .progress import Progress
from .shard import COMPLETION_FEATURES, PROMPT_COLUMNS, complete_shard
from .shards import Shards


# Prompts per shard for a backend without a `shard_size`: what a CPU completes in minutes.
SHARD_SIZE = 100

# Hash of the source that generates completions, read at import: a changed source gives new shards.
_CODE_HASH = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()[:16]

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
    """Generate `sampling.num_samples` completions per prompt, in the order of the prompts.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES` with unique ids; other columns are ignored. If a
            prompt has a `target.prefill`, the model continues it, and the completion's text begins with it.
        backend ([`Backend`]): The model.
        sampling ([`Sampling`]): Sampling parameters.
        work_dir (`Path`): Folder of finished shards.
        shard_size (`int`, *optional*): Prompts per shard: the most work that a crash can lose, and the largest batch
            that the backend sees. Defaults to the backend's `shard_size`, or to 100 if it has none.
        max_length (`int`, *optional*, defaults to [`MAX_LENGTH`]): Maximum number of tokens of prompt, prefill and
            `max_new_tokens` together, lowered to the model's own limit. The model does not see longer prompts; their
            row has the stop reason `prompt_too_long`.
        description (`str`, *optional*, defaults to `"Completing"`): Label of the progress bar.
        accepts (`Callable[[dict], bool]`, *optional*): Predicate on completion rows; the progress bar shows the
            acceptance rate.
        rank, world (`int`, *optional*): Generate only shards `rank, rank + world, ...`, as one of `world` tasks.

    Returns:
        [`~datasets.Dataset`]: Rows of `COMPLETION_FEATURES`; with a rank, only those of its shards.

    Raises:
        ValueError: If there are no prompts, or ids repeat; if a shard fails (earlier shards are kept).
    """
    if len(prompts) == 0:
        raise ValueError("There are no prompts to complete.")
    if not 0 <= (rank or 0) < world or (rank is None and world != 1):
        raise ValueError(f"Rank and world go together, with 0 <= rank < world; got {rank} and {world}.")
    prompts = prompts.select_columns(PROMPT_COLUMNS)
    ids = list(prompts["id"])
    if len(set(ids)) != len(ids):
        raise ValueError("Prompt ids are not unique.")
    if shard_size is None:
        shard_size = getattr(backend, "shard_size", SHARD_SIZE)
    max_length = min(max_length, backend.max_length)
    settings = _settings(prompts, backend, sampling, shard_size, max_length)
    shards = Shards(work_dir, settings, ids, shard_size, sampling.num_samples)
    own_shards = range(rank or 0, len(shards), world)
    missing = [index for index in own_shards if not shards.has_shard(index)]
    n_prompts = sum(len(shards.prompt_ranges[index]) for index in own_shards)
    n_missing = sum(len(shards.prompt_ranges[index]) for index in missing)
    with Progress(description, n_prompts, n_prompts - n_missing, accepts) as progress:
        for index in missing:
            prompt_range = shards.prompt_ranges[index]
            with _shard_errors(shards, index):
                # Backends that seed each sample use the seeds from here to seed + len(prompt_range) * num_samples:
                # those of different shards do not overlap.
                seed = seed_after(sampling.seed, prompt_range.start * sampling.num_samples)
                completions = complete_shard(prompts.select(prompt_range), backend, sampling, seed, max_length)
                shards.save_shard(index, completions)
            progress.add_shard(len(prompt_range), completions)
    if rank is not None:
        still_missing = len(shards) - shards.count_finished()
        _logger.warning("%s: %d of %d shards are still missing.", description, still_missing, len(shards))
    # With more tasks than shards, some tasks have no shard: the empty table gives them the columns.
    empty = COMPLETION_FEATURES.arrow_schema.empty_table()
    tables = [empty, *(shards.read_shard(index) for index in own_shards)]
    return Dataset(pyarrow.concat_tables(tables, promote_options="none"))


def _settings(prompts: Dataset, backend: Backend, sampling: Sampling, shard_size: int, max_length: int) -> dict:
    """Everything the completions depend on; its hash names the folder of the shards."""
    prompts_hash = hashlib.sha256()
    for batch in prompts.with_format("arrow").iter(batch_size=100):
        for row in batch.to_pylist():
            prompts_hash.update(to_json([row["id"], row["messages"], row["tools"], row["target"]["prefill"]]).encode())
    return {
        "backend": type(backend).__name__,
        "model": backend.model,
        "revision": backend.revision,
        "sampling": dataclasses.asdict(sampling),
        "prompts": prompts_hash.hexdigest(),
        "template_hash": template_hash(backend.tokenizer),
        "end_tokens": list(format_of(backend.tokenizer).end_tokens),
        "date_string": DATE_STRING,
        "shard_size": shard_size,
        "max_length": max_length,
        "code": _CODE_HASH,
        "renderer": RENDERER_HASH,
    }


@contextmanager
def _shard_errors(shards: Shards, index: int) -> Iterator[None]:
    """Turn any exception into one error that names the shard, the finished shards, and the remedy."""
    try:
        yield
    except Exception as error:
        prompt_range = shards.prompt_ranges[index]
        reason, remedy = _reason_and_remedy(error)
        raise ValueError(
            f"shard {index} of {len(shards)} (prompts {prompt_range.start}-{prompt_range[-1]}): {reason}; "
            f"{shards.count_finished()} shards are kept in {shards.folder}; {remedy} and rerun the same command."
        ) from error


def _reason_and_remedy(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        return os.strerror(error.errno).lower(), "free space"
    message = " ".join("".join(traceback.format_exception_only(error)).split())
    # CUDA, CPU allocators and engines in other processes each raise another class, so the text is matched too.
    if isinstance(error, MemoryError) or any(phrase in message for phrase in _MEMORY_IS_FULL):
        return f"out of memory ({message})", "lower --batch-size or free memory"
    return message, "fix the cause"
