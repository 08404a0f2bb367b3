"""Completions of one shard of prompts, generated in one call of the backend."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from datasets import Dataset, Features, Value

from ..chat import encode_completion, encode_prompt
from ..files import without_library_bars
from .backend import Backend, Completion, Sampling


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Columns of a prompt that its completions depend on.
PROMPT_COLUMNS = ["id", "messages", "tools", "target"]

COMPLETION_FEATURES = Features(
    {
        "prompt_id": Value("string"),
        "sample_index": Value("int32"),
        "text": Value("string"),  # prefill and completion, including special tokens; null for an overlong prompt
        "stop_reason": Value("string"),  # stop | length | prompt_too_long
        "canonical": Value("bool"),  # whether the text encodes back to the ids of prefill and completion
        "new_tokens": Value("int32"),  # tokens generated, without the prefill
        "seed": Value("int64"),
    }
)

PROMPT_TOO_LONG = "prompt_too_long"


def complete_shard(prompts: Dataset, backend: Backend, sampling: Sampling, seed: int, max_length: int) -> Dataset:
    """Complete the prompts of one shard in a single call of the backend.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_COLUMNS`.
        backend ([`Backend`]): The model.
        sampling ([`Sampling`]): Sampling parameters.
        seed (`int`): Seed of the shard.
        max_length (`int`): Maximum number of tokens of prompt, prefill and completion together.

    Returns:
        [`~datasets.Dataset`]: Rows of `COMPLETION_FEATURES`.

    Raises:
        ValueError: If the backend does not complete every prompt.
    """

    def complete_batch(batch: dict) -> dict:
        rows = [
            dict(zip(PROMPT_COLUMNS, values, strict=True))
            for values in zip(*(batch[key] for key in PROMPT_COLUMNS), strict=True)
        ]
        completion_rows = list(_completion_rows(rows, backend, sampling, seed, max_length))
        return {name: [row[name] for row in completion_rows] for name in COMPLETION_FEATURES}

    # `map` would pickle the closure, with the engine in it, to compute a fingerprint: one is passed instead.
    with without_library_bars():
        return prompts.map(
            complete_batch,
            batched=True,
            batch_size=len(prompts),
            remove_columns=prompts.column_names,
            features=COMPLETION_FEATURES,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=f"{seed:016x}",
        )


def _completion_rows(
    rows: list[dict], backend: Backend, sampling: Sampling, seed: int, max_length: int
) -> Iterator[dict]:
    tokenizer = backend.tokenizer
    encoded = [encode_prompt(tokenizer, row) + _prefill_ids(tokenizer, row) for row in rows]
    fits = [len(ids) + sampling.max_new_tokens <= max_length for ids in encoded]
    prompt_ids = [ids for ids, fit in zip(encoded, fits, strict=True) if fit]
    completions = backend.generate(prompt_ids, sampling, seed) if prompt_ids else []
    if [len(samples) for samples in completions] != [sampling.num_samples] * len(prompt_ids):
        raise ValueError("the backend did not complete every prompt")
    remaining = iter(completions)
    for row, fit in zip(rows, fits, strict=True):
        shared = {"prompt_id": row["id"], "seed": seed}
        if not fit:
            # One row, not `num_samples`: it records that the prompt was skipped.
            skipped = {"text": None, "stop_reason": PROMPT_TOO_LONG, "canonical": False, "new_tokens": 0}
            yield {**shared, "sample_index": 0, **skipped}
            continue
        for index, completion in enumerate(next(remaining)):
            yield {**shared, "sample_index": index, **_completion_fields(tokenizer, row, completion)}


def _completion_fields(tokenizer: "PreTrainedTokenizerBase", row: dict, completion: Completion) -> dict:
    text = (row["target"]["prefill"] or "") + completion.text
    ids = [*_prefill_ids(tokenizer, row), *completion.token_ids]
    return {
        "text": text,
        "stop_reason": completion.stop_reason,
        "canonical": encode_completion(tokenizer, text) == ids,
        "new_tokens": len(completion.token_ids),
    }


def _prefill_ids(tokenizer: "PreTrainedTokenizerBase", row: dict) -> list[int]:
    prefill = row["target"]["prefill"]
    return encode_completion(tokenizer, prefill) if prefill else []
