"""The last check before training: every row is rendered, encoded and masked exactly as training will do it.

Training and preflight share the encoder (`chat.encode_sample`) and the target's tokenizer. Faults are counted by name,
with the ids of some rows. Rows whose text spells a control token, which the encoder reads as plain text, are no fault;
they are counted by source.

    ... <|start_header_id|> assistant <|end_header_id|> \\n\\n | <|python_tag|> {" name ":" search ... <|eom_id|>
    prompt, no loss; it ends with the assistant header       | completion, loss on every token
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..chat import (
    EncodedPrompt,
    EncodedSample,
    encode_sample,
    injection_tokens_in,
    spells_control_token,
)
from ..counts import quantiles
from ..formats import format_of
from ..formats.chat_template import RENDER_ERRORS
from ..processes import map_rows
from ..public_name import folder_name, hub_id
from ..sample import carries_asset
from ..sets.prompts import ATTACKED_TASKS
from ..template_probe import probe_template, template_hash
from ..text_faults import text_faults


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Ids reported per fault.
EXAMPLES = 5

# Width in tokens of one bar of the length histogram.
BAR_TOKENS = 512


class TargetTokenizer:
    """The target's tokenizer with the values derived from it that every row is checked against.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target model's tokenizer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.tool_format = format_of(tokenizer)
        self.template_hash = template_hash(tokenizer)
        self.probe = probe_template(tokenizer)
        self.end_ids = {tokenizer.convert_tokens_to_ids(token) for token in self.tool_format.end_tokens}

    def decodes_to(self, ids: list[int], text: str) -> bool:
        """Whether tokens are a text's: letter by letter, or as the tokenizer normalizes it."""
        if (decoded := self.tokenizer.decode(ids)) == text:
            return True
        normalizer = self.tokenizer.backend_tokenizer.normalizer if self.tokenizer.is_fast else None
        return normalizer is not None and decoded == normalizer.normalize_str(text)

    def renders_injection(self, row: dict, prompt: EncodedPrompt) -> bool:
        """Whether every injection span of a row covers at least one token of its prompt."""
        try:
            return all(start < end for start, end in injection_tokens_in(self.tokenizer, row, prompt))
        except (ValueError, IndexError):
            return False


def preflight(
    rows: Iterable[dict],
    tokenizer: "PreTrainedTokenizerBase | None",
    max_length: int,
    b4_asset: dict | None = None,
    processes: int = 1,
) -> dict:
    """Check every row as training will see it.

    Args:
        rows (`Iterable[dict]`): Merged samples.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target model's tokenizer. Without it
            only the tools are checked: there are no lengths, and `spell_control_tokens` is `None`.
        max_length (`int`): Maximum number of tokens of a row.
        b4_asset (`dict`, *optional*): Tool-schema asset that B4-style rows must contain exactly.
        processes (`int`, *optional*, defaults to `1`): Number of processes.

    Returns:
        `dict`: The report, with `passed`, which is false if there were no rows.
    """
    target = None if tokenizer is None else TargetTokenizer(tokenizer)
    num_rows = 0
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    lengths: list[int] = []
    completion_lengths: list[int] = []
    spelled: Counter[str] = Counter()

    def check_row(row: dict) -> _CheckedRow:
        return _check_row(row, target, max_length, b4_asset)

    for row, checked in map_rows(check_row, rows, processes):
        num_rows += 1
        # A row that does not render has no lengths.
        for values, value in zip((lengths, completion_lengths), checked.lengths, strict=False):
            values.append(value)
        if checked.spells:
            spelled[row["provenance"]["source_dataset"]] += 1
        for name in checked.faults:
            counts[name] += 1
            if len(examples.setdefault(name, [])) < EXAMPLES:
                examples[name].append(row["id"])
    return {
        "passed": num_rows > 0 and not counts,
        "rows": num_rows,
        "max_length": max_length,
        **_token_report(target, lengths, completion_lengths),
        "spell_control_tokens": None if target is None else dict(sorted(spelled.items())),
        "faults": dict(sorted(counts.items())),
        "examples": examples,
    }


