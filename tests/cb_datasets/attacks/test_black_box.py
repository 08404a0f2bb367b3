"""The black-box rung on the tiny agent, and its metrics."""

from itertools import combinations

import pytest

from cb_datasets.attacks import black_box
from cb_datasets.attacks.black_box import BlackBoxBudget, DrawAnswer, attack_with_compositions, black_box_metrics
from cb_datasets.attacks.composition import Composer, DrawRecord
from cb_datasets.chat import encode_prompt
from cb_datasets.files import to_dataset
from cb_datasets.generation import Sampling
from cb_datasets.generation.transformers_backend import TransformersBackend
from cb_datasets.outcomes import Outcome, outcome_of
from cb_datasets.sample import PROMPT_FEATURES

from ..conftest import LLAMA


BUDGET = BlackBoxBudget(draws=4, max_new_tokens=48, seed=3)


@pytest.fixture(scope="module")
def agent(tiny_agent_path):
    return TransformersBackend(str(tiny_agent_path))


@pytest.fixture
def rows(prompt):
    others = [prompt | {"id": f"tool_flip/test/{k}", "group": f"group {k}"} for k in (2, 3)]
    return to_dataset([prompt, *others], PROMPT_FEATURES)


def test_every_model_answers_the_same_draws(rows, agent, tmp_path):
    models = {"base": agent, "again": agent}
    result = attack_with_compositions(rows.select([0, 2]), rows, models, BUDGET, tmp_path)
    assert result["models"]["base"] == result["models"]["again"]
    composer, outcomes = Composer(rows), {}
    for row in rows.select([0, 2]):
        draws = [composer.draw(row, number, BUDGET.seed).row for number in range(BUDGET.draws)]
        texts = [
            agent.generate([encode_prompt(agent.tokenizer, draw)], Sampling(max_new_tokens=48), 0) for draw in draws
        ]
        outcomes[row["id"]] = [outcome_of(text[0][0].text, row["target"], LLAMA) for text in texts]
    for prompt in result["prompts"]:
        expected = [number for number, each in enumerate(outcomes[prompt["id"]]) if each == "attack_success"]
        assert prompt["successes"]["base"] == expected
    flat = [outcome for each in outcomes.values() for outcome in each]
    assert result["models"]["base"]["draw_asr"]["value"] == flat.count("attack_success") / 8
    assert result["models"]["base"]["draw_correct"]["value"] == flat.count("correct") / 8
    assert result["budget"] == {"draws": 4, "max_new_tokens": 48, "seed": 3, "prompts": 100}


def test_finished_shards_are_not_repeated(rows, agent, tmp_path, monkeypatch):
    first = attack_with_compositions(rows, rows, {"base": agent}, BUDGET, tmp_path)
    monkeypatch.setattr(TransformersBackend, "generate", None)
    assert attack_with_compositions(rows, rows, {"base": agent}, BUDGET, tmp_path) == first


def answers_of(outcomes_by_prompt):
    """Draws in order; each second one stands before the request."""

    def record(n):
        place, turn = "before" if n % 2 else "after", "2" if n > 1 else "1"
        return DrawRecord(n, ["a", "b"] if n else ["a"], place, "1", turn, ["case"] if n else [])

    return [
        DrawAnswer(prompt_id, record(n), Outcome(outcome), gibberish=outcome == "no_call")
        for prompt_id, outcomes in outcomes_by_prompt.items()
        for n, outcome in enumerate(outcomes)
    ]


def test_metrics_are_per_prompt_and_per_draw():
    hit, right, none, error = "attack_success", "correct", "no_call", "error"
    answers = answers_of(
        {"x": [hit, right, hit, right], "y": [right, none, right, right], "z": [right, hit, error, error]}
    )
    metrics = black_box_metrics(answers)
    assert metrics["asr"]["value"] == 2 / 3 and metrics["asr"]["n"] == 3
    assert metrics["draw_asr"]["value"] == 3 / 10 and metrics["draw_correct"]["value"] == 6 / 10
    assert metrics["draw_gibberish"]["value"] == 1 / 10
    assert metrics["draw_asr"]["n"] == 3, "the interval counts prompts, whose draws are correlated"
    assert metrics["errors"] == 2 and metrics["outcomes"] == {hit: 3, right: 6, none: 1, error: 2}
    place, turn = metrics["slices"]["place"], metrics["slices"]["turn"]
    assert place["after"]["draw_asr"]["value"] == 2 / 5 and place["before"]["draw_asr"]["value"] == 1 / 5
    assert turn["2"]["draw_asr"]["value"] == 1 / 4 and turn["1"]["draw_correct"]["value"] == 3 / 6
    assert metrics["slices"]["family"]["b"]["draw_asr"]["value"] == 2 / 7
    assert metrics["slices"]["noise"].keys() == {"none", "case"}


def test_the_curve_is_the_mean_over_all_choices_of_n_draws():
    outcomes = {
        "x": ["attack_success", "correct", "attack_success", "correct"],
        "y": ["correct"] * 3 + ["attack_success"],
    }
    curve = black_box_metrics(answers_of(outcomes))["curve"]
    for k, value in enumerate(curve, start=1):
        chosen = [
            any(o == "attack_success" for o in each) for own in outcomes.values() for each in combinations(own, k)
        ]
        assert value == pytest.approx(sum(chosen) / len(chosen))
    assert len(curve) == 4 and curve[-1] == 1


def test_a_model_without_any_answer_is_an_error():
    with pytest.raises(ValueError, match="zero rows"):
        black_box.black_box_metrics(answers_of({"x": ["error"]}))
