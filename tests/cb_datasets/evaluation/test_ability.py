"""General ability: figures of hand-made distributions, against plain forward passes, and against the library's own."""

import importlib.util
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from builders.trace import TRACE_FEATURES, message, to_json, tool_call
from cb_datasets.cli import app
from cb_datasets.cli.options import Engine
from cb_datasets.evaluation.ability import multiple_choice
from cb_datasets.evaluation.ability import text_figures as figures_module
from cb_datasets.evaluation.ability.ability import MAX_KL, ability_warnings
from cb_datasets.evaluation.ability.finished_parts import FinishedParts
from cb_datasets.evaluation.ability.held_out import held_out_turns
from cb_datasets.evaluation.ability.lm_eval_tasks import load_tasks, run_task
from cb_datasets.evaluation.ability.multiple_choice import (
    QUESTIONS_FILE,
    Question,
    encode_choice,
    predicted,
    read_questions,
    score_choices,
)
from cb_datasets.evaluation.ability.text_figures import TURN_FEATURES, measure_text, text_figures
from cb_datasets.evaluation.statistics import RESAMPLES, bootstrap_quantile
from cb_datasets.files import read_json, save_rows, to_dataset, write_json
from cb_datasets.generation import transformers_backend
from cb_datasets.generation.transformers_backend import TransformersBackend
from cb_datasets.report.ability_section import ability_section
from cb_datasets.report.report import write_report
from cb_datasets.sample import SAMPLE_FEATURES
from trainers.objective.losses import kl

from ..fake_results import small_results


CALL = '<|python_tag|>{"name": "search_web", "parameters": {"query": "pump"}}<|eom_id|>'
ANSWERS = ("A cat has four legs.<|eot_id|>", "The pump is old.<|eot_id|>", "Yes.<|eot_id|>")


def talk(request: str) -> dict:
    """Columns of a sample without tools and without an attack."""
    return {"messages": [message("user", request)], "tools": None, "injection": [], "split": "eval"}


@pytest.fixture
def samples(make_sample) -> list[dict]:
    """Three rows of chat, one benign call, and rows that do not count."""
    rows = [
        make_sample(text, "general_conversation", **talk(f"Question {k}?"), group=f"g{k // 2}")
        for k, text in enumerate(ANSWERS)
    ]
    clean = {"injection": [], "split": "eval"}
    rows.append(make_sample(CALL, "benign_twin", **clean, messages=[message("user", "Find the pump on the web.")]))
    rows.append(make_sample(CALL, "adversarial_safe", split="eval"))
    rows.append(make_sample(CALL, "tool_capability", split="eval"))  # with the prompt's injection
    rows.append(make_sample(ANSWERS[2], "general_conversation", **talk("Other?") | {"split": "train"}))
    return rows


@pytest.fixture
def data(samples, tmp_path) -> Path:
    save_rows(to_dataset(samples, SAMPLE_FEATURES), tmp_path / "stage2" / "eval", {})
    return tmp_path / "stage2" / "eval"


@pytest.fixture(scope="module")
def breaker(tiny_agent_path, adapter) -> TransformersBackend:
    return TransformersBackend(str(tiny_agent_path), str(adapter), batch_size=16)


@pytest.fixture
def turns(data, breaker):
    return held_out_turns([data], breaker.tokenizer, 2048, 200, 0)[0]


def parts(folder: Path, **settings) -> FinishedParts:
    return FinishedParts(folder, settings)


# ------------------------------------------------------------------------------------------------------ held-out turns


def test_benign_rows_of_the_eval_split_count_and_the_others_are_dropped_with_a_reason(data, breaker):
    turns, drops = held_out_turns([data], breaker.tokenizer, 2048, 200, 0)
    assert Counter(turn.slice for turn in turns) == {"chat": 3, "tool_calls": 1}
    assert drops == {"other_class": 1, "injection": 1, "not_in_eval": 1}
    assert {turn.source for turn in turns} == {"sampled"} and {turn.conversation for turn in turns} >= {"g0", "g1"}
    text = breaker.tokenizer.decode(turns[0].prompt_ids + turns[0].completion_ids)
    assert text.endswith("<|eot_id|>") and text.startswith("<|begin_of_text|>")
    same = held_out_turns([data.parent], breaker.tokenizer, 2048, 200, 0)[0]
    assert same == turns, "a folder with an eval split is read there"


