"""Augmentation of samples before they are tokenized.

The injected span is varied, so that a model cannot recognize the attack by the characters around it. Siblings get the
same variation: their prompts stay equal. Random words are put in or around requests and tool results, so that it does
not learn their wording by heart. Completions stay as they are: the terms on retain rows compare the adapted with the
frozen network on the same tokens, with the same words in the clean prompt, so the completion need not be the answer to
the new text.
"""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from cb_datasets.sample import RETAIN


_WORD = re.compile(r"\w+")

# Characters put around an injected span, see `wrap_probability`.
PUNCTUATION = "!#$%&*+-/:;<=>?@[]^_{|}~"


@dataclass(frozen=True)
class Augmentation:
    """
    Settings of the augmentation.

    Args:
        seed (`int`):
            Seed. The variation of the injected span depends on it and on the row's `pair`, which siblings share; all
            else, and the span of a row without a pair, on it and on the row's `id`.
        max_length (`float`, *optional*, defaults to infinity):
            Maximum number of tokens. A row that would become longer is left as it is.
        wrap_probability (`float`, *optional*, defaults to `0.0`):
            Probability that the injected span is wrapped in one to three random punctuation marks or numbers on each
            side.
        noise_probability (`float`, *optional*, defaults to `0.0`):
            Probability that, in a span that is not wrapped, each word is dropped or replaced with probability 0.15.
        bare_head_probability (`float`, *optional*, defaults to `0.0`):
            Probability that the text before the call is removed from a harmful completion.
        text_noise_probability (`float`, *optional*, defaults to `0.0`):
            Probability, for the last user message and for each tool result behind it, that sentences of one to six
            random words are put before it, after it, or on both sides, or that, in a row of Dr without an attack,
            random words replace some of its words.
        words (`tuple[str, ...]`, *optional*):
            Words to choose from, see [`user_words`].
        adversary_rate (`float`, *optional*, defaults to `0.0`):
            Fraction of the attacked prompts that the adversary perturbs.
        adversary_padding (`int`, *optional*, defaults to `0`):
            Maximum number of random tokens that are put around the injected span of such a prompt.
        token_ids (`tuple[int, ...]`, *optional*):
            Tokens to choose from.
    """

    seed: int
    max_length: float = math.inf
    wrap_probability: float = 0.0
    noise_probability: float = 0.0
    bare_head_probability: float = 0.0
    text_noise_probability: float = 0.0
    words: tuple[str, ...] = ()
    adversary_rate: float = 0.0
    adversary_padding: int = 0
    token_ids: tuple[int, ...] = ()


def user_words(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The lower-case words of user messages in rows without an attack, sorted."""
    texts = (
        message["content"]
        for row in rows
        if not row["injection"]
        for message in row["messages"]
        if message["role"] == "user"
    )
    return tuple(sorted({word for text in texts for word in _WORD.findall(text) if word.islower()}))


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that text consists of: all but the added ones."""
    return tuple(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)))


def augment_texts(row: dict[str, Any], augmentation: Augmentation) -> dict[str, Any]:
    """
    The row with random words in or around its last user message and the tool results behind it.

    An attacked row and its siblings get the same words, around the texts only; its injected spans move along. Harmful
    rows without an injection stay as they are.
    """
    # A stream of its own, so that this augmentation does not shift the random numbers of the others
    attacked = bool(row["injection"])
    key = row["pair"] if attacked and row["pair"] else row["id"]
    rng = random.Random(f"{augmentation.seed} {key} words")
    user_turns = [i for i, message in enumerate(row["messages"]) if message["role"] == "user"]
    if not (attacked or row["set"] == RETAIN) or not user_turns or not augmentation.words:
        return row
    messages, injection = [*row["messages"]], row["injection"]
    for index, message in enumerate(messages):
        is_read = index == user_turns[-1] or (index > user_turns[-1] and message["role"] == "tool")
        if not is_read or not message["content"] or rng.random() >= augmentation.text_noise_probability:
            continue
        if not attacked and rng.random() < 0.5:
            content = _replace_words(message["content"], augmentation.words, rng)
        else:
            before, after = _random_sentences(augmentation.words, rng)
            content = f"{before}{message['content']}{after}"
            injection = [_moved(span, len(before)) if span["message"] == index else span for span in injection]
        messages[index] = {**message, "content": content}
    return {**row, "messages": messages, "injection": injection}


def _random_sentences(words: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """A sentence of one to six random words to put before a text, one to put behind it, or both; else empty."""

    def sentence() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 6))).capitalize() + rng.choice(".!?,")

    before, after = rng.choice([(True, False), (False, True), (True, True)])
    return f"{sentence()} " if before else "", f" {sentence()}" if after else ""


