"""Calls to render and parse again, and random edits of what models write."""

import random
from typing import Any


_LETTERS = "abz09 _-.,:;'\"\\/{}[]()<>|=\n\t\r\u00e9\u0301\u2028\u2011\u6f22\U0001f600"
_NUMBERS = (0, -1, 2**70, 0.7, -1.5e300, 1e-9, True, False, None)


def text_of(rng: random.Random) -> str:
    """Random text of up to 12 characters."""
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randrange(13)))


def value_of(rng: random.Random, depth: int = 3) -> Any:
    """A random JSON value."""
    match rng.randrange(4 if depth else 2):
        case 0:
            return text_of(rng)
        case 1:
            return rng.choice(_NUMBERS)
        case 2:
            return [value_of(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            return {text_of(rng): value_of(rng, depth - 1) for _ in range(rng.randrange(4))}


def edits(seeds: list[str], pieces: list[str], seed: int, n: int) -> list[str]:
    """`n` completions: the seeds, then seeds with a few pieces deleted, inserted, doubled or cut off."""
    rng, made = random.Random(seed), list(seeds)
    while len(made) < n:
        text = rng.choice(seeds)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text) + 1)
            end = min(len(text), start + rng.choice((0, 0, 1, 2, 8)))
            match rng.randrange(4):
                case 0:
                    text = text[:start] + text[end:]
                case 1:
                    text = text[:start] + rng.choice(pieces) + text[start:]
                case 2:
                    text = text[:end] + text[start:]
                case 3 if rng.random() < 0.3:
                    text = text[:start]
        made.append(text)
    return made
