"""Copying exercises: random tokens with something among them that has to be written again.

From requests alone the agents learn to choose tools but hardly to copy arguments: few tokens of a row depend on
copying, and all others are easier to learn. Exercises teach it within some hundred steps, and keep it in the training
on requests. Their order matters. A sequence repeated as a whole teaches what follows what (induction); only then are
several names in a row learnt, without which an agent begins one name and ends another.
"""

import random
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerFast

from builders.lookalike.wording import SYLLABLES


# A drill makes batches: `(ids, labels)` of as many exercises as it is asked for.
Drill = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class InductionDrill:
    """A random sequence of syllables, and the same sequence again."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random):
        self.rng = rng
        syllables = [*SYLLABLES, *(syllable.capitalize() for syllable in SYLLABLES)]
        self.syllables = tokenizer.convert_tokens_to_ids(syllables)

    def __call__(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`(ids, labels)` of `size` exercises, all of one length."""
        length = self.rng.choice((8, 12, 16, 24))
        ids = torch.tensor([self.rng.sample(self.syllables, length) * 2 for _ in range(size)])
        labels = torch.full_like(ids, -100)
        labels[:, length + 1 :] = ids[:, length + 1 :]  # the first token of the second half can not be known
        return ids, labels


class CopyDrill:
    """Random tokens with a name among them, then a quote and the same name again."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random):
        self.rng = rng
        self.first = tokenizer.convert_tokens_to_ids([syllable.capitalize() for syllable in SYLLABLES])
        self.later = tokenizer.convert_tokens_to_ids(list(SYLLABLES))
        self.space, self.quote = tokenizer.convert_tokens_to_ids(["\u0120", '":\u0120"'])
        special = len(tokenizer.all_special_ids)
        self.others = sorted(set(range(special, len(tokenizer))) - set(self.first) - set(self.later))

    def __call__(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`(ids, labels)` of `size` exercises."""
        ids = torch.tensor([self.rng.choices(self.others, k=28) for _ in range(size)])
        labels = torch.full_like(ids, -100)
        for row in range(size):
            first, *later = self.rng.sample(range(len(SYLLABLES)), 3)
            name = torch.tensor([self.first[first], *(self.later[index] for index in later)])
            place = self.rng.randint(0, 19)
            ids[row, place], ids[row, 24] = self.space, self.quote
            ids[row, place + 1 : place + 4] = ids[row, 25:] = labels[row, 25:] = name
        return ids, labels


class NamesDrill:
    """Random tokens with several names among them, then quotes: the first syllable of a name, and the rest of it.

    Which name is asked for is given by its first syllable. Among several names, as in an attacked run, an agent
    otherwise begins one name and ends another.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random):
        self.rng = rng
        self.copy = CopyDrill(tokenizer, rng)

    def __call__(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`(ids, labels)` of `size` exercises, all of one length."""
        rng, copy = self.rng, self.copy
        number, syllables = rng.randint(3, 6), rng.randint(2, 3)
        gap = rng.choice((8, 16, 24))  # tokens from the beginning of one name to that of the next
        ids = torch.tensor([rng.choices(copy.others, k=number * (gap + syllables + 1)) for _ in range(size)])
        labels = torch.full_like(ids, -100)
        for row in range(size):
            parts = rng.sample(range(len(SYLLABLES)), number * syllables)
            names = [
                torch.tensor([copy.first[first], *(copy.later[index] for index in later)])
                for first, *later in (parts[i : i + syllables] for i in range(0, len(parts), syllables))
            ]
            for index, name in enumerate(names):
                place = index * gap + rng.randint(0, gap - syllables - 1)
                ids[row, place], ids[row, place + 1 : place + 1 + syllables] = copy.space, name
            rng.shuffle(names)
            for index, name in enumerate(names):
                place = number * gap + index * (syllables + 1)
                ids[row, place], ids[row, place + 1 : place + 1 + syllables] = copy.quote, name
                labels[row, place + 2 : place + 1 + syllables] = name[1:]
        return ids, labels


class NumberDrill:
    """Random tokens with a number among them, then a colon and the same number again."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random):
        self.rng = rng
        vocabulary = tokenizer.get_vocab()
        self.numbers = [vocabulary[str(number)] for number in range(10, 100) if str(number) in vocabulary]
        self.space, self.colon = tokenizer.convert_tokens_to_ids(["\u0120", '":'])
        special = len(tokenizer.all_special_ids)
        self.others = sorted(set(range(special, len(tokenizer))) - set(self.numbers))

    def __call__(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`(ids, labels)` of `size` exercises, all of one length."""
        length = self.rng.choice((16, 28, 40))
        ids = torch.tensor([self.rng.choices(self.others, k=length) for _ in range(size)])
        labels = torch.full_like(ids, -100)
        for row in range(size):
            place, number = self.rng.randint(0, length - 6), self.rng.choice(self.numbers)
            ids[row, place], ids[row, place + 1] = self.space, number
            ids[row, -3], ids[row, -2] = self.colon, self.space
            ids[row, -1] = labels[row, -1] = number
        return ids, labels
