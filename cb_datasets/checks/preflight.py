"""The last look before training, through the target's own tokenizer and the one renderer.

Whatever training will do with a row is done here first: it is rendered, encoded, masked and measured. A failure names
the row.

    ... <|start_header_id|> assistant <|end_header_id|> \\n\\n | <|python_tag|> {" name ":" search ... <|eom_id|>
    prompt, without loss; its end is the assistant's header  | completion, all of it with loss
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError

from ..chat import EncodedPrompt, EncodedSample, assistant_header, encode_sample, injection_in, template_hash
from ..counts import quantiles
from ..formats import format_of
from ..sample import carries_asset


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EXAMPLES = 5

# What is counted and keeps no row out, unless preflight is strict.
WARNINGS = ("control_tokens_in_messages",)

# Tokens of one bar of the histogram of lengths.
BAR_TOKENS = 512


class Target:
    """The model's tokenizer, and what is asked of it for every row.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.tool_format = format_of(tokenizer.chat_template)
        self.template_hash = template_hash(tokenizer)
        self.header = assistant_header(tokenizer)
        self.end_ids = {tokenizer.convert_tokens_to_ids(token) for token in self.tool_format.end_tokens}

        special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.control_token = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def shows_injection(self, row: dict, prompt: EncodedPrompt) -> bool:
        try:
            return all(start < end for start, end in injection_in(self.tokenizer, row, prompt))
        except (ValueError, IndexError):
            return False


def preflight(
    rows: Iterable[dict],
    tokenizer: "PreTrainedTokenizerBase | None",
    max_length: int,
    b4_asset: dict | None = None,
    strict: bool = False,
) -> dict:
    """Check every row as training will see it.

    Args:
        rows (`Iterable[dict]`): Merged samples.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target's. Without it only the tools are
            looked at.
        max_length (`int`): Most tokens a row may have.
        b4_asset (`dict`, *optional*): Tool-schema asset that B4-style rows must carry exactly.
        strict (`bool`, *optional*, defaults to `False`): Whether a warning is a fault.

    Returns:
        `dict`: The report, with `passed`; it has not passed if there were no rows.
    """
    target = None if tokenizer is None else Target(tokenizer)
    count = 0
    found: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    lengths: list[int] = []
    trained: list[int] = []
    for row in rows:
        count += 1
        names = list(tool_faults(row, b4_asset))
        if target is not None and not names:
            names, *measured = row_faults(row, target, max_length)
            for values, value in zip((lengths, trained), measured, strict=False):
                values.append(value)
        for name in names:
            found[name] += 1
            if len(examples.setdefault(name, [])) < EXAMPLES:
                examples[name].append(row["id"])
    warnings = {name: found[name] for name in WARNINGS if found[name] and not strict}
    faults = {name: number for name, number in sorted(found.items()) if name not in warnings}
    return {
        "passed": count > 0 and not faults,
        "rows": count,
        "max_length": max_length,
        "strict": strict,
        **_measured(target, lengths, trained),
        "faults": faults,
        "warnings": warnings,
        "examples": examples,
    }


def _measured(target: Target | None, lengths: list[int], trained: list[int]) -> dict:
    if target is None:
        return {"tokenizer": None}
    return {
        "tokenizer": target.tokenizer.name_or_path,
        "vocabulary": len(target.tokenizer),
        "template_hash": target.template_hash,
        "tokens": quantiles(lengths),
        "completion_tokens": quantiles(trained),
        "histogram": histogram(lengths),
    }


def histogram(lengths: Sequence[int] | np.ndarray, width: int = BAR_TOKENS) -> dict[str, int]:
    """How many rows have how many tokens: `{"0-511": 12, "512-1023": 3}`, without gaps."""
    counts = np.bincount(np.asarray(lengths, np.int64) // width)
    bars = range(int(np.flatnonzero(counts)[0]), len(counts)) if len(counts) else ()
    return {f"{bar * width}-{(bar + 1) * width - 1}": int(counts[bar]) for bar in bars}


def tool_faults(row: dict, b4_asset: dict | None) -> Iterator[str]:
    """What is wrong with the tools on offer: no tokenizer is needed to tell."""
    try:
        tools = json.loads(row["tools"] or "[]")
    except ValueError:
        tools = None
    if not isinstance(tools, list):
        yield "tools_not_json"
    elif b4_asset is not None and row["task"] == "tool_flip" and not carries_asset(row, b4_asset):
        yield "tool_schema_differs"


def row_faults(row: dict, target: Target, max_length: int) -> tuple[list[str], int, int] | tuple[list[str]]:
    """Names of what is wrong with a row, its length in tokens, and how many of them carry loss."""
    try:
        sample = encode_sample(target.tokenizer, row)
    except (TemplateError, ValueError, TypeError, KeyError):
        return (["does_not_render"],)
    faults = [*_prompt_faults(row, sample.prompt, target), *_completion_faults(row, sample, target)]
    if len(sample.ids) > max_length:
        faults.append("too_long")
    return faults, len(sample.ids), len(sample.ids) - sample.prompt_length


def _prompt_faults(row: dict, prompt: EncodedPrompt, target: Target) -> Iterator[str]:
    bos, header = target.tokenizer.bos_token_id, target.header
    if target.tokenizer.decode(prompt.ids) != prompt.text:
        yield "prompt_decodes_differently"
    if bos is not None and prompt.ids.count(bos) != 1:
        yield "bos_not_once"
    if not header or tuple(prompt.ids[-len(header) :]) != header:
        yield "no_assistant_header"
    if row["provenance"]["template_hash"] != target.template_hash:
        yield "template_of_another_model"
    if row["injection"] and not target.shows_injection(row, prompt):
        yield "injection_not_in_prompt"
    if any(target.control_token.search(message["content"] or "") for message in row["messages"]):
        yield "control_tokens_in_messages"


def _completion_faults(row: dict, sample: EncodedSample, target: Target) -> Iterator[str]:
    with_loss = sample.ids[sample.prompt_length :]
    if not with_loss:
        yield "empty_mask"
    if target.tokenizer.decode(with_loss) != row["assistant_raw"]:
        yield "mask_is_not_the_completion"
    if [index for index, id in enumerate(with_loss) if id in target.end_ids] != [len(with_loss) - 1]:
        yield "end_token_not_once_and_last"
    if row["provenance"]["prompt_format"] != target.tool_format.name:
        yield "format_of_another_model"