class _CheckedRow(NamedTuple):
    """The names of a row's faults, its length and that of its completion, and whether it spells a control token."""

    faults: list[str]
    lengths: tuple[int, ...] = ()
    spells: bool = False


def _check_row(row: dict, target: TargetTokenizer | None, max_length: int, b4_asset: dict | None) -> _CheckedRow:
    faults = list(tool_and_text_faults(row, b4_asset))
    # A row with such faults is not encoded: others may be consequences of them.
    if target is None or faults:
        return _CheckedRow(faults)
    faults, *lengths = row_faults(row, target, max_length)
    return _CheckedRow(faults, tuple(lengths), bool(lengths) and spells_control_token(target.tokenizer, row))


def _token_report(target: TargetTokenizer | None, lengths: list[int], completion_lengths: list[int]) -> dict:
    if target is None:
        return {"tokenizer": None}
    name = target.tokenizer.name_or_path
    return {
        "tokenizer": hub_id(name) or f"local tokenizer {folder_name(name)}",
        "vocabulary": len(target.tokenizer),
        "template_hash": target.template_hash,
        "tokens": quantiles(lengths),
        "completion_tokens": quantiles(completion_lengths),
        "histogram": histogram(lengths),
    }


def histogram(lengths: Sequence[int] | np.ndarray, width: int = BAR_TOKENS) -> dict[str, int]:
    """Number of rows per range of lengths, without gaps: `{"0-511": 12, "512-1023": 3}`."""
    counts = np.bincount(np.asarray(lengths, np.int64) // width)
    bars = range(int(np.flatnonzero(counts)[0]), len(counts)) if len(counts) else ()
    return {f"{bar * width}-{(bar + 1) * width - 1}": int(counts[bar]) for bar in bars}


def tool_and_text_faults(row: dict, b4_asset: dict | None) -> Iterator[str]:
    """Names of the faults that need no tokenizer to find."""
    names = list(dict.fromkeys(name for name, _ in text_faults(row)))
    yield from names
    if not names and b4_asset is not None and row["task"] in ATTACKED_TASKS and not carries_asset(row, b4_asset):
        yield "tool_schema_differs"


def row_faults(row: dict, target: TargetTokenizer, max_length: int) -> tuple[list[str], int, int] | tuple[list[str]]:
    """Faults of a row, its length in tokens and that of its completion; no lengths if it does not render."""
    try:
        sample = encode_sample(target.tokenizer, row)
    except RENDER_ERRORS:
        return (["does_not_render"],)
    faults = [*_prompt_faults(row, sample.prompt, target), *_completion_faults(row, sample, target)]
    if len(sample.ids) > max_length:
        faults.append("too_long")
    return faults, len(sample.ids), len(sample.ids) - sample.prompt_length


def _prompt_faults(row: dict, prompt: EncodedPrompt, target: TargetTokenizer) -> Iterator[str]:
    if not target.decodes_to(prompt.ids, prompt.text):
        yield "prompt_decodes_differently"
    if prompt.ids.count(target.tokenizer.bos_token_id) != min(target.probe.bos, 1):
        yield "bos_not_once"
    if not any(tuple(prompt.ids[-len(header) :]) == header for header in target.probe.headers):
        yield "no_assistant_header"
    if row["provenance"]["template_hash"] != target.template_hash:
        yield "template_of_another_model"
    if row["injection"] and not target.renders_injection(row, prompt):
        yield "injection_not_in_prompt"


def _completion_faults(row: dict, sample: EncodedSample, target: TargetTokenizer) -> Iterator[str]:
    with_loss = sample.ids[sample.prompt_length :]
    if not with_loss:
        yield "empty_mask"
    if not target.decodes_to(with_loss, row["assistant_raw"]):
        yield "mask_is_not_the_completion"
    if [index for index, id in enumerate(with_loss) if id in target.end_ids] != [len(with_loss) - 1]:
        yield "end_token_not_once_and_last"
    if row["provenance"]["prompt_format"] != target.tool_format.name:
        yield "format_of_another_model"
