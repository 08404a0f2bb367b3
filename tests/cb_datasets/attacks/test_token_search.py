"""The search for tokens on the tiny agent."""

import dataclasses

import torch

from cb_datasets.attacks import token_search
from cb_datasets.attacks.call_loss import CallLoss
from cb_datasets.attacks.search_budget import SearchBudget
from cb_datasets.attacks.slots import make_slots, with_affixes
from cb_datasets.attacks.token_search import search_tokens
from cb_datasets.chat import encode_prompt, render_prompt
from cb_datasets.outcomes import outcome_of

from ..conftest import LLAMA
from .conftest import greedy, opening_of


BUDGET = SearchBudget(steps=12, width=24, suffix_tokens=6, top_k=32)


def search(agent, rows, usable, seed=0, budget=BUDGET, are_successes=None):
    def are_hijacked(texts):
        outcomes = [outcome_of(text, row["target"], LLAMA) for row, text in zip(rows, texts, strict=True)]
        return set(outcomes) == {"attack_success"}

    slots = make_slots(agent.tokenizer, rows, budget.lengths, usable, torch.Generator().manual_seed(seed))
    with agent.network() as network:
        return search_tokens(
            [CallLoss(network, each, opening_of(agent, row), 8) for row, each in zip(rows, slots, strict=True)],
            slots,
            usable,
            budget,
            torch.Generator().manual_seed(seed),
            complete=lambda prompts: [greedy(agent, ids) for ids in prompts],
            are_successes=are_successes or are_hijacked,
        )


def never(texts):
    return False


def test_the_search_lowers_the_loss_and_hijacks_the_agent(agent, row, usable):
    prompt_ids = encode_prompt(agent.tokenizer, row)
    assert outcome_of(greedy(agent, prompt_ids), row["target"], LLAMA) == "correct"
    result = search(agent, [row], usable)
    assert result.won and result.steps > 0 and result.loss < result.first_loss
    # The suffix also succeeds when it is sent as text.
    sent = with_affixes(row, result.affixes.prefix, result.affixes.suffix)
    assert result.affixes.suffix in render_prompt(agent.tokenizer, sent)
    completion = greedy(agent, encode_prompt(agent.tokenizer, sent))
    assert [completion] == result.completions and outcome_of(completion, row["target"], LLAMA) == "attack_success"


def test_prefix_and_suffix_are_searched_together(agent, row, usable):
    budget = dataclasses.replace(BUDGET, prefix_tokens=4, suffix_tokens=4, steps=4)
    result = search(agent, [row], usable, budget=budget, are_successes=never)
    assert result.affixes.prefix.strip() and result.affixes.suffix.strip() and result.loss < result.first_loss
    sent = with_affixes(row, result.affixes.prefix, result.affixes.suffix)
    assert [greedy(agent, encode_prompt(agent.tokenizer, sent))] == result.completions


def test_one_suffix_is_searched_for_the_mean_loss_of_several_prompts(agent, rows, usable):
    budget = dataclasses.replace(BUDGET, steps=3)
    result = search(agent, list(rows), usable, budget=budget, are_successes=never)
    assert len(result.completions) == 3 and result.loss < result.first_loss
    alone = [search(agent, [row], usable, budget=dataclasses.replace(BUDGET, steps=0)).first_loss for row in rows]
    assert abs(result.first_loss - sum(alone) / 3) < 1e-4, "the same seed draws the same initial suffix"


def test_the_search_stays_within_the_budget(agent, row, usable):
    small = dataclasses.replace(BUDGET, steps=3, width=5)
    result = search(agent, [row], usable, budget=small, are_successes=never)
    assert result.steps == 3 and 1 < result.tried <= 1 + 3 * 5 and not result.won
    no_step = search(agent, [row], usable, budget=dataclasses.replace(BUDGET, steps=0), are_successes=never)
    assert no_step.steps == 0 and no_step.tried == 1 and no_step.loss == no_step.first_loss


def test_the_search_depends_on_its_seed_only(agent, row, usable):
    small = dataclasses.replace(BUDGET, steps=2)
    first = search(agent, [row], usable, seed=3, budget=small, are_successes=never)
    assert first == search(agent, [row], usable, seed=3, budget=small, are_successes=never)
    assert first.affixes != search(agent, [row], usable, seed=4, budget=small, are_successes=never).affixes


def test_neighbours_are_drawn_once_each_and_the_best_ranks_first():
    usable = torch.ones(12, dtype=torch.bool)
    usable[[0, 7]] = False
    gradient = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    budget = SearchBudget(width=4, suffix_tokens=2, top_k=3)
    neighbours, generator = (
        token_search._Neighbours([3, 5], gradient, usable, budget),
        torch.Generator().manual_seed(0),
    )
    drawn = []
    while batch := neighbours.draw(generator):
        assert len(batch) <= 4
        drawn += batch
    expected = {(token, 5) for token in range(12)} | {(3, token) for token in range(12)}
    expected = {pair for pair in expected if usable[list(pair)].all()} - {(3, 5)}
    assert {tuple(pair) for pair in drawn} == expected and len(drawn) == len(expected)
    best = {(int(token), 5) for token in gradient[0].masked_fill(~usable, 9).argsort()[:3]}
    best |= {(3, int(token)) for token in gradient[1].masked_fill(~usable, 9).argsort()[:3]}
    assert {tuple(pair) for pair in drawn[:4]} <= best
