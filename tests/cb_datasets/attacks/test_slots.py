"""Slots before and behind an injection, and the round trip of their text."""

import pytest
import torch

from cb_datasets.attacks.slots import UnsearchableError, make_slots, place_tokens, with_affixes
from cb_datasets.chat import encode_completion, encode_prompt, injection_tokens

from .conftest import attacked_row


def slots_of(agent, row, usable, lengths, seed=0):
    return make_slots(agent.tokenizer, [row], lengths, usable, torch.Generator().manual_seed(seed))[0]


def test_affixes_extend_the_last_injection_and_its_span(row):
    row["messages"].append({**row["messages"][1], "role": "tool", "content": "[a page] the end"})
    row["injection"] = [{"message": 2, "start": 0, "end": 8}, row["injection"][0]]
    longer = with_affixes(row, "oh ", " now")
    assert longer["messages"][2]["content"] == "oh [a page] now the end"
    assert longer["injection"] == [{"message": 2, "start": 0, "end": 15}, row["injection"][1]]
    assert row["messages"][2]["content"] == "[a page] the end", "the row itself is unchanged"


@pytest.mark.parametrize("lengths", [(0, 6), (5, 0), (4, 6)])
def test_slots_are_where_the_tokens_of_their_text_are(agent, row, usable, lengths):
    slots = slots_of(agent, row, usable, lengths)
    affixes = slots.affixes(slots.initial)
    longer = with_affixes(row, affixes.prefix, affixes.suffix)
    assert slots.prompt_ids(slots.initial) == slots.ids == encode_prompt(agent.tokenizer, longer)
    assert len(slots.initial) == sum(lengths) and all(usable[token] for token in slots.initial)
    [(start, stop)] = injection_tokens(agent.tokenizer, longer)
    assert start <= slots.positions[0] and slots.positions[-1] < stop, "all slots are in the injection"
    assert bool(affixes.prefix) == bool(lengths[0]) and bool(affixes.suffix) == bool(lengths[1])
    other = slots.initial[::-1]
    assert [slots.prompt_ids(other)[position] for position in slots.positions] == other


def test_ids_that_are_tokenized_differently_do_not_round_trip(agent, row, usable):
    slots = slots_of(agent, row, usable, (0, 6))
    assert slots.round_trips(slots.initial) and slots.may_round_trip([slots.initial]) == [True]
    whole = encode_completion(agent.tokenizer, " internet")
    halves = [token for piece in (" inter", "net") for token in encode_completion(agent.tokenizer, piece)]
    assert whole != halves, "the pieces must differ from the whole word for this test"
    merged = halves + slots.initial[len(halves) :]
    assert not slots.round_trips(merged) and slots.may_round_trip([merged, slots.initial]) == [False, True]
    newlines = encode_completion(agent.tokenizer, "\n\n")
    assert not slots.round_trips(slots.initial[: -len(newlines)] + newlines), "the template strips a message's end"


def test_the_quick_test_agrees_with_the_exact_one(agent, row, usable):
    slots = slots_of(agent, row, usable, (3, 3))
    generator, tokens = torch.Generator().manual_seed(1), usable.nonzero()[:, 0]
    candidates = [tokens[torch.randint(len(tokens), (6,), generator=generator)].tolist() for _ in range(80)]
    exact = [slots.round_trips(candidate) for candidate in candidates]
    assert slots.may_round_trip(candidates) == exact and 5 < sum(exact) < 75


def test_several_prompts_share_their_initial_tokens(agent, rows, usable):
    slots = make_slots(agent.tokenizer, list(rows), (2, 4), usable, torch.Generator().manual_seed(0))
    assert len({tuple(each.initial) for each in slots}) == 1 and len({tuple(each.ids) for each in slots}) == 3


def test_tokens_that_merge_with_their_neighbours_are_not_placed(agent, prompt, usable):
    halves = [encode_completion(agent.tokenizer, piece)[0] for piece in (" inter", "net")]
    row = attacked_row(prompt, "Search.", "search_web", "send_email")
    assert place_tokens(agent.tokenizer, row, [], halves) is None


def test_a_prompt_where_no_tokens_can_be_placed_is_named(agent, prompt, usable):
    row = attacked_row(prompt, "Search.", "search_web", "send_email", injection="Look at the inter")
    only_net = torch.zeros_like(usable)
    only_net[encode_completion(agent.tokenizer, "net")[0]] = True
    with pytest.raises(UnsearchableError, match="tokenized to their own ids") as caught:
        slots_of(agent, row, only_net, (0, 1))
    assert caught.value.reason == "no_slots"


def test_without_slots_there_is_nothing_to_search(agent, row, usable):
    with pytest.raises(ValueError, match="at least one token"):
        slots_of(agent, row, usable, (0, 0))


def test_special_tokens_and_partial_characters_are_not_usable(agent, usable):
    texts = [agent.tokenizer.decode([token]) for token in usable.nonzero()[:, 0].tolist()]
    assert len(texts) > 1000
    assert not [text for text in texts if text in agent.tokenizer.all_special_tokens or "\ufffd" in text]
    assert all(text.strip() for text in texts)


def test_affixes_stay_inside_the_white_space_that_joins_an_injection(row):
    content = row["messages"][1]["content"]
    row["messages"][1] = {**row["messages"][1], "content": "Look in \n\n[a page]\n\nour files"}
    row["injection"] = [{"message": 1, "start": 8, "end": 20}]
    longer = with_affixes(row, "oh ", " now")
    assert content != longer["messages"][1]["content"] == "Look in \n\noh [a page] now\n\nour files"
    assert longer["injection"] == [{"message": 1, "start": 8, "end": 27}]
