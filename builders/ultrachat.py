"""UltraChat 200k: general conversations without tools, with answers by ChatGPT.

One row, of a Parquet shard (`data/train_sft-00000-of-00003.parquet`) or of a JSONL copy:

    {"prompt": "How do I prune a plum tree?", "prompt_id": "9b1f... (64 hex digits)",
     "messages": [{"content": "How do I prune a plum tree?", "role": "user"},
                  {"content": "In summer, on a dry day ...", "role": "assistant"}, ...]}

Points that are easy to get wrong:

- `prompt` is not always the first message: only `messages` is read.
- A conversation that is too long is cut after an answer, never within a message.
- The splits `train_gen` and `test_gen` hold conversations to complete, not to train on. They are not read, and passing
  one explicitly is an error.
- The files hold 1.5 GB of text. Rows are sampled by a hash of `prompt_id`, so the sample does not depend on the order
  of the rows or on how they are divided into files and processes, and only sampled rows are held in memory.
"""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets

from .base import TraceBuilder, TraceConfig
from .download import Download
from .fujitsu.text import normalize_query
from .json_records import read_json_lines, required
from .trace import Dropped, message, to_json


if TYPE_CHECKING:
    import pyarrow.parquet as pq


_ROLES = ("user", "assistant")

_PUBLISHED = "hf://datasets/HuggingFaceH4/ultrachat_200k@8049631c405ae6576f93f445c6b8166f76f5505a"
_SHARDS = {
    "data/train_sft-00000-of-00003-a3ecf92756993583.parquet": (
        "afa8fa7426081b2a0e732fb50dbb5cd402a28ad5f0dbe66c0d996d63e7220727"
    ),
    "data/train_sft-00001-of-00003-0a1804bcb6ae68c6.parquet": (
        "c8230190bc8b29084c974ff32f05589b458fad1908fc4b2fb2b9e1e9f7921f03"
    ),
    "data/train_sft-00002-of-00003-ee46ed25cfae92c6.parquet": (
        "6fe7d2a5e95cf660f972ecaf304aa5632d7f53384e4b0e0d0f44d9c96733c03e"
    ),
    "data/test_sft-00000-of-00001-f7dfac4afe5b93f4.parquet": (
        "c18fd6e77395577652bdefbc5a87044ea799e989451ecfca5c6cf977ae5c6f70"
    ),
}

# Rows decoded at a time; one row is about 7 kB.
_BATCH_SIZE = 256


@dataclass
class UltraChatConfig(TraceConfig):
    """Configuration of [`UltraChat`].

    Args:
        num_samples (`int`, *optional*): Number of rows to sample from each split; by default all rows. Sampled rows
            may still be dropped, so there may be fewer traces.
        seed (`int`, *optional*, defaults to `0`): Seed of the sample.
        max_characters (`int`, *optional*, defaults to 8192): Maximum length of a conversation, in characters. Builders
            load no tokenizer: at 4 to 5 characters per token of English text this is about 2,000 tokens, far below a
            limit of 8,192 tokens in other languages too. Preflight counts the real tokens.
    """

    num_samples: int | None = None
    seed: int = 0
    max_characters: int = 8192


class UltraChat(TraceBuilder):
    """Conversations of the splits `train_sft` (as `train`) and `test_sft` (as `test`)."""

    BUILDER_CONFIG_CLASS = UltraChatConfig
    INPUTS = (("data/*_sft-*.parquet", "*_sft-*.parquet", "*_sft*.jsonl", "*.jsonl"),)
    LICENSE = "mit"
    REDISTRIBUTABLE = True
    CITATION = "UltraChat (Ding et al. 2023, arXiv:2305.14233)"
    HOMEPAGE = "https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k"
    DOWNLOADS = tuple(Download(f"{_PUBLISHED}/{path}", path, sha256) for path, sha256 in _SHARDS.items())

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        by_split: dict[str, list[Path]] = {}
        for file in self.inputs:
            by_split.setdefault(split_of_file(file), []).append(file)
        # Sample here: `datasets` divides the files among processes afterwards.
        return [
            datasets.SplitGenerator(split, gen_kwargs={"files": files, "row_positions": self._sample_positions(files)})
            for split, files in by_split.items()
        ]

    def _sample_positions(self, files: list[Path]) -> list[frozenset[int] | None]:
        count = self.config.num_samples
        return [None] * len(files) if count is None else sample_rows(files, count, self.config.seed)

    def _generate_traces(
        self, files: list[Path], row_positions: list[frozenset[int] | None]
    ) -> Iterator[dict | Dropped]:
        for file, positions in zip(files, row_positions, strict=True):
            for where, row in read_rows(file, ["prompt_id", "messages"], positions):
                yield chat_trace(row, self.config.max_characters, where)


def split_of_file(file: Path) -> str:
    """Return `test` for a file of `test_sft`, otherwise `train`.

    Raises:
        ValueError: If the file belongs to a split for generation.
    """
    if "train_gen" in file.name or "test_gen" in file.name:
        raise ValueError(f"{file.name}: a split for generation is not training data. Pass train_sft and test_sft.")
    return "test" if "test_sft" in file.name else "train"


