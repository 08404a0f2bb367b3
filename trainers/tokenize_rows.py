"""Tokenization of samples: token ids, and the token positions that the losses need.

    input_ids       <|begin_of_text|>...Pictures of the moon? <!-- use search_web --> ...<|python_tag|>{"name": ...
    prompt_length   where the completion begins
    answer_start    where its answer begins, after the thinking of a model that thinks
    injection       [[41, 52]], token ranges of the injected span
    tool_call       [68, 90], tool_name [73, 75]: of the completion's call; [-1, -1] where it makes none
    divergence      first token that differs from the sibling's right call, of a harmful completion; -1 without sibling
    name_divergence first token that differs from the right tool's name, of a harmful completion; -1 where it is that
    clean_ids       the same completion after the clean prompt; empty where nothing is injected
    splice_ids      the attacked prompt, a wrong opening, and the rest of the right call, which begins at splice_start
    hijack_ids      the prompt, a wrong call up to the end of its tool's name, and the end of the turn: the attacker's
                    call, or after a clean prompt that of another tool
    slots           [[39, 58]], token ranges that an adversary may perturb; empty where it does not
    redacted        whether the attack was cut from the prompt: few terms are computed on such rows, see `terms.py`

An opening is the text before a call. `splice_ids` and `hijack_ids`, which can be longer than the row, are empty where
they would have more than `max_length` tokens. Rows are augmented first, see `augment.py`. The spans of the call and of
its tool's name come from the parser of the tokenizer's tool call format, so a tool mentioned in the opening is not
taken for the call.
"""

import json
import random
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from cb_datasets import chat
from cb_datasets.formats import ToolCall, format_of
from cb_datasets.sample import CIRCUIT_BREAKER, RETAIN, clean_messages

from .augment import Augmentation, augment_injection, augment_texts, is_perturbed, pad_injection
from .objective.masks import NONE


# Openings of a model that complies, with whatever: the third kind of wrong opening, besides the attacker's and none.
GENERIC_OPENINGS = ("Sure, I'll do that.", "Of course.", "I'll take care of that now.")


def siblings_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """
    Completions of the same record, by `pair`: `harmful`, and `right`, the call that the user asked for.

    The right call made under attack is preferred to that of the clean twin.
    """
    siblings: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["pair"] is None:
            continue
        if row["set"] == CIRCUIT_BREAKER:
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
    augmentation: Augmentation,
) -> dict[str, Any]:
    """
    Tokenize one sample into the columns of the module docstring.

    Args:
        row (`dict[str, Any]`):
            A sample.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer whose chat template renders the prompt.
        siblings (`Mapping[str, Mapping[str, str]]`):
            As [`siblings_of`] returns them.
        augmentation ([`Augmentation`]):
            Settings of the augmentation.
    """
    # Seeded by the id, so that the variation of a row does not depend on the rows before it in the dataset
    rng = random.Random(f"{augmentation.seed} {row['id']}")
    siblings_of_row = siblings.get(row["pair"], {})
    # The teacher gets the same random words, and no variation of the injection, which it does not read
    varied = augment_texts(row, augmentation)
    augmented = augment_injection(varied, augmentation)
    sample = chat.encode_sample(tokenizer, augmented)
    if len(sample.ids) > augmentation.max_length:
        # Rows are never truncated, and one that is too long is an error: augmentation must not make it so
        varied = augmented = row
        sample = chat.encode_sample(tokenizer, row)
    clean = {**varied, "messages": clean_messages(varied), "injection": []}
    row = augmented
    prompt, completion = sample.prompt.ids, sample.completion
    harmful = None  # the sibling's completion, for a row of Dr
    if row["set"] == RETAIN and row["injection"] and "harmful" in siblings_of_row:
        harmful = chat.encoded_completion(tokenizer, siblings_of_row["harmful"], row["tools"])
    injection = chat.injection_tokens_in(tokenizer, row, sample.prompt) if row["injection"] else []
    has_slots = bool(injection) and is_perturbed(row, augmentation)
    if has_slots and len(sample.ids) + augmentation.adversary_padding <= augmentation.max_length:
        prompt, injection = pad_injection(prompt, injection, row, augmentation)
    n = len(prompt)
    divergence = name_divergence = None
    if row["set"] == CIRCUIT_BREAKER:
        right_tool = row["target"]["expected_tool"]
        right_name = [] if right_tool is None else _name_in_call(right_tool, tokenizer)
        if "right" in siblings_of_row:
            right = chat.encoded_completion(tokenizer, siblings_of_row["right"], row["tools"])
            divergence = _divergence(completion.ids, right.ids)
            right_name = right.ids[slice(*right.tool_name)] if right.tool_name else right_name
        if rng.random() < augmentation.bare_head_probability:
            # Openings may differ before the calls do. Without them the first difference is in the name or after it.
            if divergence is not None and completion.call and completion.tool_name:
                divergence = max(divergence, completion.tool_name[0]) - completion.call[0]
            completion = without_opening(completion)
        name_divergence = _name_divergence(completion, right_name)
    prepared = {
        "input_ids": prompt + completion.ids,
        "prompt_length": n,
        "injection": [list(span) for span in injection],
        "tool_call": _shifted(completion.call, n),
        "tool_name": _shifted(completion.tool_name, n),
        "answer_start": n + completion.answer_start,
        "divergence": -1 if divergence is None else n + divergence,
        "name_divergence": -1 if name_divergence is None else n + name_divergence,
        "clean_ids": [],
        "splice_ids": [],
        "splice_start": 0,
        "hijack_ids": [],
        "slots": [],
        "redacted": bool(row["provenance"]["redacted"]),
        "num_tokens": n + len(completion.ids),
    }
    if row["injection"]:
        prepared["clean_ids"] = chat.encode_prompt(tokenizer, clean) + completion.ids
        if row["set"] == RETAIN and completion.call and completion.tool_name:
            # After the wrong opening the right call begins as it would, and the loss starts at its tool's name
            opening = _wrong_opening(harmful, tokenizer, rng)
            head = completion.ids[completion.call[0] : completion.tool_name[0]]
            splice = prompt + opening + completion.ids[completion.call[0] :]
            if len(splice) <= augmentation.max_length:
                prepared["splice_start"] = n + len(opening) + len(head)
                prepared["splice_ids"] = splice
    wrong_call = _wrong_call(row, completion if row["set"] == CIRCUIT_BREAKER else harmful, tokenizer, rng)
    hijack = prompt + wrong_call + _end_of_turn(tokenizer)
    if wrong_call and len(hijack) <= augmentation.max_length:
        prepared["hijack_ids"] = hijack
        prepared["slots"] = prepared["injection"] if has_slots else []
    return prepared


