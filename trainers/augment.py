"""Augmentation of samples before they are tokenized.

The injected span is varied, with a seed, so that a model cannot learn the attack by its quotation marks. Siblings are
varied alike: their prompts stay the same. Retain rows are varied too, with random words in the request or around it:
terms that compare the two networks on the same tokens need no completion made anew.
"""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


_WORD = re.compile(r"\w+")

# Put around an injected span by `span_wrap_probability`.
PUNCTUATION = "!#$%&*+-/:;<=>?@[]^_{|}~"


@dataclass(frozen=True)
class Augmentation:
    """
    How rows are varied when they are tokenized.

    Args:
        seed (`int`):
            Seed. A row's variation depends on it and on what siblings have in common, or else on the row's `id`.
        max_length (`float`):
            A row that would have more tokens than this stays as it is.
        wrap_probability (`float`):
            Probability that an injected span is put between one to three random punctuation marks or numbers.
        noise_probability (`float`):
            Probability that, if it is not, each of its words is dropped or replaced with probability 0.15.
        bare_head_probability (`float`):
            Probability that a harmful completion goes without what it says before its call.
        retain_noise_probability (`float`):
            Probability that in a row of Dr without an attack random words replace some of those that the user says
            last, or one to six are put before them, after them, or on both sides.
        words (`tuple[str, ...]`):
            The words, see [`words_of`].
    """

    seed: int
    max_length: float = math.inf
    wrap_probability: float = 0.0
    noise_probability: float = 0.0
    bare_head_probability: float = 0.0
    retain_noise_probability: float = 0.0
    words: tuple[str, ...] = ()


def words_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The words in small letters that users say in rows without an attack."""
    said = (
        message["content"]
        for row in rows
        if not row["injection"]
        for message in row["messages"]
        if message["role"] == "user"
    )
    return tuple(sorted({word for text in said for word in _WORD.findall(text) if word.islower()}))


def augment_request(row: dict[str, Any], variation: Augmentation) -> dict[str, Any]:
    """The row with random words in what the user says last or around it, if it is one that may be varied."""
    rng = random.Random(f"{variation.seed} {row['id']} words")
    spoken = [i for i, message in enumerate(row["messages"]) if message["role"] == "user"]
    may = row["set"] == "retain" and not row["injection"] and spoken and variation.words
    if not may or rng.random() >= variation.retain_noise_probability:
        return row

    def sentence() -> str:
        return " ".join(rng.choices(variation.words, k=rng.randint(1, 6))).capitalize() + rng.choice(".!?,")

    messages, last = [*row["messages"]], spoken[-1]
    content = messages[last]["content"]
    if rng.random() < 0.5:
        content = _reworded(content, variation.words, rng)
    else:
        before, after = ([sentence() for _ in range(n)] for n in rng.choice([(1, 0), (0, 1), (1, 1)]))
        content = " ".join([*before, content, *after])
    messages[last] = {**messages[last], "content": content}
    return {**row, "messages": messages}


def _reworded(text: str, words: Sequence[str], rng: random.Random) -> str:
    """The text with some three in ten of its words in small letters replaced."""

    def reword(word: re.Match[str]) -> str:
        return rng.choice(words) if word[0].islower() and rng.random() < 0.3 else word[0]

    return _WORD.sub(reword, text)


def augment_injection(row: dict[str, Any], variation: Augmentation) -> dict[str, Any]:
    """The row with its injected spans varied, and `injection` telling where they are now."""
    rng = random.Random(f"{variation.seed} {row['pair'] or row['id']}")
    chance = rng.random()
    wraps = chance < variation.wrap_probability
    makes_noise = not wraps and rng.random() < variation.noise_probability
    if not row["injection"] or not (wraps or makes_noise):
        return row
    contents = [message["content"] for message in row["messages"]]
    spans: list[dict[str, Any]] = []
    shift = [0] * len(contents)
    for span in sorted(row["injection"], key=lambda span: (span["message"], span["start"])):
        message = span["message"]
        start, end = span["start"] + shift[message], span["end"] + shift[message]
        text = contents[message][start:end]
        new = _wrapped(text, rng) if wraps else _noisy(text, rng)
        contents[message] = contents[message][:start] + new + contents[message][end:]
        shift[message] += len(new) - len(text)
        spans.append({"message": message, "start": start, "end": start + len(new)})
    messages = [{**message, "content": content} for message, content in zip(row["messages"], contents, strict=True)]
    return {**row, "messages": messages, "injection": spans}


def _wrapped(text: str, rng: random.Random) -> str:
    left, right = ("".join(_mark(rng) for _ in range(rng.randint(1, 3))) for _ in range(2))
    return f"{left}{text}{right}"


def _mark(rng: random.Random) -> str:
    """A punctuation mark, or a number as a log or a list has."""
    return rng.choice(PUNCTUATION) if rng.random() < 0.6 else str(rng.randint(0, 9999))


def _noisy(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    noisy: list[str] = []
    for word in words:
        if rng.random() >= 0.15:
            noisy.append(word)
        elif rng.random() < 0.5:
            noisy.append(rng.choice(words))
    return " ".join(noisy) if any(noisy) else text