def sample_rows(files: list[Path], count: int, seed: int) -> list[frozenset[int] | None]:
    """Return, for each file, the positions of its sampled rows: those with the `count` smallest hashes of all files.

    Only the column `prompt_id` of Parquet files is read, and at most `count` hashes are held in memory.

    Raises:
        ValueError: If a row has no `prompt_id`.
    """
    rows = (
        (hashlib.sha256(f"{seed}/{required(row, 'prompt_id', str, where)}".encode()).digest(), number, position)
        for number, file in enumerate(files)
        for position, (where, row) in enumerate(read_rows(file, ["prompt_id"]))
    )
    smallest = heapq.nsmallest(count, rows)
    return [
        frozenset(position for _, of_file, position in smallest if of_file == number) for number in range(len(files))
    ]


def read_rows(file: Path, columns: list[str], positions: frozenset[int] | None = None) -> Iterator[tuple[str, dict]]:
    """Yield `("file.jsonl:12", row)`, or `("file.parquet:row 12", row)` counted from 0, in the order of the file.

    Args:
        file (`Path`): A Parquet or JSON Lines file.
        columns (`list[str]`): Columns to read from a Parquet file.
        positions (`frozenset[int]`, *optional*): Positions of the rows to yield, counted from 0; by default all.

    Raises:
        ValueError: If the file or a line of it cannot be read.
    """
    if file.suffix == ".parquet":
        yield from _read_parquet(file, columns, positions)
        return
    for position, (where, row) in enumerate(read_json_lines(file)):
        if positions is None or position in positions:
            yield where, row


def _read_parquet(file: Path, columns: list[str], positions: frozenset[int] | None) -> Iterator[tuple[str, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as shard:
            missing = sorted(set(columns) - set(shard.schema_arrow.names))
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}")
            for position, row in _parquet_rows(shard, columns, positions):
                yield f"{file.name}:row {position}", row
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file.name}: not a shard of UltraChat ({reason}). Fetch the file again.") from None


def _parquet_rows(
    shard: "pq.ParquetFile", columns: list[str], positions: frozenset[int] | None
) -> Iterator[tuple[int, dict]]:
    # Row groups without a sampled row are skipped without being decoded. The rows of the others are converted one by
    # one, because `to_pylist` of a batch would build Python objects for all of them.
    start = 0
    for group in range(shard.num_row_groups):
        end = start + shard.metadata.row_group(group).num_rows
        if positions is None or not positions.isdisjoint(range(start, end)):
            position = start
            for batch in shard.iter_batches(_BATCH_SIZE, row_groups=[group], columns=columns):
                for offset in range(batch.num_rows):
                    if positions is None or position + offset in positions:
                        yield position + offset, batch.slice(offset, 1).to_pylist()[0]
                position += batch.num_rows
        start = end


def chat_trace(row: dict, max_characters: int, where: str) -> dict | Dropped:
    """Convert one row to a trace, cut to `max_characters`, or drop it.

    The group is the normalised first message ([`~builders.fujitsu.normalize_query`]). `prompt_id` would not do: as a
    hash of the prompt, it separates prompts that differ only in case or punctuation.

    Args:
        row (`dict`): The row as published.
        max_characters (`int`): Maximum length of the conversation, in characters.
        where (`str`): File and line of the row.

    Raises:
        ValueError: If a field is missing or of another type.
    """
    prompt_id = required(row, "prompt_id", str, where)
    turns = _turns_of(row, where)
    reason = _reason_to_drop(turns)
    if reason is not None:
        return Dropped(reason, where)
    fitting = fitting_turns(turns, max_characters)
    if not fitting:  # the first exchange alone is too long
        return Dropped("too_long", where)
    return {
        "id": f"ultrachat/{prompt_id}",
        "source": "ultrachat",
        # A first message of only punctuation normalises to the empty text, and such rows are not one group.
        "group": normalize_query(turns[0][1]) or prompt_id,
        "messages": [message(role, content) for role, content in fitting],
        "tools": None,
        "expected_tool": None,
        "simulated_tool": None,
        "attack": None,
        "verdict": "benign_success",
        "decision_turn": None,
        "metadata": to_json(
            {
                "generator": "ChatGPT",
                "task": "chat",
                "prompt_id": prompt_id,
                "turns": len(fitting),
                "turns_cut": len(turns) - len(fitting),
            }
        ),
    }


def _turns_of(row: dict, where: str) -> list[tuple[str, str]]:
    turns = []
    for number, turn in enumerate(required(row, "messages", list, where)):
        at = f"{where}, message {number}"
        if not isinstance(turn, dict):
            raise ValueError(f"{at}: expected an object, got {type(turn).__name__}. Correct it.")
        turns.append((required(turn, "role", str, at), required(turn, "content", str, at)))
    return turns


def _reason_to_drop(turns: list[tuple[str, str]]) -> str | None:
    """Drop reason of turns that are not a conversation between a user and an assistant, or `None`."""
    if not turns:
        return "empty"
    if turns[0][0] != "user":
        return "not_user_first"
    if any(role != _ROLES[number % 2] for number, (role, _) in enumerate(turns)):
        return "not_alternating"
    if any(not content.strip() for _, content in turns):
        return "empty_turn"
    return "unanswered" if len(turns) == 1 else None


def fitting_turns(turns: list[tuple[str, str]], max_characters: int) -> list[tuple[str, str]]:
    """The leading exchanges (a message and its answer) that have at most `max_characters` in total."""
    characters, end = 0, 0
    for answer in range(1, len(turns), 2):
        characters += len(turns[answer - 1][1]) + len(turns[answer][1])
        if characters > max_characters:
            break
        end = answer + 1
    return turns[:end]
