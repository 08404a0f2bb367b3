"""The ablation's settings are settings of the trainer, and its page is made of its results alone."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from cb_datasets.evaluation.statistics import proportion
from cb_datasets.files import write_json


ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("selectivity", ROOT / "benchmarks" / "selectivity.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)

TERMS = {
    "selective": {"distill", "splice", "retain_kl", "unlikelihood", "stop"},
    "plain_rr": {"rr", "retain_l2"},
    "decisions": {"distill", "splice", "retain_kl", "unlikelihood", "stop"},
    "ce": {"ce", "retain_kl"},
    "distill": {"distill", "retain_kl"},
    "splice": {"distill", "splice", "retain_kl"},
    "augmentation": {"distill", "splice", "retain_kl"},
    "rr": {"distill", "splice", "retain_kl", "rr", "stop"},
    "both": {"distill", "splice", "retain_kl", "unlikelihood", "rr", "stop"},
    "twin": {"twin", "retain_kl"},
    "even": {"distill", "splice", "retain_kl", "unlikelihood", "stop"},
    "bare_requests": {"distill", "splice", "retain_kl", "unlikelihood", "stop"},
    "little_retain": {"distill", "splice", "retain_kl", "unlikelihood", "stop"},
    "long": {"distill", "splice", "retain_kl", "unlikelihood", "stop"},
    "adversary": {"distill", "splice", "retain_kl", "unlikelihood", "stop"},
}


@pytest.mark.parametrize("variant", study.VARIANTS)
def test_every_variant_has_the_terms_that_its_name_says(variant, tmp_path):
    from trainers import CircuitBreakerConfig

    _, recipe, settings = study.VARIANTS[variant]
    given = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    known = {name: value for name, value in given.items() if name in CircuitBreakerConfig.__dataclass_fields__}
    config = CircuitBreakerConfig(**(known | settings | {"output_dir": str(tmp_path)}))
    assert set(config.weights) == TERMS[variant]
    whole = ("selective", "decisions", "rr", "both", "even", "little_retain", "long", "adversary")
    assert bool(config.span_wrap_probability) == (variant in (*whole, "augmentation", "bare_requests"))
    assert bool(config.adversary_steps) == (variant == "adversary")
    assert bool(config.text_noise_probability) == (variant in (*whole, "plain_rr"))


def result(asr: int, right: int, kinds: dict[str, int]) -> dict:
    held_out = {"asr": asr, "correct_under_attack": right}
    others = ("benign_call", "refusal_kept", "chat_kept", "gibberish", "other_tool", "no_tool_call")
    held_out |= dict.fromkeys((*others, "forced_tag", "forced_word", "forced_name"), 7)
    drawn = ("best_of_n", "asr", "correct_under_attack", "benign_call", "gibberish")
    return {
        "times": {"seconds": 40.0, "processor_seconds": 50.0},
        "held_out": {name: proportion(hits, 10) for name, hits in held_out.items()},
        "drawn": dict.fromkeys(drawn, proportion(3, 10)),
        "tools": {"read_file": {"asr": proportion(asr, 10), "correct_under_attack": proportion(right, 10)}},
        "unseen": {},
        "kinds": {
            kind: {"asr": proportion(hits, 10), "correct_under_attack": proportion(10 - hits, 10)}
            for kind, hits in kinds.items()
        },
        "live": {**dict.fromkeys((metric for _, metric in study.LIVE.values()), proportion(right, 10))},
        "live_kinds": {"pay_bill": {"utility": proportion(9, 10), "utility_under_attack": proportion(right, 10)}},
    }


def test_the_page_is_made_of_the_results(tmp_path):
    write_json(tmp_path / "results" / "base.json", result(10, 0, {"german": 9, "before_request": 1}))
    for seed, asr in ((42, 1), (1, 3)):
        made = result(asr, 10 - asr, {"german": asr, "before_request": 0})
        write_json(tmp_path / "results" / f"selective-{seed}.json", made)
    found = study.gathered(tmp_path)
    assert found["base"]["followed"]["asr"]["value"] == 0.9  # what the base does not fall for is left out
    study.write_page(found, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "selective, seed 42 | 10.0 [1.8, 40.4] | 90.0" in page
    assert "unlikelihood + stop (2) | 20.0 (10.0-30.0) | 80.0 (70.0-90.0)" in page
    assert "takes 50 s of processor time, plain RR - s" in page
    assert "hardly follows: before request." in page
    assert "| read file | 10 | 100 | - | 20 | 80 |" in page.split("## By tool")[1]
    live = page.split("## Live runs")[1].split("## ")[0]
    assert "unlikelihood + stop (2) | 80.0 (70.0-90.0)" in live
    assert "| pay bill | 90 · 0 | - | 90 · 80 |" in live
    assert "Not measured yet" in page and "plain RR;" in page
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(found, allow_nan=False)


def test_a_second_model_is_shown_from_what_its_recipe_left(tmp_path, monkeypatch):
    further = {"malformed": proportion(1, 10), "later_turn": proportion(9, 10)}
    held_out = {**result(10, 0, {})["held_out"], **further}
    folder = tmp_path / "smollm2"
    models = {"base": held_out, "breaker": {**held_out, "asr": proportion(2, 10)}, "plain_rr": held_out}
    monkeypatch.setattr(
        "cb_datasets.evaluation.results.read_results",
        lambda _: {"settings": {"adapters": {"breaker": "", "plain_rr": ""}}, **models},
    )
    for adapter, seconds in (("adapter", 700.0), ("adapters/plain_rr", 300.0)):
        log = [{"step": 80, "cosine/ds": 0.1, "cosine/dr": 0.875}, {"step": 80, "train_runtime": seconds}]
        write_json(folder / adapter / "trainer_state.json", {"log_history": log})
    second = study.second_model(folder)
    assert second["breaker"]["training"] == {"seconds": 700.0, "steps": 80, "cosine_ds": 0.1, "cosine_dr": 0.875}
    assert "training" not in second["base"]

    write_json(tmp_path / "results" / "base.json", result(10, 0, {"german": 9}))
    write_json(tmp_path / "results" / "selective-42.json", result(1, 9, {"german": 1}))
    study.write_page(study.gathered(tmp_path), tmp_path / "page.md", second=second)
    page = (tmp_path / "page.md").read_text()
    told = page.split("## A second model")[1]
    assert "| selective | 20.0 [5.7, 51.0] |" in told and "80 of plain RR in 5." in told
    assert "mean cosine to the frozen states is 0.88" in told