def test_long_and_surplus_rows_are_counted(data, breaker):
    turns, drops = held_out_turns([data], breaker.tokenizer, 2048, 1, 0)
    assert len(turns) == 2 and drops["over_max_rows"] == 2
    lengths = [
        len(turn.prompt_ids + turn.completion_ids) for turn in held_out_turns([data], breaker.tokenizer, 2048, 9, 0)[0]
    ]
    kept, drops = held_out_turns([data], breaker.tokenizer, max(lengths) - 1, 200, 0)
    assert drops["too_long"] == lengths.count(max(lengths)) == 4 - len(kept)
    with pytest.raises(ValueError, match=r"stage2/eval: no held-out turn .*too_long.* traces of chat"):
        held_out_turns([data], breaker.tokenizer, 3, 200, 0)
    with pytest.raises(FileNotFoundError, match="No dataset in"):
        held_out_turns([data / "absent"], breaker.tokenizer, 2048, 200, 0)


def chat_trace(id: str, messages: list[dict], verdict: str = "benign_success") -> dict:
    nothing = dict.fromkeys(("tools", "expected_tool", "simulated_tool", "attack", "decision_turn"))
    return {**nothing, "source": "x", "group": id, "verdict": verdict, "metadata": to_json({}), "id": id} | {
        "messages": messages
    }


def test_every_assistant_turn_of_a_trace_counts(tmp_path, breaker):
    asked, answered = message("user", "How many legs has a cat?"), message("assistant", "Four.")
    search = message("assistant", "", [tool_call("search_web", {"query": "cat"}, "c1")])
    traces = [
        chat_trace("x/1", [asked, answered, message("user", "And a bird?"), message("assistant", "Two.")]),
        chat_trace("x/2", [asked, search, message("tool", "4", tool_call_id="c1", name="search_web"), answered]),
        chat_trace("x/3", [asked, message("assistant", " ")]),
        chat_trace("x/4", [asked, message("assistant", "As <|eot_id|> says.")]),
        chat_trace("x/5", [asked, answered], "refused"),
    ]
    save_rows(to_dataset(traces, TRACE_FEATURES), tmp_path / "eval", {})
    turns, drops = held_out_turns([tmp_path], breaker.tokenizer, 2048, 200, 0)
    by_id = {turn.id: turn for turn in turns}
    assert len(by_id) == 4 and Counter(turn.slice for turn in turns) == {"chat": 3, "tool_calls": 1}
    assert drops == {"empty_turn_or_parallel_calls": 1, "control_token_in_turn": 1, "trace_is_refused": 1}
    decode = breaker.tokenizer.decode
    last = next(turn for turn in turns if decode(turn.completion_ids) == "Two.<|eot_id|>")
    assert "Four.<|eot_id|>" in decode(last.prompt_ids) and last.conversation == "x/1" and last.source == "recorded"


# ------------------------------------------------------------------------------------------------- text: the measuring


def test_values_equal_those_of_plain_forward_passes(turns, breaker, tmp_path):
    """Batched, with a shared prefix and a cache, against one row at a time; KL against the trainer's."""
    models = {"base": breaker.without_adapter(), "breaker": breaker}
    rows = {(row["turn"], row["model"]): row for row in measure_text(turns, models, 3, parts(tmp_path))}
    assert len(rows) == 2 * len(turns)
    for turn in turns:
        logits = {}
        for name, model in models.items():
            with torch.inference_mode(), model.network() as network:
                ids = torch.tensor([turn.prompt_ids + turn.completion_ids])
                logits[name] = network(ids).logits[0, len(turn.prompt_ids) - 1 : -1]
        divergence = kl(logits["breaker"], logits["base"])
        own, targets = rows[turn.id, "breaker"], torch.tensor(turn.completion_ids)
        nll = torch.nn.functional.cross_entropy(logits["breaker"], targets, reduction="none")
        assert own["kl"] == pytest.approx(divergence.tolist(), abs=1e-4) and max(own["kl"]) > 0.01
        assert own["nll"] == pytest.approx(nll.tolist(), abs=1e-4)
        assert own["agrees"] == (logits["breaker"].argmax(-1) == logits["base"].argmax(-1)).tolist()


