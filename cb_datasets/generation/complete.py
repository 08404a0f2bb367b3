"""Prompts in, completions out: `Dataset.map` over shards that survive whatever kills the process.

Each finished shard is one Parquet file, put in place in one move under a directory that is named by the hash of
everything the completions depend on:

    completions/3f9c21ab77e0d415/manifest.json
    completions/3f9c21ab77e0d415/shard-00000-of-00004.parquet

A rerun does the missing shards only; a changed model, prompt or setting has another directory and never meets old
shards.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, Features, Value, concatenate_datasets
from tqdm import tqdm

from builders.trace import to_json

from ..chat import DATE_STRING, MAX_LENGTH, encode_completion, encode_prompt, template_hash
from ..files import load_parquet, save_parquet, without_library_bars, write_json
from .backend import Backend, Completion, Sampling


SHARD_SIZE = 100

COMPLETION_FEATURES = Features(
    {
        "prompt_id": Value("string"),
        "sample_index": Value("int32"),
        "text": Value("string"),  # null where nothing was generated
        "stop_reason": Value("string"),  # stop | length | prompt_too_long
        "canonical": Value("bool"),  # whether the text encodes back to the generated ids
        "seed": Value("int64"),
    }
)


def complete(
    prompts: Dataset,
    backend: Backend,
    sampling: Sampling,
    work_dir: Path,
    *,
    shard_size: int = SHARD_SIZE,
    max_length: int = MAX_LENGTH,
    description: str = "Completing",
) -> Dataset:
    """Completions of `prompts`, `sampling.num_samples` rows each, in order.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES` (further columns are ignored), with unique ids.
        backend ([`Backend`]): The model.
        sampling ([`Sampling`]): How to draw.
        work_dir (`Path`): Where shards are kept.
        shard_size (`int`, *optional*, defaults to `100`): Prompts in a shard: the most work that a crash can lose.
        max_length (`int`, *optional*, defaults to `MAX_LENGTH`): Prompts must leave room for `max_new_tokens` below
            it;
            longer ones are not asked (`prompt_too_long`).
        description (`str`, *optional*): Label of the progress bar.

    Returns:
        [`~datasets.Dataset`]: Rows of `COMPLETION_FEATURES`.

    Raises:
        ValueError: If there are no prompts, or two with one id.
    """
    if len(prompts) == 0:
        raise ValueError("There are no prompts to complete.")
    if len(set(prompts["id"])) != len(prompts):
        raise ValueError("Prompt ids are not unique.")
    settings = _settings(prompts, backend, sampling, shard_size, max_length)
    run_dir = work_dir / _digest(settings)[:16]
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "manifest.json", settings)
    encoded = [(row["id"], encode_prompt(backend.tokenizer, row)) for row in prompts]
    paths = []
    with tqdm(total=len(prompts), desc=description, unit=" prompts") as progress:
        for path, start, part in _shards(encoded, run_dir, shard_size):
            if not path.is_file():
                seed = sampling.seed + start * sampling.num_samples
                save_parquet(_complete_shard(part, backend, sampling, seed, max_length, run_dir.name), path)
            paths.append(path)
            progress.update(len(part))
    return concatenate_datasets([load_parquet(path) for path in paths])


def _settings(prompts: Dataset, backend: Backend, sampling: Sampling, shard_size: int, max_length: int) -> dict:
    """Everything that decides the completions."""
    rows = hashlib.sha256()
    for row in prompts.select_columns(["id", "messages", "tools"]):
        rows.update(to_json(row).encode())
    return {
        "model": backend.model,
        "revision": backend.revision,
        "sampling": dataclasses.asdict(sampling),
        "prompts": rows.hexdigest(),
        "template_hash": template_hash(backend.tokenizer),
        "date_string": DATE_STRING,
        "shard_size": shard_size,
        "max_length": max_length,
        "code": _code_hash(),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def _code_hash() -> str:
    """Hash of the code that makes completions; `Dataset.map` does not see edits of imported functions."""
    package = Path(__file__).parent
    files = [*sorted(package.glob("*.py")), package.parent / "chat.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _shards(encoded: list[tuple[str, list[int]]], run_dir: Path, shard_size: int) -> Iterator[tuple[Path, int, list]]:
    count = -(-len(encoded) // shard_size)
    for index in range(count):
        start = index * shard_size
        path = run_dir / f"shard-{index:05d}-of-{count:05d}.parquet"
        yield path, start, encoded[start : start + shard_size]


def _complete_shard(
    part: list[tuple[str, list[int]]], backend: Backend, sampling: Sampling, seed: int, max_length: int, run: str
) -> Dataset:
    prompts = Dataset.from_dict({"prompt_id": [id for id, _ in part], "input_ids": [ids for _, ids in part]})

    def generate(batch: dict) -> dict:
        fits = [len(ids) + sampling.max_new_tokens <= max_length for ids in batch["input_ids"]]
        asked = [ids for ids, fit in zip(batch["input_ids"], fits, strict=True) if fit]
        answers = iter(backend.generate(asked, sampling, seed) if asked else [])
        rows = []
        for prompt_id, fit in zip(batch["prompt_id"], fits, strict=True):
            if not fit:
                rows.append(_row(prompt_id, 0, None, backend, seed))
                continue
            rows.extend(_row(prompt_id, k, done, backend, seed) for k, done in enumerate(next(answers)))
        return {name: [row[name] for row in rows] for name in COMPLETION_FEATURES}

    # The fingerprint is given, so that the engine in the closure is never pickled.
    with without_library_bars():
        return prompts.map(
            generate,
            batched=True,
            batch_size=len(prompts),
            remove_columns=prompts.column_names,
            features=COMPLETION_FEATURES,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=f"{run}{seed:x}",
        )


def _row(prompt_id: str, index: int, completion: Completion | None, backend: Backend, seed: int) -> dict:
    if completion is None:
        empty = {"text": None, "stop_reason": "prompt_too_long", "canonical": False}
        return {"prompt_id": prompt_id, "sample_index": index, "seed": seed, **empty}
    ids = encode_completion(backend.tokenizer, completion.text)
    return {
        "prompt_id": prompt_id,
        "sample_index": index,
        "text": completion.text,
        "stop_reason": completion.stop_reason,
        "canonical": ids == list(completion.token_ids),
        "seed": seed,
    }
