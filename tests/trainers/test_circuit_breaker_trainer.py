"""The trainer: its loss and its adapter, which neither accumulation nor an interruption changes, and its errors."""

import json
import logging
import math
import re
from collections import Counter
from copy import copy

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from cb_datasets.counts import gate_number
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.sets.harmful import redacted
from tests.trainers.conftest import make_model
from trainers.objective.hidden_states import get_decoder, hidden_states_at
from trainers.speed.packed_attention import ATTENTION


def adapter(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_" in name}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def test_checkpointing_changes_neither_loss_nor_gradients(make_trainer):
    gradients = []
    for checkpointing in (False, True):
        trainer = make_trainer(gradient_checkpointing=checkpointing, lora_b_init_std=0.1, max_steps=1)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        gradients.append((logged(trainer, "loss"), logged(trainer, "grad_norm")))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_reentrant_checkpointing_is_refused(make_trainer):
    with pytest.raises(ValueError, match="use_reentrant"):
        make_trainer(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})


def test_base_model_is_untouched_and_the_adapter_is_not(make_trainer):
    trainer = make_trainer()
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) != ("lora_" in name), name


def test_reference_states_are_bit_equal_to_the_base_model(make_trainer, model):
    trainer = make_trainer(lora_b_init_std=0.1)
    trainer.train()
    [forward] = first_batch(trainer)["frozen"]
    with trainer.objective.frozen():
        reference = trainer.objective.states(trainer.model, [forward])
    base = {term: ((2, 3), tokens) for term, tokens in forward["gather"].items()}
    model.set_attn_implementation(ATTENTION)
    with torch.no_grad():
        expected = hidden_states_at(model, get_decoder(model), forward["inputs"], forward["num_layers"], base)
    assert set(reference) == {"rr", "retain_l2"}
    for term, states in reference.items():
        assert all(torch.equal(state, other) for state, other in zip(states, expected[term], strict=True))


def test_reference_states_do_not_depend_on_the_mode_of_the_network(make_trainer, model):
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer = make_trainer(model=model)
    [forward] = first_batch(trainer)["frozen"]
    references = []
    for training in (False, True):
        trainer.model.train(training)
        get_decoder(model).norm.eval()  # a part that stays in evaluation mode
        modes = [module.training for module in trainer.model.modules()]
        with trainer.objective.frozen():
            references.append(trainer.objective.states(trainer.model, [forward]))
        assert [module.training for module in trainer.model.modules()] == modes
    for term, states in references[0].items():
        assert all(torch.equal(state, other) for state, other in zip(states, references[1][term], strict=True))


def test_adapter_is_on_the_layers_that_the_loss_depends_on(make_trainer):
    def adapted_layers(trainer):
        return {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in adapter(trainer)}

    assert adapted_layers(make_trainer(target_layers=[1, 2])) == {0, 1}
    assert adapted_layers(make_trainer(target_layers=[1, 2], retain_l2_layers=["all"])) == {0, 1, 2}
    assert adapted_layers(make_trainer(target_layers=[4], retain_l2_layers=["all"])) == {0, 1, 2, 3}
    trainer = make_trainer(target_layers=[2])
    trainer.train()
    start = adapter(make_trainer(target_layers=[2]))
    assert not any(torch.equal(value, start[name]) for name, value in adapter(trainer).items())
    assert {name.split(".")[-4] for name in start} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    pattern = LoraConfig(target_modules=r".*\.layers\.[12]\..*_proj")
    assert adapted_layers(make_trainer(target_layers=[3], peft_config=pattern)) == {1, 2}
    for config in (pattern, LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2])):
        with pytest.raises(ValueError, match=r"weights in decoder layer 2 .* never be trained"):
            make_trainer(target_layers=[2], peft_config=config)


def test_initial_noise_is_set_by_its_deviation_and_the_seed(make_trainer, model):
    b = {std: adapter(make_trainer(lora_b_init_std=std)) for std in (0.0, 1e-2)}
    matrices = [name for name in b[0.0] if "lora_B" in name]
    assert not any(b[0.0][name].any() for name in matrices)
    values = torch.cat([b[1e-2][name].flatten() for name in matrices])
    assert values.std().item() == pytest.approx(1e-2, rel=0.1)
    torch.manual_seed(1)  # the noise depends on the run's own seed only
    again = adapter(make_trainer(model=model, lora_b_init_std=1e-2))
    assert all(torch.equal(again[name], value) for name, value in b[1e-2].items())