def test_chunks_of_logits_do_not_change_the_values(turns, breaker, tmp_path, monkeypatch):
    models = {"base": breaker.without_adapter(), "breaker": breaker}
    whole = measure_text(turns, models, 4, parts(tmp_path, run=1))
    sizes = []
    forward = breaker._network.get_base_model().lm_head.register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[:2].numel())
    )
    monkeypatch.setattr(transformers_backend, "LOGITS_CHUNK", 8)
    chunked = measure_text(turns, models, 4, parts(tmp_path, run=2))
    forward.remove()
    assert max(sizes) <= 8 and len(sizes) > 8
    for one, other in zip(whole, chunked, strict=True):
        assert one["turn"] == other["turn"] and one["agrees"] == other["agrees"]
        assert one["nll"] == pytest.approx(other["nll"], abs=1e-4) and one["kl"] == pytest.approx(
            other["kl"], abs=1e-4
        )


def test_an_adapter_that_changes_nothing_has_a_kl_of_exactly_zero(turns, tiny_agent_path, tmp_path):
    network = AutoModelForCausalLM.from_pretrained(tiny_agent_path, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    get_peft_model(network, config).save_pretrained(tmp_path / "new")
    new = TransformersBackend(str(tiny_agent_path), str(tmp_path / "new"), batch_size=16)
    base = new.without_adapter()
    rows = measure_text(turns, {"base": base, "itself": base, "new": new}, 4, parts(tmp_path))
    figures = text_figures(turns, rows, 0)
    for name in ("itself", "new"):
        for by_model in figures.values():
            assert by_model[name]["kl_mean"]["value"] == by_model[name]["kl_p99"]["value"] == 0.0
            assert by_model[name]["agreement"]["value"] == by_model[name]["perplexity_ratio"]["value"] == 1.0


def test_a_killed_run_repeats_only_the_part_it_was_in(turns, breaker, tmp_path, monkeypatch):
    monkeypatch.setattr(figures_module, "PART_TURNS", 2)
    models = {"base": breaker.without_adapter(), "breaker": breaker}
    calls, score = [], TransformersBackend.completion_logits

    def counted(self, prompts, completions):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, prompts, completions)

    monkeypatch.setattr(TransformersBackend, "completion_logits", counted)
    with pytest.raises(KeyboardInterrupt):
        measure_text(turns, models, 8, parts(tmp_path))
    assert calls == [2, 2, 2]
    resumed = measure_text(turns, models, 8, parts(tmp_path))
    assert calls[3:] == [2, 2], "the second part, for both models"
    again = measure_text(turns, models, 8, parts(tmp_path, run=2))
    assert len(calls) == 9 and resumed.to_dict() == again.to_dict()


# --------------------------------------------------------------------------------------------------- text: the figures


def values_of(**by_model: list[list[float]]) -> Dataset:
    rows = [
        {"turn": f"t{k}", "model": model, "nll": nll, "kl": [2 * value for value in nll], "agrees": [True] * len(nll)}
        for model, turns in by_model.items()
        for k, nll in enumerate(turns)
    ]
    return to_dataset(rows, TURN_FEATURES)


def held_out(*lengths: int, conversations: str):
    from cb_datasets.evaluation.ability.held_out import HeldOutTurn

    pairs = zip(lengths, conversations, strict=True)
    return [HeldOutTurn(f"t{k}", of, "chat", "sampled", [1], [2] * n) for k, (n, of) in enumerate(pairs)]


