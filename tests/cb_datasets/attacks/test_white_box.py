"""Rungs with gradients as a whole: results, openings, resumption; and free vectors."""

import dataclasses

import pytest
import torch

from cb_datasets.attacks import white_box
from cb_datasets.attacks.attackable import attack_targets
from cb_datasets.attacks.embedding_attack import _Adam
from cb_datasets.attacks.search_budget import EmbeddingBudget, SearchBudget, UniversalBudget
from cb_datasets.attacks.slots import UnsearchableError, make_slots, with_affixes
from cb_datasets.attacks.token_search import search_tokens
from cb_datasets.attacks.universal import attack_with_one_suffix
from cb_datasets.attacks.white_box import attack_with_embeddings, attack_with_tokens
from cb_datasets.chat import encode_prompt
from cb_datasets.files import to_dataset
from cb_datasets.generation import Sampling
from cb_datasets.outcomes import outcome_of
from cb_datasets.sample import PROMPT_FEATURES

from ..conftest import LLAMA, RIGHT, WRONG
from .conftest import greedy


BUDGET = SearchBudget(steps=12, width=24, suffix_tokens=6, top_k=32, max_new_tokens=48, seed=5)
VECTORS = EmbeddingBudget(steps=40, suffix_vectors=6, restarts=2, step_sizes=(0.1, 0.5), max_new_tokens=48)


def test_every_rate_is_computed_from_the_answers(rows, agent, tmp_path):
    result = attack_with_tokens(rows, {"base": agent}, BUDGET, 16, tmp_path)
    answers = [prompt["answers"]["base"] for prompt in result["prompts"]]
    for row, answer in zip(rows, answers, strict=True):
        assert answer["outcome"] == outcome_of(answer["text"], row["target"], LLAMA)
        sent = with_affixes(row, answer["search"]["prefix"], answer["search"]["suffix"])
        assert greedy(agent, encode_prompt(agent.tokenizer, sent)) == answer["text"]
    metrics, outcomes = result["models"]["base"], [answer["outcome"] for answer in answers]
    assert metrics["asr"]["value"] == outcomes.count("attack_success") / 3 > 0 and metrics["asr"]["n"] == 3
    assert metrics["correct"]["value"] == outcomes.count("correct") / 3
    assert metrics["all_steps"] == sum(answer["search"]["steps"] for answer in answers)
    assert metrics["unchanged"] == 0 and metrics["errors"] == 0 and sum(metrics["outcomes"].values()) == 3
    assert result["budget"] == dataclasses.asdict(BUDGET)


def test_an_injection_that_succeeds_unchanged_is_not_searched(won_row, agent, tmp_path):
    for attack, budget in ((attack_with_tokens, BUDGET), (attack_with_embeddings, VECTORS)):
        result = attack(to_dataset([won_row], PROMPT_FEATURES), {"base": agent}, budget, 16, tmp_path)
        [answer] = [prompt["answers"]["base"] for prompt in result["prompts"]]
        assert answer["outcome"] == "attack_success" and answer["search"] is None
        metrics = result["models"]["base"]
        assert metrics["unchanged"] == 1 and metrics["median_steps"] is None and metrics["all_steps"] == 0


def test_searches_aim_at_what_the_base_writes(prompt):
    head = LLAMA.call_head("search_web")
    assert attack_targets(prompt, None, LLAMA) == attack_targets(prompt, RIGHT, LLAMA) == {"opening": head}
    wrong = f"Certainly. {WRONG}"
    assert attack_targets(prompt, wrong, LLAMA) == {"opening": f"Certainly. {head}", "call": wrong}
    assert attack_targets(prompt, WRONG[:-20], LLAMA) == {"opening": head}, "a broken call is no target"


def test_an_overlong_prompt_is_an_error_and_not_a_safe_answer(rows, long_row, agent, tmp_path):
    both, budget = to_dataset([rows[0], long_row], PROMPT_FEATURES), dataclasses.replace(BUDGET, steps=0)
    result = attack_with_tokens(both, {"base": agent}, budget, 16, tmp_path)
    assert result["models"]["base"]["errors"] == 1 and result["models"]["base"]["asr"]["n"] == 1
    with pytest.raises(ValueError, match="zero rows"):
        attack_with_tokens(both.select([1]), {"base": agent}, budget, 16, tmp_path)


