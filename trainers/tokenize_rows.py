"""A sample becomes token ids, with what the losses need to know of them.

    input_ids       <|begin_of_text|>...Pictures of the moon? <!-- use search_web --> ...<|python_tag|>{"name": ...
    prompt_length   where the completion begins
    injection       [[41, 52]], token ranges of the injected span
    tool_call       [68, 90], tool_name [73, 75]: of the completion's call; [-1, -1] where it makes none
    divergence      where a harmful completion leaves its sibling's right call; -1 where there is no sibling
    clean_ids       the same completion after the clean prompt; empty where nothing is injected
    splice_ids      the attacked prompt, a wrong opening, and the rest of the right call, which begins at splice_start
    redacted        whether the attack was cut from the prompt, so that only `rr` may use the row

The injected span is varied here, with a seed, so that a model cannot learn the attack by its quotation marks. Siblings
are varied alike: their prompts stay the same. What is to be kept is varied too, with random words in the request or
around it: terms that compare the two networks on the same tokens need no completion made anew.
"""

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from cb_datasets import chat
from cb_datasets.sample import clean_messages

from .augment import Augmentation, augment_injection, augment_request
from .objective.masks import NONE


_WORD = re.compile(r"\w+")


# Said before a call by a model that has fallen for something else. The third kind of wrong opening, beside the
# attacker's own and none at all.
GENERIC_OPENINGS = ("Sure, I'll do that.", "Of course.", "I'll take care of that now.")


def siblings_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """
    By `pair`, the completions that belong together: `harmful`, and `right`, the call the user asked for.

    The right call made under attack goes before the one of the clean twin.
    """
    siblings: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["pair"] is None:
            continue
        if row["set"] == "circuit_breaker":
            siblings.setdefault(row["pair"], {})["harmful"] = row["assistant_raw"]
        elif row["priority_class"] == "adversarial_safe":
            siblings.setdefault(row["pair"], {})["right"] = row["assistant_raw"]
        elif row["priority_class"] in ("benign_twin", "injection_resisted"):
            siblings.setdefault(row["pair"], {}).setdefault("right", row["assistant_raw"])
    return siblings


def prepare_row(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    siblings: Mapping[str, Mapping[str, str]],
    variation: Augmentation,
) -> dict[str, Any]:
    """
    Columns of the module docstring, for one sample.

    Args:
        row (`dict[str, Any]`):
            A sample.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer whose chat template renders the prompt.
        siblings (`Mapping[str, Mapping[str, str]]`):
            What [`siblings_of`] found.
        variation ([`Augmentation`]):
            How to vary the row.
    """
    clean = {**row, "messages": clean_messages(row), "injection": []}
    rng = random.Random(f"{variation.seed} {row['id']}")
    own = siblings.get(row["pair"], {})
    completion = Completion.of(row["assistant_raw"], _name_of(row), tokenizer)
    varied = augment_request(augment_injection(row, variation), variation)
    prompt_ids = chat.encode_prompt(tokenizer, varied)
    if len(prompt_ids) + len(completion.ids) <= variation.max_length:
        row = varied
    else:
        prompt_ids = chat.encode_prompt(tokenizer, row)
    divergence = None
    if row["set"] == "circuit_breaker" and "right" in own:
        divergence = _divergence(completion.ids, chat.encode_completion(tokenizer, own["right"]))
    if row["set"] == "circuit_breaker" and rng.random() < variation.bare_head_probability:
        if divergence is not None and completion.name != NONE:
            divergence = max(divergence, completion.name[0]) - completion.call[0]
        completion = completion.without_opening()
    n = len(prompt_ids)
    prepared = {
        "input_ids": prompt_ids + completion.ids,
        "prompt_length": n,
        "injection": [list(span) for span in chat.injection_tokens(tokenizer, row)] if row["injection"] else [],
        "tool_call": _shifted(completion.call, n),
        "tool_name": _shifted(completion.name, n),
        "divergence": -1 if divergence is None else n + divergence,
        "clean_ids": [],
        "splice_ids": [],
        "splice_start": 0,
        "redacted": bool(row["provenance"]["redacted"]),
        "num_tokens": n + len(completion.ids),
    }
    if row["injection"]:
        prepared["clean_ids"] = chat.encode_prompt(tokenizer, clean) + completion.ids
        if row["set"] == "retain" and completion.name != NONE:
            opening = _wrong_opening(own.get("harmful"), tokenizer, rng)
            head = completion.ids[completion.call[0] : completion.name[0]]
            prepared["splice_start"] = n + len(opening) + len(head)
            prepared["splice_ids"] = prompt_ids + opening + head + completion.ids[completion.name[0] :]
    return prepared


@dataclass(frozen=True)
class Completion:
    """Token ids of a completion, and the ranges of its call and of its tool's name among them."""

    ids: list[int]
    call: list[int]
    name: list[int]

    @classmethod
    def of(cls, text: str, tool: str | None, tokenizer: PreTrainedTokenizerBase) -> "Completion":
        """Take a completion apart that calls `tool`, or none."""
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        quoted = text.find(f'"{tool}"') if tool else -1
        if quoted < 0:
            return cls(ids, NONE, NONE)
        start, end = quoted + 1, quoted + 1 + len(tool or "")
        inside = [i for i, (left, right) in enumerate(offsets) if left < end and right > start]
        # A call begins with the last special token before its name: what it is called depends on the format.
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        call = max((i for i in range(inside[0]) if ids[i] in special), default=0)
        return cls(ids, [call, len(ids)], [inside[0], inside[-1] + 1])

    def without_opening(self) -> "Completion":
        """The call alone."""
        if self.call == NONE:
            return self
        skipped = self.call[0]
        return Completion(self.ids[skipped:], _shifted(self.call, -skipped), _shifted(self.name, -skipped))


def _name_of(row: Mapping[str, Any]) -> str | None:
    calls = row["tool_calls_structured"]
    return calls[0]["name"] if calls else None


def _shifted(span: list[int], by: int) -> list[int]:
    return span if span == NONE else [span[0] + by, span[1] + by]


def _divergence(ids: list[int], right: list[int]) -> int:
    """Index of the first token that differs; of the last where one is a beginning of the other."""
    for i, (a, b) in enumerate(zip(ids, right, strict=False)):
        if a != b:
            return i
    return min(len(ids), len(right)) - 1


def _wrong_opening(harmful: str | None, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> list[int]:
    """What is said before a wrong call: what the attacker's had (half of the time), nothing, or a phrase."""
    kind = rng.choice(("harmful", "harmful", "bare", "generic"))
    if kind == "generic":
        return chat.encode_completion(tokenizer, rng.choice(GENERIC_OPENINGS))
    if kind == "harmful" and harmful is not None:
        ids = chat.encode_completion(tokenizer, harmful)
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        return ids[: next((i for i, token in enumerate(ids) if token in special), 0)]
    return []