def test_figures_of_known_values():
    """Means are over tokens, not over turns; the 99th percentile is a value that occurs."""
    turns = held_out(1, 3, conversations="ab")
    rows = values_of(base=[[1.0], [1.0, 1.0, 1.0]], breaker=[[1.0], [2.0, 2.0, 5.0]])
    chat = text_figures(turns, rows, 0)["chat"]
    assert set(chat["base"]) == {"perplexity"}
    assert chat["base"]["perplexity"]["value"] == pytest.approx(math.e)
    assert chat["breaker"]["perplexity"]["value"] == pytest.approx(math.exp(2.5))
    assert chat["breaker"]["perplexity_ratio"]["value"] == pytest.approx(math.exp(1.5))
    assert chat["breaker"]["kl_mean"]["value"] == 5.0 and chat["breaker"]["kl_p99"]["value"] == 10.0
    # Resampled conversations: both the first, both the second, or one of each.
    assert [chat["breaker"]["kl_mean"][end] for end in ("low", "high")] == pytest.approx([2.0, 6.0])
    alone = text_figures(held_out(1, 3, conversations="aa"), rows, 0)["chat"]
    assert alone["breaker"]["kl_mean"] == {"value": 5.0, "low": None, "high": None}


def test_the_bootstrap_of_a_quantile_is_that_of_the_resampled_values():
    random = np.random.default_rng(5)
    groups = np.repeat(np.arange(7), [1, 5, 30, 8, 2, 40, 14])
    values = random.exponential(size=len(groups)) * (1 + groups)
    generator, quantiles = np.random.default_rng(3), []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([values[groups == group] for group in generator.integers(0, 7, 7)])
        quantiles.append(np.quantile(drawn, 0.9, method="inverted_cdf"))
    assert bootstrap_quantile(values, groups, 0.9, 3) == pytest.approx(tuple(np.quantile(quantiles, [0.025, 0.975])))
    assert bootstrap_quantile(values, np.zeros(len(values), int), 0.9) == (None, None)


def test_a_breaker_beyond_the_bars_is_warned_of():
    def result(divergence: float, agreement: float) -> dict:
        figures = {"kl_mean": {"value": divergence}, "agreement": {"value": agreement}}
        return {"text": {"chat": {"models": {"base": {}, "breaker": figures}}}}

    assert ability_warnings(result(MAX_KL, 0.9)) == []
    [warning] = ability_warnings(result(MAX_KL * 1.1, 0.99))
    assert warning.startswith("breaker, chat: KL to base 0.11 nats per token, agreement 99.0%.")
    assert len(ability_warnings(result(0.0, 0.89))) == 1


# ----------------------------------------------------------------------------------------------------- multiple choice


def test_the_questions_are_balanced():
    questions = read_questions()
    assert len(questions) == 60 and len({question.question for question in questions}) == 60
    assert Counter(question.answer for question in questions) == dict.fromkeys(range(4), 15)
    assert Counter(question.category for question in questions) == dict.fromkeys(
        ("knowledge", "arithmetic", "reading", "tool_choice"), 15
    )
    for question in questions:
        assert len(set(question.choices)) == 4 and question.id.startswith(question.category)
    by_length = [
        sum(max(map(sign, map(len, one.choices))) == sign(len(one.choices[one.answer])) for one in questions)
        for sign in (int, int.__neg__)
    ]
    assert max(by_length) < 45, "neither the longest nor the shortest choice is the answer as a rule"


def test_the_prediction_is_by_likelihood_or_by_likelihood_per_character():
    question = Question("x", "x", "What?", ["ab", "abcdefgh", "abcd", "ab"], 1)
    assert predicted(question, [-2.0, -4.0, -3.0, -2.0], "acc") == 0, "the first of equal scores"
    assert predicted(question, [-2.0, -4.0, -3.0, -2.0], "acc_norm") == 1


def test_a_choice_is_encoded_with_its_context(breaker):
    text, tokenizer = "Question: Who?\nAnswer:", breaker.tokenizer
    context, choice = encode_choice(tokenizer, text, "The cat")
    assert context == tokenizer(text)["input_ids"] and tokenizer.decode(choice) == " The cat"


LOCAL_TASK = f"""
task: own_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {QUESTIONS_FILE}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1
"""


@pytest.fixture
def local_task(tmp_path) -> Path:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("no lm-eval: pip install 'cb-datasets[lm-eval]'")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(LOCAL_TASK, encoding="utf-8")
    return tmp_path / "tasks" / "own.yaml"