def test_preparing_a_prepared_dataset_changes_nothing(make_trainer, tokenizer):
    trainer = make_trainer()
    again = trainer._prepare_dataset(trainer.train_dataset, tokenizer, trainer.args, "train")
    assert again.to_list() == trainer.train_dataset.to_list()


def test_columns_of_other_trainers_change_nothing(make_trainer, rows):
    """TRL hands a column of this name to the chat template; here the template gets what provenance says."""
    plain = make_trainer().train_dataset
    kwargs = [{"date_string": "1 Jan 1970", "enable_thinking": False}] * len(rows())
    with_column = make_trainer(train_dataset=rows().add_column("chat_template_kwargs", kwargs)).train_dataset
    assert with_column.column_names == plain.column_names
    assert with_column["input_ids"] == plain["input_ids"]


def test_long_and_empty_rows_are_named(make_trainer, rows, sample):
    empty = rows().from_list(
        [sample("ds/empty", "circuit_breaker", "harmful_flip", "Moon", "", "train")], features=rows().features
    )
    with pytest.raises(ValueError, match="1 of the 17 rows of the train dataset have no completion: ds/empty"):
        make_trainer(train_dataset=concatenate_datasets([rows(), empty]))
    with pytest.raises(ValueError, match=r"more than `max_length=24` tokens: ds/0, ds/1, .* nothing is truncated"):
        make_trainer(max_length=24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_dataset": None}, "`train_dataset` is required"),
        ({"peft_config": None}, "Pass a `peft_config`"),
        ({"target_layers": [2, 9]}, r"asks for the layers \[2, 9\], but the model has the layers 1 to 4"),
        ({"retain_l2_layers": ["0.5", "7"]}, r"`retain_l2_layers` asks for the layers \[2, 7\]"),
        ({"retain_l2_distance": "relative"}, r"`retain_l2_distance` must be one of \('absolute', 'scaled'\)"),
        ({"term_classes": {"retain_l2": ["benign"]}}, r"`term_classes` has \['benign'\] for 'retain_l2'"),
        ({"term_classes": {"retain": ["refusal"]}}, "a term of `term_classes` must be one of .* got 'retain'"),
        ({"term_classes": {"retain_l2": ["borderline"]}}, "no row of the retain set .* in the classes borderline"),
        ({"term_classes": {"rr": []}}, r"`term_classes` must .* for 'rr', got \[\]\. .*, set `rr_weight: 0`"),
        ({"term_classes": {"rr": [["refusal"]]}}, r"`term_classes` has \[\['refusal'\]\] for 'rr'"),
        ({"preset": "published"}, "`preset` must be one of .* got 'published'"),
        ({"schedule": "exponential"}, "`schedule` must be one of"),
        ({"rr_weight": 0.0, "retain_l2_weight": 0.0}, "Every term of the loss has weight 0"),
        ({"padding_free": False}, "`shared_prefix` needs packed rows"),
        (
            {"rr_tokens": "tool_call"},
            "6 of the 16 rows .* no token for the term 'rr': ds/0, .*'harmful_flip'",
        ),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"rr_tokens": "prompt"}, "`rr_tokens` must be one of"),
        ({"target_layers": [0]}, "layers from 1 up"),
        ({"max_steps": -1}, "`max_steps` must be at least 1"),
        ({"max_length": None}, "`max_length` must be a number"),
        ({"num_train_epochs": 3}, "`num_train_epochs: 3` is not supported: .* Set `max_steps` instead"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha: 5.0` is not supported"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor: 0.1` is not supported"),
        (
            {"train_sampling_strategy": "group_by_length"},
            "`train_sampling_strategy: group_by_length` is not supported",
        ),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size: True` is not supported: .*`retain_batch_size`"),
        (
            {"accelerator_config": {"dispatch_batches": True}},
            "`dispatch_batches=True` in `accelerator_config` is not supported",
        ),
        ({"eval_on_start": True}, "`eval_on_start` needs an `eval_dataset`"),
        ({"retain_l2_layers": ["target", "2"]}, "`retain_l2_layers` must be all, target or layers"),
    ],
)
def test_bad_settings_say_what_to_do(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_sets_without_rows_are_refused(make_trainer, rows):
    with pytest.raises(ValueError, match="train dataset has no row of the circuit breaker set"):
        make_trainer(train_dataset=rows(harmful=0))
    with pytest.raises(ValueError, match="eval dataset has no row of the retain set"):
        make_trainer(eval_dataset=rows(retain={}))
    with pytest.raises(ValueError, match="has an unknown class: set 'retain', priority_class 'chat'"):
        make_trainer(train_dataset=rows(retain={"chat": 1}))


def redacted_rows(attacked_rows) -> Dataset:
    """Every row of Ds as `generate-ds --redact-harmful-prompt` writes it."""

    def redact(row: dict) -> dict:
        return redacted(row) if row["set"] == "circuit_breaker" else row

    return Dataset.from_list([redact(row) for row in attacked_rows().to_list()], features=SAMPLE_FEATURES)


def test_redacted_rows_are_trained_on_with_the_default_preset(make_trainer, attacked_rows):
    trainer = make_trainer(preset="selective", train_dataset=redacted_rows(attacked_rows), max_steps=2)
    assert all(row["redacted"] for row in trainer.train_dataset if row["set"] == "circuit_breaker")
    trainer.train()
    losses = logged(trainer, "loss/unlikelihood")
    assert len(losses) == 2 and min(losses) > 0


def test_without_a_term_for_redacted_rows_redaction_is_named_as_the_cause(make_trainer, attacked_rows):
    with pytest.raises(ValueError) as error:
        make_trainer(
            preset="selective", unlikelihood_weight=0.0, triplet_weight=1.0, train_dataset=redacted_rows(attacked_rows)
        )
    assert "4 rows of the train dataset are redacted (`generate-ds --redact-harmful-prompt`)" in str(error.value)
    assert "rr and unlikelihood would" in str(error.value) and "\n" not in str(error.value)


def test_excluded_class_is_never_drawn_and_the_others_all_are(make_trainer):
    def drawn_classes(trainer):
        batches = trainer.get_train_dataloader().batch_sampler
        return Counter(trainer.train_dataset[row]["priority_class"] for batch in batches for row in batch)

    options = {"max_steps": 12, "per_device_train_batch_size": 1}
    assert set(drawn_classes(make_trainer(**options))) == {
        "harmful_flip",
        "benign_twin",
        "refusal",
        "adversarial_safe",
    }
    without = drawn_classes(make_trainer(**options, term_classes={"retain_l2": ["benign_twin", "refusal"]}))
    # masses 5 x 1.2 and 3 x 1.0 share 36 rows of Dr
    assert without == {"harmful_flip": 12, "benign_twin": 24, "refusal": 12}


@pytest.mark.parametrize("even", [True, False])
def test_accumulation_of_small_batches_is_one_large_batch(make_trainer, rows, even):
    options = {"train_dataset": rows(harmful=12, retain={"benign_twin": 12}, even=even), "max_steps": 3}
    large = make_trainer(**options, per_device_train_batch_size=8, retain_batch_size=8)
    small = make_trainer(**options, per_device_train_batch_size=1, retain_batch_size=1, gradient_accumulation_steps=8)
    for trainer in (large, small):
        trainer.train()
    for key in ("loss", "grad_norm", "loss/rr", "loss/retain_l2", "cosine/ds_layer_2", "coefficient/rr"):
        assert logged(small, key) == pytest.approx(logged(large, key), rel=1e-4), key
    for name, value in adapter(small).items():
        # As a whole: where a gradient is about zero, rounding decides the direction of Adam's step
        assert (value - adapter(large)[name]).norm() <= 1e-3 * adapter(large)[name].norm(), name


@pytest.mark.parametrize("accumulation", [1, 3])
def test_schedule_counts_optimizer_steps(make_trainer, accumulation):
    trainer = make_trainer(gradient_accumulation_steps=accumulation, retain_l2_weight=5.0)
    trainer.train()
    assert logged(trainer, "coefficient/rr") == [8.75, 7.5, 6.25, 5.0]
    assert logged(trainer, "coefficient/retain_l2") == [0.625, 1.25, 1.875, 2.5]
    for loss, rr, retain, c_rr, c_retain in zip(
        *(logged(trainer, key) for key in ("loss", "loss/rr", "loss/retain_l2", "coefficient/rr")),
        logged(trainer, "coefficient/retain_l2"),
        strict=True,
    ):
        assert loss == pytest.approx(c_rr * rr + c_retain * retain, rel=1e-5)


def test_interrupted_run_resumes_with_the_same_results(make_trainer, tmp_path):
    class Interrupt(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    options = {"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    options["peft_config"] = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1)
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    interrupted = make_trainer(**options, output_dir=str(tmp_path / "parts"), callbacks=[Interrupt()])
    interrupted.train()
    assert interrupted.state.global_step == 4
    resumed = make_trainer(**options, output_dir=str(tmp_path / "parts"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))

    for key in ("loss", "cosine/ds_layer_3", "loss/retain_l2", "coefficient/rr", "coefficient/retain_l2"):
        assert logged(resumed, key) == logged(whole, key), key
    for name, value in adapter(resumed).items():
        assert torch.equal(value, adapter(whole)[name]), name


def test_cosine_falls_and_the_retain_set_stays(make_trainer, caplog):
    trainer = make_trainer(max_steps=40, eval_strategy="no")
    with caplog.at_level(logging.WARNING):
        trainer.train()
    cosine, distance = logged(trainer, "cosine/ds"), logged(trainer, "loss/retain_l2")
    assert cosine[0] > 0.99
    assert cosine[-1] < 0.3
    assert distance[-1] < max(distance)
    assert "nothing is being rerouted" not in caplog.text


def test_run_without_rerouting_gets_a_warning(make_trainer, caplog):
    trainer = make_trainer(max_steps=20, learning_rate=1e-7, lora_b_init_std=0.0)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    warnings = [record.message for record in caplog.records if "nothing is being rerouted" in record.message]
    assert len(warnings) == 1
    assert "at step 3 of 20" in warnings[0]


def test_nan_loss_stops_the_run(make_trainer):
    trainer = make_trainer()
    next(value for name, value in trainer.model.named_parameters() if "lora_B" in name).data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 1 \(rr nan.* of the rows ds/\d, .*/\d"):
        trainer.train()


@pytest.mark.parametrize("norm", ["token", "reference"])
def test_evaluation_is_the_mean_over_all_rows(make_trainer, rows, norm):
    # 7 rows of Ds and 3 of Dr: in batches of 2 the last ones hold rows of Ds alone
    dataset = rows(harmful=7, retain={"benign_twin": 3}, split="eval")
    options = {"eval_dataset": dataset, "lora_b_init_std": 0.1, "retain_l2_norm": norm}
    evaluations = [make_trainer(**options, per_device_eval_batch_size=size).evaluate() for size in (16, 2)]
    whole, divided = evaluations
    for key in ("eval_loss", "eval_loss/rr", "eval_loss/retain_l2", "eval_cosine/ds_layer_2", "eval_cosine/ds"):
        assert divided[key] == pytest.approx(whole[key], rel=1e-5), key
    assert whole["eval_coefficient/rr"] == 10.0
    assert whole["eval_loss"] == pytest.approx(10.0 * whole["eval_loss/rr"], rel=1e-6)
    assert whole["eval_loss/retain_l2"] > 0


def test_evaluation_during_training_has_its_own_metrics(make_trainer, rows):
    trainer = make_trainer(eval_dataset=rows(split="eval"), eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert len(logged(trainer, "eval_loss/rr")) == 2
    assert len(logged(trainer, "loss/rr")) == 4
    assert logged(trainer, "eval_coefficient/rr") == [7.5, 5.0]
    assert trainer.evaluate(rows(split="eval"))["eval_loss/rr"] == logged(trainer, "eval_loss/rr")[-1]


def test_rows_to_evaluate_on_are_those_of_every_run(make_trainer, attacked_rows):
    options = {"preset": "selective", "train_dataset": attacked_rows(), "eval_dataset": attacked_rows(split="eval")}
    plain = dict.fromkeys(("span_wrap", "span_noise", "bare_head", "text_noise"), 0.0)
    augmented = {"seed": 1, "adversary_steps": 2, "adversary_rate": 1.0, **dict.fromkeys(plain, 1.0)}
    runs = [
        make_trainer(**options, **{f"{name}_probability" if name in plain else name: value for name, value in own})
        for own in (plain.items(), augmented.items())
    ]
    assert runs[0].eval_dataset.to_list() == runs[1].eval_dataset.to_list()
    assert runs[0].train_dataset.to_list() != runs[1].train_dataset.to_list()


def test_saved_adapter_loads_on_the_full_model(make_trainer, model, tmp_path):
    trainer = make_trainer(target_layers=[1, 2])
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    inputs = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    model.eval(), trainer.model.eval()
    base = model(inputs).logits.detach()
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert torch.equal(loaded(inputs).logits, trainer.model(inputs).logits)
    assert not torch.allclose(loaded(inputs).logits, base, atol=1e-2)


def test_adapter_of_an_earlier_run_is_trained_further(make_trainer, model):
    earlier = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[0, 1, 2]))
    trainer = make_trainer(model=earlier, peft_config=None, max_steps=1)
    assert not any(value.any() for name, value in adapter(trainer).items() if "lora_B" in name)  # no noise added
    trainer.train()
    with pytest.raises(ValueError, match="together with a `peft_config`"):
        make_trainer(model=earlier)


def test_adapter_that_was_loaded_for_inference_is_refused(make_trainer, model, tmp_path):
    get_peft_model(copy(model), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path)
    with pytest.raises(ValueError, match=r"no parameter to train.* `PeftModel\.from_pretrained\(.*is_trainable=True"):
        make_trainer(model=loaded, peft_config=None)


def test_merged_model_computes_what_the_adapted_model_computes(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_merged(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    inputs = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    trainer.model.eval()
    torch.testing.assert_close(merged(inputs).logits, trainer.model(inputs).logits, rtol=1e-4, atol=1e-4)
    with trainer.model.disable_adapter():
        assert not torch.allclose(merged(inputs).logits, trainer.model(inputs).logits, atol=1e-2)
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert any("lora_" in name for name, _ in trainer.model.named_parameters())  # the trainer's model is not merged


def test_adapter_has_the_shape_that_vllm_loads(make_trainer, tmp_path):
    trainer = make_trainer(target_layers=[1, 2])
    trainer.save_model(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    # Settings that vLLM's PEFTHelper rejects or ignores
    assert (config["peft_type"], config["bias"], config["use_dora"]) == ("LORA", "none", False)
    assert config["modules_to_save"] is None
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    pattern = r"base_model\.model\.model\.layers\.[01]\.(self_attn|mlp)\.\w+_proj\.lora_[AB]\.weight"
    assert all(re.fullmatch(pattern, name) for name in weights)
    assert all(config["r"] in value.shape for value in weights.values())


def test_settings_that_fsdp2_does_not_support_are_errors(make_trainer):
    trainer = make_trainer()
    trainer.is_fsdp_enabled = True
    trainer._refuse_with_fsdp(trainer.args)  # all other settings are supported
    for name, value in (("reference_cache", "folder"), ("merge", True), ("adversary_steps", 2)):
        args = copy(trainer.args)
        setattr(args, name, value)
        with pytest.raises(ValueError, match=f"`{name}` is not supported with FSDP2"):
            trainer._refuse_with_fsdp(args)


def test_processes_with_different_forwards_are_an_error_not_a_deadlock(make_trainer, monkeypatch):
    trainer = make_trainer(preset="reference", target_layers=[1, 2])
    batch = first_batch(trainer)
    trainer._check_same_forwards(batch)
    other = torch.tensor([[[0] * 5, [0] * 5]])
    monkeypatch.setattr(trainer.accelerator, "gather", lambda counts: torch.cat([counts, other]))
    with pytest.raises(ValueError, match=r"different forwards.*Raise `retain_batch_size`"):
        trainer._check_same_forwards(batch)


def test_card_has_method_data_gates_and_evaluation(make_trainer, tmp_path):
    trainer = make_trainer(output_dir=str(tmp_path / "breaker"), dataset_revision="sha256:12ab")
    numbers = [(1.0, 0.8), (16790, 10.0), (5 / 12, -0.00001234), (None, 12345.5)]
    names = ["harmful: attack succeeded", "retain: rows", "retain: share", "retain: none"]
    gates = {
        "passed": True,
        "gates": [
            {"name": name, "value": value, "limit": limit, "rows": 17}
            for name, (value, limit) in zip(names, numbers, strict=True)
        ],
    }
    metric = {"value": 0.025, "low": 0.014, "high": 0.045, "n": 400}
    evaluation = {
        "settings": {"adapters": {"breaker": "12ab", "plain_rr": "34cd"}},
        "base": {"asr": {**metric, "value": 0.96}},
        "breaker": {"asr": metric},
        "plain_rr": {},
    }
    trainer.create_model_card(dataset_name="someone/samples", gates=gates, evaluation=evaluation)
    card = ModelCard.load(tmp_path / "breaker" / "README.md")
    assert card.data.datasets == "someone/samples"
    assert card.data.library_name == "peft"
    for text in (
        *("# breaker", "arxiv", "2406.04313", "`rr` x 10.0", "`retain_l2` x 10.0", "revision `sha256:12ab`"),
        *(
            "6 harmful_flip",
            "| 0.01, constant |",
            "| harmful: attack succeeded | 1 | 0.8 | 17 |",
            "| retain: rows | 16790 | 10 | 17 |",
            f"| retain: share | {gate_number(5 / 12)} | {gate_number(-0.00001234)} | 17 |",
            f"| retain: none | nothing to measure | {gate_number(12345.5)} | 17 |",
            "96.0%",
            "2.5%",
            "n=400",
            "| base | breaker | plain_rr |",
            "n=400 | - |",
        ),
    ):
        assert text.lower() in card.content.lower(), text
    trainer.create_model_card()
    card = (tmp_path / "breaker" / "README.md").read_text()
    assert "Not evaluated yet" in card and "No report of gates" in card


def test_card_of_a_breaker_that_does_not_reroute_says_so(make_trainer, attacked_rows, tmp_path):
    trainer = make_trainer(preset="selective", train_dataset=attacked_rows(), output_dir=str(tmp_path))
    trainer.create_model_card()
    assert "does not reroute hidden states" in (tmp_path / "README.md").read_text()


def test_card_says_how_the_adapter_is_served(make_trainer, tmp_path, caplog):
    options = {"r": 24, "target_modules": ["q_proj", "o_proj"]}
    trainer = make_trainer(output_dir=str(tmp_path), peft_config=LoraConfig(**options))
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "--enable-lora --max-lora-rank 32 --lora-modules breaker=path/to/this/folder" in card
    assert "--tokenizer path/to/this/folder" in card and "--tool-call-parser llama3_json" in card
    switches = {"fused_lora": False, "masked_logits": False}
    for kind, name in (({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")):
        trainer = make_trainer(output_dir=str(tmp_path), peft_config=LoraConfig(**options, **kind), **switches)
        assert f"The adapter has {name}, so vLLM cannot serve it" in caplog.text
        trainer.create_model_card()
        card = (tmp_path / "README.md").read_text()
        assert f"vLLM cannot serve this adapter: it has {name}. Merge it" in card and "vllm serve" not in card


def test_biases_are_refused(make_trainer):
    with pytest.raises(ValueError, match="`bias='all'` is not supported"):
        make_trainer(peft_config=LoraConfig(target_modules=["q_proj"], bias="all"))


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_initialisations_that_change_the_base_weights_are_refused(make_trainer, name):
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=name)
    for options in ({"peft_config": config}, {"peft_config": None, "model": get_peft_model(make_model(), config)}):
        with pytest.raises(ValueError, match=f"the initialisation {name}, which changes the base weights"):
            make_trainer(**options)


@pytest.mark.parametrize("std", [0.0, 1e-2])
def test_mica_keeps_its_frozen_matrices_and_the_base_weights_and_trains_the_others(make_trainer, std):
    """The columns of B are singular vectors of the base weights. Noise in their place would never be trained."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="mica")
    trainer = make_trainer(peft_config=config, lora_b_init_std=std)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    for name, value in before.items():
        if "lora_B" in name:
            torch.testing.assert_close(value.T @ value, torch.eye(4), rtol=0, atol=1e-5)
        elif "lora_A" in name:
            assert value.std().item() == pytest.approx(std, rel=0.3)
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_A" in name}


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"target_modules": r".*(q_proj|lm_head)"}])
def test_a_trained_head_is_refused_with_masked_logits(make_trainer, attacked_rows, settings):
    config = LoraConfig(**{"target_modules": ["q_proj"]} | settings)
    options = {"preset": "selective", "train_dataset": attacked_rows(), "lora_b_init_std": 0.0, "peft_config": config}
    with pytest.raises(ValueError, match=r"The adapter trains the LM head.*`masked_logits: false`"):
        make_trainer(**options)
    make_trainer(**options, masked_logits=False)