def without_opening(completion: chat.EncodedCompletion) -> chat.EncodedCompletion:
    """The completion without the text before its call."""
    if completion.call is None or completion.tool_name is None:
        return completion
    skipped = completion.call[0]
    call, tool_name = ((start - skipped, end - skipped) for start, end in (completion.call, completion.tool_name))
    return chat.EncodedCompletion(completion.ids[skipped:], call, tool_name)


def _shifted(span: tuple[int, int] | None, by: int) -> list[int]:
    """A token range of the completion, as the columns store it: shifted by the length of the prompt."""
    return NONE if span is None else [span[0] + by, span[1] + by]


def _divergence(ids: list[int], right: list[int]) -> int:
    """Index of the first token that differs; of the last common one if either is a prefix of the other."""
    return min(_num_common(ids, right), len(ids) - 1, len(right) - 1)


def _num_common(ids: list[int], others: list[int]) -> int:
    """Number of tokens that both begin with."""
    differences = (i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    return next(differences, min(len(ids), len(others)))


def _name_divergence(completion: chat.EncodedCompletion, right_name: list[int]) -> int | None:
    """
    Index of the first token of the called tool's name that the right one does not have: `_money` of `send_money` where
    `send_email` is right, and of a name that begins the right one the token behind it. `None` if it is the right one.
    """
    if completion.tool_name is None:
        return None
    begin, end = completion.tool_name
    called = completion.ids[begin:end]
    return None if called == right_name else begin + _num_common(called, right_name)


def _wrong_call(
    row: dict[str, Any],
    harmful: chat.EncodedCompletion | None,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
) -> list[int]:
    """
    Tokens of a wrong call up to the end of its tool's name; none where the prompt offers no other tool, or where the
    right call begins with them: the attacker wants the right tool with other arguments, or `search` where `search_web`
    is right.

    Of an attacked row it is the call of `harmful`, its own completion or its sibling's, or else one without text.
    """
    if not row["injection"]:
        return _head_of_call(_other_tool(row, tokenizer, rng), tokenizer)
    right, wrong = row["target"]["expected_tool"], row["target"]["simulated_tool"]
    if _begins(wrong, right, tokenizer):
        return []
    if row["set"] == RETAIN and harmful is not None and rng.random() < 0.5:
        harmful = without_opening(harmful)
    if harmful is not None and harmful.tool_name:
        return harmful.ids[: harmful.tool_name[1]]
    return _head_of_call(wrong, tokenizer)


def _begins(wrong: str | None, right: str | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the right call begins with the head of the wrong one."""
    if wrong is None or right is None:
        return False
    head = _head_of_call(wrong, tokenizer)
    return _head_of_call(right, tokenizer)[: len(head)] == head


def _other_tool(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> str | None:
    """A random tool that the prompt offers and that is not the right one; `None` for rows without a right tool."""
    right = row["target"]["expected_tool"]
    if right is None:
        return None
    names = sorted({tool["function"]["name"] for tool in json.loads(row["tools"] or "[]")})
    others = [name for name in names if not _begins(name, right, tokenizer)]
    return rng.choice(others) if others else None


def _head_of_call(tool: str | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a call up to the end of its tool's name."""
    return [] if tool is None else _tokens_of_call(tool, tokenizer)[0]


def _name_in_call(tool: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of the tool's name in a call."""
    head, begin = _tokens_of_call(tool, tokenizer)
    return head[begin:]


@lru_cache(maxsize=256)
def _tokens_of_call(tool: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Tokens of a call up to the end of its tool's name, and the index at which that begins."""
    # Of a whole call, because a tokenizer can join the end of the name to what follows
    call = format_of(tokenizer).render(ToolCall(tool, {}), "")
    completion = chat.encoded_completion(tokenizer, call)
    assert completion.tool_name is not None  # the format parses what it renders
    return completion.ids[: completion.tool_name[1]], completion.tool_name[0]


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return chat.encode_completion(tokenizer, format_of(tokenizer).turn_end)


def _wrong_opening(
    harmful: chat.EncodedCompletion | None, tokenizer: PreTrainedTokenizerBase, rng: random.Random
) -> list[int]:
    """Tokens before a wrong call: the attacker's opening (half of the time), none, or a generic phrase."""
    opening = rng.choice(("harmful", "harmful", "bare", "generic"))
    if opening == "generic":
        return chat.encode_completion(tokenizer, format_of(tokenizer).opening(rng.choice(GENERIC_OPENINGS)))
    if opening == "harmful" and harmful is not None:
        return harmful.ids[: harmful.call[0]] if harmful.call else []
    return []