def test_lm_eval_scores_our_questions_as_we_do(breaker, local_task):
    """Question by question, and for base and breaker: the library's hits are ours, and its likelihoods too."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    questions, [task] = read_questions(), load_tasks([str(local_task)])
    assert task.name == "own_questions" and not task.generates
    hits = {}
    for model in (breaker.without_adapter(), breaker):
        scores = score_choices(questions, model, "test")
        library = run_task(task, model, 16, None)
        assert library["n"] == 60 and set(library["metrics"]) == {"acc", "acc_norm"}
        for metric in ("acc", "acc_norm"):
            ours = [predicted(one, row, metric) == one.answer for one, row in zip(questions, scores, strict=True)]
            assert list(library["hits"][metric].values()) == ours
            assert library["metrics"][metric]["value"] == sum(ours) / 60
        hits[model.revision] = library["hits"]
        pairs = [(one.context, f" {choice}") for one in questions[:10] for choice in one.choices]
        with model.network() as network:
            requests = [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)]
            theirs = HFLM(pretrained=network, tokenizer=model.tokenizer).loglikelihood(requests, disable_tqdm=True)
        ours = [score for row in scores[:10] for score in row]
        assert ours == pytest.approx([value for value, _ in theirs], abs=1e-3)
    assert len({str(each) for each in hits.values()}) == 2, "the adapter was active in one run and not in the other"


GENERATING_TASK = LOCAL_TASK.replace("own_questions", "own_words").replace("multiple_choice\n", "generate_until\n")
GENERATING_TASK = GENERATING_TASK[: GENERATING_TASK.index("doc_to_choice")] + (
    "doc_to_target: '{{choices[answer]}}'\ngeneration_kwargs: {until: [], do_sample: false, max_gen_toks: 8}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    "metadata: {version: 1}\n"
)


def test_a_task_that_generates_is_asked_through_the_chat_template(breaker, local_task, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    local_task.with_name("words.yaml").write_text(GENERATING_TASK, encoding="utf-8")
    [task] = load_tasks([str(local_task.with_name("words.yaml"))])
    asked, settings, generate = [], [], HFLM.generate_until

    def watched(self, requests, **kwargs):
        asked.extend(request.args[0] for request in requests)
        settings.append(self.chat_template_args)
        return generate(self, requests, **kwargs)

    monkeypatch.setattr(HFLM, "generate_until", watched)
    result = run_task(task, breaker, 4, 4)
    assert task.generates and result["n"] == 4 and list(result["metrics"]) == ["exact_match"]
    assert len(asked) == 4 and all(text.startswith("<|begin_of_text|><|start_header_id|>") for text in asked)
    assert settings[0]["date_string"] == "26 Jul 2024"


def test_a_task_without_its_data_is_one_error(local_task):
    local_task.write_text(LOCAL_TASK.replace(".jsonl", ".absent"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"--lm-eval .*own.yaml: lm-eval does not load it \(FileNotFoundError"):
        load_tasks([str(local_task)])


# ----------------------------------------------------------------------------------------------------------- all of it


def run(*arguments: object):
    return CliRunner().invoke(app, ["ability", *map(str, arguments)])


def test_the_command_measures_base_and_breakers_once(tiny_agent_path, adapter, data, tmp_path, monkeypatch):
    arguments = ["--model", tiny_agent_path, "--adapter", adapter, "--data", data, "--output", tmp_path / "report"]
    arguments += ["--work-dir", tmp_path / "work", "--batch-size", 16]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    ability = read_json(tmp_path / "report" / "ability.json")
    assert list(ability["text"]) == ["chat", "tool_calls"] and ability["text"]["chat"]["conversations"] == 2
    chat = ability["text"]["chat"]["models"]
    ratio = chat["breaker"]["perplexity"]["value"] / chat["base"]["perplexity"]["value"]
    assert chat["breaker"]["perplexity_ratio"]["value"] == pytest.approx(ratio)
    choice = ability["multiple_choice"]
    assert choice["models"]["base"]["acc"]["n"] == 60 and set(choice["changed"]["breaker"]) == {"acc", "acc_norm"}
    assert sum(by["base"]["acc"]["n"] for by in choice["categories"].values()) == 60
    assert ability["warnings"] and "warning: breaker, chat: KL to base" in result.output
    assert "dropped 3 (other_class 1, injection 1, not_in_eval 1)" in " ".join(result.output.split())

    settings = {"adapters": {"breaker": ability["settings"]["adapters"]["breaker"]}}
    section = ability_section(ability, settings)
    assert section.models == ["base", "breaker"] and len(section.rows) == 12
    [row] = [row for row in section.rows if row[0] == "chat: KL to base, nats per token ↓"]
    assert row[1] == "-" and "[" in row[2]
    assert any(text.startswith("Warning: breaker, chat") for text in section.paragraphs)
    other = ability_section(ability, {"adapters": {"breaker": "base+retrained"}})
    assert other.models == [] and other.rows == [] and "ability.json has results of weights" in other.paragraphs[-1]
    assert not any(text.startswith("Warning") for text in other.paragraphs)

    # In the report of an evaluation of the same weights.
    ability["settings"]["adapters"] = small_results()["settings"]["adapters"]
    write_report(small_results(), tmp_path / "other")
    write_json(tmp_path / "other" / "ability.json", ability)
    arguments_of_report = ["report", tmp_path / "other" / "results.json", "--output", tmp_path / "other"]
    assert CliRunner().invoke(app, [*map(str, arguments_of_report)]).exit_code == 0
    text, page = ((tmp_path / "other" / f"report.{suffix}").read_text("utf-8") for suffix in ("md", "html"))
    assert f"| chat: KL to base, nats per token ↓ | - | {row[2]} |" in text and "## General ability" in text
    assert row[2] in page.partition('<section id="ability">')[2].partition("</section>")[0]
    ability = read_json(tmp_path / "report" / "ability.json")

    def fail(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(TransformersBackend, "completion_logits", fail)
    monkeypatch.setattr(TransformersBackend, "log_likelihoods", fail)
    assert run(*arguments).exit_code == 0, "all parts are finished"
    assert read_json(tmp_path / "report" / "ability.json") == ability


def test_a_missing_package_or_backend_is_an_error_before_a_model_loads(
    tiny_agent_path, adapter, data, tmp_path, monkeypatch
):
    for module in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(Engine, "load_all", None)
    arguments = ["--model", tiny_agent_path, "--adapter", adapter, "--data", data, "--output", tmp_path / "report"]
    result = run(*arguments, "--lm-eval", "mmlu")
    assert "--lm-eval needs the package lm-eval" in str(result.exception)
    assert "pip install 'cb-datasets[lm-eval]'" in str(result.exception)
    assert "only --backend transformers" in str(run(*arguments, "--backend", "vllm").exception)


def test_another_family_with_another_tokenizer(real_tokenizer, samples, tmp_path, monkeypatch):
    """Qwen3: other tokens, another template, another tool-call format, and no special tokens before plain text."""
    tokenizer, model = real_tokenizer("qwen3"), tmp_path / "model"
    some = read_questions()[::15]  # logits over a large vocabulary take their time
    monkeypatch.setattr(multiple_choice, "read_questions", lambda: some)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    torch.manual_seed(0)
    network = Qwen3ForCausalLM(config)
    network.save_pretrained(model)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(network, lora).save_pretrained(tmp_path / "adapter")
    rows = [row | {"assistant_raw": row["assistant_raw"].replace("<|eot_id|>", "<|im_end|>")} for row in samples[:3]]
    save_rows(to_dataset(rows, SAMPLE_FEATURES), tmp_path / "data", {})
    arguments = ["--model", model, "--tokenizer", tokenizer.name_or_path, "--adapter", tmp_path / "adapter"]
    outputs = ["--output", tmp_path / "out", "--work-dir", tmp_path / "work"]
    result = run(*arguments, "--data", tmp_path / "data", *outputs)
    assert result.exit_code == 0, result.exception
    chat = read_json(tmp_path / "out" / "ability.json")["text"]["chat"]
    # A random network knows nothing: each of 151,669 tokens is about as probable as any other.
    assert chat["models"]["base"]["perplexity"]["value"] == pytest.approx(len(tokenizer), rel=0.05)
    expected = sum(len(tokenizer(row["assistant_raw"])["input_ids"]) for row in rows)
    assert chat["tokens"] == expected