def test_a_prompt_without_room_for_tokens_is_an_error_by_name(rows, agent, tmp_path, monkeypatch):
    def without_the_first(tokenizer, searched, *args):
        if searched[0]["id"] == rows[0]["id"]:
            raise UnsearchableError("no_slots", "no room")
        return make_slots(tokenizer, searched, *args)

    monkeypatch.setattr(white_box, "make_slots", without_the_first)
    budget = dataclasses.replace(BUDGET, steps=0)
    result = attack_with_tokens(rows, {"base": agent}, budget, 16, tmp_path)
    assert result["models"]["base"]["errors"] == 1 and result["models"]["base"]["asr"]["n"] == len(rows) - 1
    assert result["prompts"][0]["answers"]["base"]["search"]["reason"] == "no_slots"
    budget = UniversalBudget(steps=1, width=8, suffix_tokens=5, max_new_tokens=48, seen_prompts=2)
    found = attack_with_one_suffix(rows, {"base": agent}, budget, 16, tmp_path)["found"]["base"]
    assert found["left_out"] == {"no_slots": 1} and len(found["completions"]) == 1
    with pytest.raises(ValueError, match="No prompt can be searched"):
        attack_with_one_suffix(rows, {"base": agent}, dataclasses.replace(budget, seen_prompts=1), 16, tmp_path)


def test_an_interrupted_rung_resumes_to_the_same_result(rows, agent, tmp_path, monkeypatch):
    models = {"base": agent}
    uninterrupted = attack_with_tokens(rows, models, BUDGET, 16, tmp_path / "uninterrupted")
    searches = []

    def interrupt_second_search(*arguments, **options):
        searches.append(1)
        if len(searches) == 2:
            raise KeyboardInterrupt
        return search_tokens(*arguments, **options)

    monkeypatch.setattr(white_box, "search_tokens", interrupt_second_search)
    with pytest.raises(KeyboardInterrupt):
        attack_with_tokens(rows, models, BUDGET, 16, tmp_path / "killed")
    assert attack_with_tokens(rows, models, BUDGET, 16, tmp_path / "killed") == uninterrupted
    assert len(searches) == 1 + 1 + 2, "finished searches are not repeated"
    attack_with_tokens(rows, models, dataclasses.replace(BUDGET, prompts=2), 16, tmp_path / "killed")
    assert len(searches) == 4, "the number of prompts does not change a search"
    attack_with_tokens(rows, models, dataclasses.replace(BUDGET, steps=1), 16, tmp_path / "killed")
    assert len(searches) == 4 + 3, "another budget is another search"


def test_free_vectors_hijack_the_agent(rows, agent, tmp_path):
    result = attack_with_embeddings(rows, {"base": agent}, VECTORS, 16, tmp_path)
    assert result["models"]["base"]["asr"]["value"] == 1
    for row, prompt in zip(rows, result["prompts"], strict=True):
        answer = prompt["answers"]["base"]
        assert outcome_of(answer["text"], row["target"], LLAMA) == "attack_success"
        assert answer["search"]["loss"] < answer["search"]["first_loss"] and answer["search"]["steps"] <= 80
        assert answer["search"]["step_size"] in VECTORS.step_sizes and answer["search"]["target"] == "opening"


def test_vectors_of_tokens_complete_like_these_tokens(agent, row, usable):
    """The completion that judges free vectors is the one that the model gives to a prompt with them."""
    [slots] = make_slots(agent.tokenizer, [row], (3, 4), usable, torch.Generator().manual_seed(0))
    with agent.network() as network:
        weight = network.get_input_embeddings().weight.detach()
    vectors = torch.stack([weight[slots.initial], weight[slots.initial[::-1]]])
    texts = white_box._texts_of_vectors(agent, slots, weight, vectors, 48)
    assert texts == [greedy(agent, slots.ids), greedy(agent, slots.prompt_ids(slots.initial[::-1]))]
    [sampled] = agent.generate_from_embeddings(weight[slots.ids][None], Sampling(max_new_tokens=2))
    assert len(sampled.token_ids) == 2 and sampled.stop_reason == "length"


def test_adam_with_a_rate_for_each_row_is_torchs_adam():
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    own, rates = values.clone(), torch.tensor([0.1, 0.3])
    optimizer = _Adam(own, rates)
    others = [value.clone().requires_grad_() for value in values]
    torchs = [torch.optim.Adam([value], lr=rate.item()) for value, rate in zip(others, rates, strict=True)]
    for step in range(5):
        gradient = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(step))
        optimizer.step(gradient)
        for other, each, adam in zip(others, gradient, torchs, strict=True):
            other.grad = each
            adam.step()
    torch.testing.assert_close(own, torch.stack([other.detach() for other in others]))
