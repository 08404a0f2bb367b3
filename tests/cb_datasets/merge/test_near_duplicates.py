"""Near-duplicates, compared with the exact Jaccard similarity and with MinHash of single texts."""

import random
import re
import zlib

import numpy as np
import pytest

from cb_datasets.merge.near_duplicates import find_near_duplicates
from cb_datasets.merge.prompt_index import PromptIndex, request_texts
from cb_datasets.merge.shingles import BATCH_TEXTS, hashed_shingles, normalized, shingles, signatures


WORDS = [
    "tide",
    "tables",
    "of",
    "brest",
    "and",
    "the",
    "harbour",
    "master",
    "who",
    "keeps",
    "them",
    "under",
    "a",
    "stone",
    "near",
    "old",
    "town",
    "hall",
]


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def sentences(count: int, words: int, seed: int) -> list[str]:
    """Random sentences, each followed by one that differs from it in one word."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        sentence = [rng.choice(WORDS) + str(rng.randrange(100)) for _ in range(words)]
        texts.append(" ".join(sentence))
        sentence[rng.randrange(words)] = rng.choice(WORDS)
        texts.append(" ".join(sentence))
    return texts


def test_case_punctuation_and_spacing_are_ignored():
    assert normalized("  Find the_Tide tables,\nplease!! ") == "find the tide tables please"
    assert len(set(map(normalized, ("A b c D!", "a B, c d")))) == 1


@pytest.mark.parametrize("letters", ["", "é", "ß", "\u2028", "\u0130"])
def test_every_character_ends_a_word_or_is_in_one_beside_any_letters(letters: str):
    """Texts in ASCII only are read by another way."""
    for character in map(chr, range(0x300)):
        text = f" {character}A{character}{character}b_{letters}"
        assert normalized(text) == re.sub(r"[\W_]+", " ", text.casefold()).strip()


def test_texts_are_hashed_together_as_they_are_alone():
    """Short ones, and those whose characters take one to four bytes."""
    texts = ["", "a", "tide", "tides", "tide tables", "marées à brest", "ブレスト港", "a🌊b🌊c🌊d", "tide tide tide"]
    hashes, starts = hashed_shingles(texts)
    for text, of_text in zip(texts, np.split(hashes, starts[1:]), strict=True):
        assert set(of_text.tolist()) == {zlib.crc32(shingle) for shingle in shingles(text)}
    texts *= BATCH_TEXTS // len(texts) + 1  # more than are hashed at a time
    assert (signatures(texts) == np.concatenate([signatures([text]) for text in texts])).all()


def test_the_signature_of_a_text_stays():
    """Another one would decide otherwise about rows that are nearly similar enough."""
    assert signatures(["tide tables of brest"])[0, :3].tolist() == [305909369, 709630285, 184564113]


def test_the_request_is_the_user_text_without_the_injection(prompt):
    assert request_texts(prompt) == ["which manuals show the pump"]


def test_a_request_behind_other_turns_is_a_text_of_its_own(prompt):
    asked = "Find the tide tables of Brest, please."
    turns = [{**prompt["messages"][0], "role": role, "content": text} for role, text in
             [("user", "Hello there!"), ("assistant", "Hello."), ("user", asked)]]  # fmt: skip
    row = {**prompt, "messages": turns, "injection": []}
    assert request_texts(row) == ["hello there find the tide tables of brest please", normalized(asked)]
    turns[-1]["content"] = "Yes, go on."
    assert request_texts(row) == ["hello there yes go on"]


@pytest.mark.parametrize("words", [6, 12, 40])
def test_the_index_agrees_with_the_exact_similarity(words):
    indexed, requests = sentences(60, words, seed=1), sentences(60, words, seed=1)[1::2] + sentences(30, words, seed=2)
    index = PromptIndex(indexed, 0.8)
    for request, match in zip(requests, index.find_all([[request] for request in requests]), strict=True):
        best = max(jaccard(request, other) for other in indexed)
        assert (match is not None) == (best >= 0.8), (request, best)
        assert match is None or jaccard(request, match) == best


def test_an_empty_index_finds_nothing():
    assert PromptIndex([], 0.8).find(["anything"]) is None


def test_a_later_text_is_looked_up_when_an_earlier_one_is_unknown():
    request = "find the tide tables of brest please"
    index = PromptIndex([request], 0.8)
    assert index.find(["hello there", request]) == request
    assert index.find(["hello there", "go on"]) is None


def test_near_duplicates_are_found_within_a_bucket_and_name_the_first_row():
    texts = ["the tide tables of brest are kept by the harbour master"] * 3 + ["something else entirely"] * 2
    values = signatures(texts)
    same = np.zeros(5, np.uint64)
    assert find_near_duplicates(values, same, 0.95).tolist() == [-1, 0, 0, -1, 3]
    assert find_near_duplicates(values, np.arange(5, dtype=np.uint64), 0.95).tolist() == [-1] * 5
    assert find_near_duplicates(values[:0], same[:0], 0.95).tolist() == []


def test_near_duplicates_agree_with_comparing_all_pairs():
    texts = sentences(150, 25, seed=3)
    values = signatures(texts)
    kept: list[int] = []
    for row in range(len(texts)):
        if all((values[row] == values[other]).mean() < 0.9 for other in kept):
            kept.append(row)
    duplicate_of = find_near_duplicates(values, np.zeros(len(texts), np.uint64), 0.9)
    rows = np.flatnonzero(duplicate_of >= 0)
    assert 0 < len(rows) < len(texts) / 2
    assert np.flatnonzero(duplicate_of < 0).tolist() == kept
    assert (duplicate_of[rows] < rows).all() and duplicate_of[0] == -1
    similarity = (values[rows] == values[duplicate_of[rows]]).mean(axis=1)
    assert (similarity >= 0.9).all(), "each row is similar to the one it names"