def _moved(span: dict[str, Any], by: int) -> dict[str, Any]:
    return {**span, "start": span["start"] + by, "end": span["end"] + by}


def _replace_words(text: str, words: Sequence[str], rng: random.Random) -> str:
    """Replace lower-case words, each with probability 0.3. Names and numbers stay."""

    def replacement(word: re.Match[str]) -> str:
        return rng.choice(words) if word[0].islower() and rng.random() < 0.3 else word[0]

    return _WORD.sub(replacement, text)


def augment_injection(row: dict[str, Any], augmentation: Augmentation) -> dict[str, Any]:
    """The row with its injected spans varied, and `injection` updated to their new positions."""
    rng = _rng_of_pair(row, augmentation)
    wraps = rng.random() < augmentation.wrap_probability
    adds_noise = not wraps and rng.random() < augmentation.noise_probability
    if not row["injection"] or not (wraps or adds_noise):
        return row
    contents = [message["content"] for message in row["messages"]]
    spans: list[dict[str, Any]] = []
    # Characters by which the text after the last span of each message has moved
    shift = [0] * len(contents)
    for span in sorted(row["injection"], key=lambda span: (span["message"], span["start"])):
        message = span["message"]
        start, end = span["start"] + shift[message], span["end"] + shift[message]
        text = contents[message][start:end]
        new = _wrap(text, rng) if wraps else _add_noise(text, rng)
        contents[message] = contents[message][:start] + new + contents[message][end:]
        shift[message] += len(new) - len(text)
        spans.append({"message": message, "start": start, "end": start + len(new)})
    messages = [{**message, "content": content} for message, content in zip(row["messages"], contents, strict=True)]
    return {**row, "messages": messages, "injection": spans}


def is_perturbed(row: Mapping[str, Any], augmentation: Augmentation) -> bool:
    """Whether the adversary perturbs the injection of a row. Siblings, which share their prompt, share the answer."""
    return _rng_of_pair(row, augmentation, "adversary").random() < augmentation.adversary_rate


def pad_injection(
    prompt: list[int], injection: Sequence[tuple[int, int]], row: Mapping[str, Any], augmentation: Augmentation
) -> tuple[list[int], list[tuple[int, int]]]:
    """
    The prompt with random tokens before and after one injected span, which grows by them.

    An attacker who searches writes more than the injection. The adversary finds the worst embeddings for these places,
    so that the tokens themselves hardly matter.

    Args:
        prompt (`list[int]`):
            Token ids.
        injection (`Sequence[tuple[int, int]]`):
            Token ranges of the injected spans, in order.
        row (`Mapping[str, Any]`):
            The sample; siblings get the same tokens.
        augmentation ([`Augmentation`]):
            Settings of the augmentation.

    Returns:
        `tuple[list[int], list[tuple[int, int]]]`: the new prompt and spans.
    """
    rng = _rng_of_pair(row, augmentation, "padding")
    number = rng.randrange(len(injection))
    total = rng.randint(0, augmentation.adversary_padding)
    num_before = rng.choice((0, total // 2, total // 4))
    before, after = ([rng.choice(augmentation.token_ids) for _ in range(n)] for n in (num_before, total - num_before))
    start, end = injection[number]
    spans = [
        *injection[:number],
        (start, end + total),
        *((left + total, right + total) for left, right in injection[number + 1 :]),
    ]
    return prompt[:start] + before + prompt[start:end] + after + prompt[end:], spans


def _rng_of_pair(row: Mapping[str, Any], augmentation: Augmentation, *stream: str) -> random.Random:
    """Random numbers that siblings share: they share their prompt, and must share it afterwards."""
    return random.Random(" ".join((str(augmentation.seed), row["pair"] or row["id"], *stream)))


def _wrap(text: str, rng: random.Random) -> str:
    """Put the text between one to three random marks on each side."""
    left, right = ("".join(_random_mark(rng) for _ in range(rng.randint(1, 3))) for _ in range(2))
    return f"{left}{text}{right}"


def _random_mark(rng: random.Random) -> str:
    """A punctuation mark, or a number like those of logs and lists."""
    return rng.choice(PUNCTUATION) if rng.random() < 0.6 else str(rng.randint(0, 9999))


def _add_noise(text: str, rng: random.Random) -> str:
    """Drop or replace words of the text, each with probability 0.15; never all of them."""
    words = text.split(" ")
    noisy: list[str] = []
    for word in words:
        if rng.random() >= 0.15:
            noisy.append(word)
        elif rng.random() < 0.5:
            noisy.append(rng.choice(words))
    return " ".join(noisy) if any(noisy) else text
