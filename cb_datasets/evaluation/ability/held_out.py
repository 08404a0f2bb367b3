"""Held-out assistant turns, rendered and encoded: what a breaker's next-token distributions are compared on.

chat          turns in words: samples of the class general_conversation, and assistant turns of traces
tool_calls    calls for prompts without an injection: samples of the classes tool_capability and benign_twin, and
              turns of traces that make a call
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset

from ...chat import encode_sample, spells_control_token
from ...files import holds_rows, load_rows
from ...formats import format_of
from ...ingest import check_traces
from ...sample import SAMPLE_FEATURES
from ...sets.prompts import turn_prompt
from ...sets.recorded import written_turn
from ...splits import choose
from ...text_faults import check_rows


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT, TOOL_CALLS = "chat", "tool_calls"
# Classes of samples by the slice they belong to.
SLICE_OF_CLASS = {"general_conversation": CHAT, "tool_capability": TOOL_CALLS, "benign_twin": TOOL_CALLS}


@dataclass(frozen=True)
class HeldOutTurn:
    """An assistant turn in its context.

    Args:
        id (`str`): Id of the row, with the number of the turn for those of traces.
        conversation (`str`): Its group. Turns of one group are resampled together.
        slice (`str`): `chat` or `tool_calls`.
        source (`str`): Who wrote it, as in `provenance.completion_source`.
        prompt_ids, completion_ids (`list[int]`): Tokens of the context and of the turn, end token included.
    """

    id: str
    conversation: str
    slice: str
    source: str
    prompt_ids: list[int]
    completion_ids: list[int]


def held_out_turns(
    folders: Iterable[Path], tokenizer: "PreTrainedTokenizerBase", max_length: int, max_rows: int, seed: int
) -> tuple[list[HeldOutTurn], Counter[str]]:
    """The held-out turns in folders of samples or traces, and the number of dropped ones by reason.

    Args:
        folders (`Iterable[Path]`): Folders of samples (`stage2/eval`) or of traces (`traces/ultrachat`); of one with a
            folder `eval`, that split is read.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        max_length (`int`): Maximum number of tokens of a context and its turn together.
        max_rows (`int`): Maximum number of samples of each slice, and of traces, of each folder.
        seed (`int`): Seed that selects them.

    Raises:
        FileNotFoundError: If a folder has no rows.
        ValueError: If no turn is left.
    """
    folders = list(folders)
    turns: dict[str, HeldOutTurn] = {}
    drops = Counter[str]()
    for folder in folders:
        for row in _rows_of(folder, tokenizer, max_rows, seed, drops):
            encoded = encode_sample(tokenizer, row)
            turn = HeldOutTurn(
                row["id"],
                row["group"],
                SLICE_OF_CLASS[row["priority_class"]],
                row["provenance"]["completion_source"],
                encoded.prompt.ids,
                encoded.completion.ids,
            )
            if len(encoded.ids) > max_length:
                drops["too_long"] += 1
            elif turn.id in turns:
                drops["repeated"] += 1
            else:
                turns[turn.id] = turn
    if not turns:
        raise ValueError(
            f"{', '.join(map(str, folders))}: no held-out turn ({dict(drops) or 'no row'}). --data takes the held-out "
            "samples (stage2/eval) or traces of chat (traces/ultrachat)."
        )
    return list(turns.values()), +drops


def _rows_of(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", max_rows: int, seed: int, drops: Counter[str]
) -> Iterator[dict]:
    rows = _eval_rows(folder)
    if "assistant_raw" in rows.column_names:
        return _chosen_samples(rows, max_rows, seed, drops)
    traces = choose(rows, max_rows, seed, "id")
    drops["over_max_rows"] += len(rows) - len(traces)
    return _turns_of(traces, tokenizer, drops)


def _eval_rows(folder: Path) -> Dataset:
    place = folder / "eval" if holds_rows(folder / "eval") else folder
    rows = load_rows(place)
    if not {"assistant_raw", "verdict"} & set(rows.column_names):
        raise ValueError(f"{folder}: neither samples nor traces (columns {', '.join(rows.column_names)}).")
    if "verdict" in rows.column_names:
        check_traces(rows, place)
    else:
        check_rows(load_rows(place, SAMPLE_FEATURES), place)
    return rows


def _chosen_samples(rows: Dataset, max_rows: int, seed: int, drops: Counter[str]) -> Iterator[dict]:
    """Samples of the eval split without an injection, by slice."""
    by_slice: dict[str, list[int]] = {CHAT: [], TOOL_CALLS: []}
    columns = (rows[name] for name in ("priority_class", "split", "injection"))
    for number, (name, split, injection) in enumerate(zip(*columns, strict=True)):
        if split != "eval":
            drops["not_in_eval"] += 1
        elif name not in SLICE_OF_CLASS:
            drops["other_class"] += 1
        elif injection:
            drops["injection"] += 1
        else:
            by_slice[SLICE_OF_CLASS[name]].append(number)
    for numbers in by_slice.values():
        chosen = choose(rows.select(numbers), max_rows, seed)
        drops["over_max_rows"] += len(numbers) - len(chosen)
        yield from chosen


def _turns_of(traces: Dataset, tokenizer: "PreTrainedTokenizerBase", drops: Counter[str]) -> Iterator[dict]:
    """The assistant turns of traces without an attack, as rows with the columns of samples that are read here."""
    for trace in traces:
        if trace["verdict"] != "benign_success":
            drops[f"trace_is_{trace['verdict']}"] += 1
            continue
        for index, message in enumerate(trace["messages"]):
            if message["role"] != "assistant":
                continue
            text = written_turn(message, format_of(tokenizer))
            if text is None:
                drops["empty_turn_or_parallel_calls"] += 1
            elif spells_control_token(tokenizer, {"messages": [message], "tools": None}):
                drops["control_token_in_turn"] += 1
            else:
                row_class = "tool_capability" if message["tool_calls"] else "general_conversation"
                prompt = turn_prompt(trace, index)
                provenance = prompt["provenance"] | {"completion_source": "recorded"}
                yield prompt | {"assistant_raw": text, "priority_class": row_class, "provenance": provenance}
