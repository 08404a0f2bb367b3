"""The target model and its generation settings."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ..files import to_dataset
from ..formats import ToolCallFormat, format_of
from ..generation import Backend, Sampling, complete
from ..sample import PROMPT_FEATURES, carries_asset, clean_messages
from ..splits import choose
from .prompts import prompts_for_task


# Sources whose requests have tools of their own.
_OWN_TOOLS = ("bfcl",)


@dataclasses.dataclass(frozen=True)
class TargetModel:
    """The model that completes prompts, how many, and where finished shards are stored.

    Args:
        backend ([`Backend`]): The target model.
        work_dir (`Path`): Folder of finished shards.
        limits (`dict[str, int | None]`): Maximum number of prompts in each split; `None` for all.
        per_tool (`int`, *optional*, defaults to `0`): Minimum number of prompts per expected tool, where available.
            Where few tools make most of the requests, a breaker learns little about the others.
        rank, world (`int`, *optional*): Do only shards `rank, rank + world, ...`; no set can be made of them until the
            others are done too.
        system_modifier (`str`, *optional*): Added to every system prompt, as a paragraph of its own.
        tool_schema (`dict`, *optional*): Asset whose system prompt and tools every prompt with tools must carry,
            except those of sources with tools of their own. Hours of a GPU go into completions, which do not show the
            tools they were sampled with.
    """

    backend: Backend
    work_dir: Path
    limits: dict[str, int | None]
    per_tool: int = 0
    rank: int | None = None
    world: int = 1
    system_modifier: str | None = None
    tool_schema: dict | None = None

    @property
    def tool_format(self) -> ToolCallFormat:
        return format_of(self.backend.tokenizer)

    def prompts(self, traces: dict[str, Dataset], tasks: tuple[str, ...], seed: int) -> dict[str, Dataset]:
        """Prompts of some tasks by split, the limits applied to each task.

        Siblings in different sets come from the same traces, see [`~splits.choose`].
        """
        by_task = [choose_prompts(traces, task, self.limits, seed, self.per_tool) for task in tasks]
        return self.ready({split: concatenate_datasets([chosen[split] for chosen in by_task]) for split in traces})

    def ready(self, prompts: dict[str, Dataset]) -> dict[str, Dataset]:
        """The prompts as the model gets them.

        Raises:
            ValueError: If a prompt offers other tools than `tool_schema`, or has another system prompt.
        """
        if self.tool_schema is not None:
            check_tool_schema(prompts, self.tool_schema)
        return {split: modified(rows, self.system_modifier) for split, rows in prompts.items()}

    def complete(
        self, prompts: Dataset, sampling: Sampling, description: str, accepts: Callable[[dict], bool] | None = None
    ) -> Dataset:
        """Rows of `COMPLETION_FEATURES`; of this rank's shards only, if there are several."""
        return complete(
            prompts,
            self.backend,
            sampling,
            self.work_dir,
            description=description,
            accepts=accepts,
            rank=self.rank,
            world=self.world,
        )


def choose_prompts(
    traces: dict[str, Dataset], task: str, limits: dict[str, int | None], seed: int, per_tool: int = 0
) -> dict[str, Dataset]:
    """Prompts of a task by split, at most as many as the limits say, `per_tool` of them for each expected tool."""
    return {
        split: choose(prompts_for_task(rows, task), limits[split], seed, per_tool=per_tool)
        for split, rows in traces.items()
    }


def check_tool_schema(prompts: dict[str, Dataset], asset: dict) -> None:
    """Refuse prompts with other tools than the asset's, or with another system prompt.

    Raises:
        ValueError: If there is one; the first is named.
    """
    for rows in prompts.values():
        for prompt in rows:
            if prompt["provenance"]["source_dataset"] in _OWN_TOOLS:
                continue
            if prompt["tools"] is not None and not carries_asset(prompt, asset):
                raise ValueError(
                    f"{prompt['id']} does not carry the system prompt and the tools of --tool-schema. Ingest its "
                    "source again with this version, or name the asset that its prompts were made with."
                )


def seed_of_pass(seed: int, number: int) -> int:
    """The seed of a pass over prompts that were asked before; the first pass, number 0, has the step's own.

    Libraries take seeds below 2**32. Half of that leaves room for what shards and samples add.
    """
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8]) % 2**31


def drop_completed_pairs(prompts: dict[str, Dataset], completed: set[str]) -> dict[str, Dataset]:
    """The prompts of pairs that have no sample yet."""
    return {
        split: rows.select([index for index, pair in enumerate(rows["pair"]) if pair not in completed])
        for split, rows in prompts.items()
    }


def modified(prompts: Dataset, modifier: str | None) -> Dataset:
    """The prompts with a paragraph added to their system prompt; a prompt without one gets it as its system prompt."""
    if modifier is None:
        return prompts
    return to_dataset([_with_modifier(prompt, modifier) for prompt in prompts], PROMPT_FEATURES)


def warned(prompts: Dataset, warning: str) -> Dataset:
    """Attacked prompts with a warning as a paragraph of their system prompt, and the user's own request once more.

    A model follows what it read last, and a small one reads no warnings: the request stands after the attack. Where
    the attack is in a tool's result, only the warning is added: no user speaks after it.
    """
    rows = []
    for prompt in modified(prompts, warning):
        *earlier, last = prompt["messages"]
        if last["role"] != "user":
            rows.append(prompt)
            continue
        request = clean_messages(prompt)[-1]["content"]
        rows.append({**prompt, "messages": [*earlier, {**last, "content": f"{last['content']}\n\n{request}"}]})
    return to_dataset(rows, PROMPT_FEATURES)


def _with_modifier(prompt: dict, modifier: str) -> dict:
    first, *others = prompt["messages"]
    spans = prompt["injection"]
    if first["role"] == "system":
        messages = [{**first, "content": f"{first['content']}\n\n{modifier}"}, *others]
    else:
        empty = dict.fromkeys(first) | {"tool_calls": []}
        messages = [empty | {"role": "system", "content": modifier}, first, *others]
        spans = [{**span, "message": span["message"] + 1} for span in spans]
    provenance = prompt["provenance"] | {"system_modifier": modifier}
    return {**prompt, "messages": messages, "injection": spans, "provenance": provenance}
