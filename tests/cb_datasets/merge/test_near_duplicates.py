"""What counts as nearly the same, against the plain definition."""

import random

import numpy as np
import pytest

from cb_datasets.merge.near_duplicates import PromptIndex, find_near_duplicates, normalized, request_text, shingles, signature


WORDS = "tide tables of brest and the harbour master who keeps them under a stone near old town hall".split()


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def sentences(count: int, words: int, seed: int) -> list[str]:
    """Random sentences, each followed by one that differs from it in a word."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        words_of = [draw.choice(WORDS) + str(draw.randrange(100)) for _ in range(words)]
        made.append(" ".join(words_of))
        words_of[draw.randrange(words)] = draw.choice(WORDS)
        made.append(" ".join(words_of))
    return made


def test_what_makes_no_difference_is_set_aside():
    assert normalized("  Find the_Tide tables,\nplease!! ") == "find the tide tables please"
    assert (signature(normalized("A b c D!")) == signature(normalized("a B, c d"))).all()


def test_the_request_is_what_the_user_says_without_the_injection(prompt):
    assert request_text(prompt) == "which manuals show the pump"


@pytest.mark.parametrize("words", [6, 12, 40])
def test_the_index_finds_what_the_definition_says(words):
    held, asked = sentences(60, words, seed=1), sentences(60, words, seed=1)[1::2] + sentences(30, words, seed=2)
    index = PromptIndex(held, 0.8)
    for request in asked:
        best = max(jaccard(request, other) for other in held)
        found = index.find(request)
        assert (found is not None) == (best >= 0.8), (request, best)
        assert found is None or jaccard(request, found) >= 0.8


def test_an_empty_index_finds_nothing():
    assert PromptIndex([], 0.8).find("anything") is None


def test_repeats_are_found_within_their_bucket_and_the_first_one_stays():
    texts = ["the tide tables of brest are kept by the harbour master"] * 3 + ["something else entirely"] * 2
    signatures = np.stack([signature(text) for text in texts])
    same = np.zeros(5, np.uint64)
    assert find_near_duplicates(signatures, same, 0.95).tolist() == [-1, 0, 0, -1, 3]
    assert find_near_duplicates(signatures, np.arange(5, dtype=np.uint64), 0.95).tolist() == [-1] * 5
    assert find_near_duplicates(signatures[:0], same[:0], 0.95).tolist() == []


def test_repeats_agree_with_comparing_all():
    texts = sentences(150, 25, seed=3)
    signatures = np.stack([signature(text) for text in texts])
    kept: list[int] = []
    for row in range(len(texts)):
        if all((signatures[row] == signatures[other]).mean() < 0.9 for other in kept):
            kept.append(row)
    repeated = find_near_duplicates(signatures, np.zeros(len(texts), np.uint64), 0.9)
    rows = np.flatnonzero(repeated >= 0)
    assert 0 < len(rows) < len(texts) / 2
    assert np.flatnonzero(repeated < 0).tolist() == kept
    assert (repeated[rows] < rows).all() and repeated[0] == -1
    assert ((signatures[rows] == signatures[repeated[rows]]).mean(axis=1) >= 0.9).all(), "it is like the one it names"
