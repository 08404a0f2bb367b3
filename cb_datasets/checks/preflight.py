"""The last look before training, through the target's own tokenizer and the one renderer.

Whatever training will do with a row is done here first: it is rendered, encoded, masked and measured. A failure names
the row.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..chat import encode_sample, injection_tokens, render_prompt, template_hash
from ..sample import carries_asset
from ..tool_calls import format_of, get_format


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


EXAMPLES = 5


def preflight(
    rows: Iterable[dict], tokenizer: "PreTrainedTokenizerBase", max_length: int, b4_asset: dict | None
) -> dict:
    """Check every row as training will see it.

    Args:
        rows (`Iterable[dict]`): Merged samples.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        max_length (`int`): Most tokens a row may have.
        b4_asset (`dict`, *optional*): Tool-schema asset that B4-style rows must carry exactly.

    Returns:
        `dict`: The report, with `passed`; it has not passed if there were no rows.
    """
    faults: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    lengths: list[int] = []
    trained: list[int] = []
    for row in rows:
        found, length, completion = row_faults(row, tokenizer, max_length, b4_asset)
        lengths.append(length)
        trained.append(completion)
        for fault in found:
            faults[fault] += 1
            if len(examples.setdefault(fault, [])) < EXAMPLES:
                examples[fault].append(row["id"])
    return {
        "passed": bool(lengths) and not faults,
        "rows": len(lengths),
        "tokenizer": tokenizer.name_or_path,
        "vocabulary": len(tokenizer),
        "template_hash": template_hash(tokenizer),
        "max_length": max_length,
        "tokens": _quantiles(lengths),
        "completion_tokens": _quantiles(trained),
        "faults": dict(sorted(faults.items())),
        "examples": examples,
    }


def row_faults(
    row: dict, tokenizer: "PreTrainedTokenizerBase", max_length: int, b4_asset: dict | None
) -> tuple[list[str], int, int]:
    """Names of what is wrong with a row, its length in tokens, and how many of them carry loss."""
    encoded = encode_sample(tokenizer, row)
    prompt_ids, completion_ids = encoded["prompt_ids"], encoded["completion_ids"]
    tool_format = get_format(row["provenance"]["prompt_format"])
    checks = {
        "too_long": len(prompt_ids) + len(completion_ids) > max_length,
        "empty_completion": not completion_ids,
        "completion_not_in_ids": tokenizer.decode(completion_ids) != row["assistant_raw"],
        "end_token_split": not completion_ids or tokenizer.decode(completion_ids[-1:]) not in tool_format.end_tokens,
        "format_of_another_model": tool_format is not format_of(tokenizer.chat_template),
        "template_of_another_model": row["provenance"]["template_hash"] != template_hash(tokenizer),
        "prompt_decodes_differently": tokenizer.decode(prompt_ids) != render_prompt(tokenizer, row),
        "bos_not_once": tokenizer.bos_token_id is not None and prompt_ids.count(tokenizer.bos_token_id) != 1,
        "tools_not_json": not _is_tool_list(row["tools"]),
        "injection_not_in_prompt": not _shows_injection(row, tokenizer),
        "tool_schema_differs": b4_asset is not None and _is_b4(row) and not carries_asset(row, b4_asset),
    }
    return (
        [name for name, wrong in checks.items() if wrong],
        len(prompt_ids) + len(completion_ids),
        len(completion_ids),
    )


def _is_tool_list(tools: str | None) -> bool:
    if tools is None:
        return True
    try:
        return isinstance(json.loads(tools), list)
    except ValueError:
        return False


def _shows_injection(row: dict, tokenizer: "PreTrainedTokenizerBase") -> bool:
    if not row["injection"]:
        return True
    try:
        return all(start < end for start, end in injection_tokens(tokenizer, row))
    except ValueError:
        return False


def _is_b4(row: dict) -> bool:
    return row["task"] == "tool_flip"


def _quantiles(values: list[int]) -> dict[str, int] | None:
    if not values:
        return None
    ordered = sorted(values)
    at = {name: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for name, q in (("p50", 0.5), ("p95", 0.95))}
    return {"min": ordered[0], **at, "max": ordered[-1], "mean": round(statistics.mean(values))}
