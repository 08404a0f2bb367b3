"""The trainer: what it computes, on which tokens, and that neither accumulation nor an interruption changes it."""

import logging
import math
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from datasets import concatenate_datasets
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from cb_datasets.chat import encode_sample
from trainers import CircuitBreakerConfig
from trainers.circuit_breaker_trainer import DataCollatorForCircuitBreaker
from trainers.hidden_states import get_decoder, hidden_states_at


def adapter(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_" in name}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def train_at_step(trainer, step):
    trainer.model.train()
    trainer.state.global_step = step - 1


# What a plain implementation computes: every hidden state of whole padded batches, masks by multiplication.
def plain_loss(trainer, batch, step):
    args, model = trainer.args, trainer.model
    losses = {}
    for name in ("circuit_breaker", "retain"):
        inputs = {key: batch[name][key] for key in ("input_ids", "attention_mask")}
        decoder, published = get_decoder(model), name == "retain" and args.retain_l2_layers == "all"
        blocks = decoder.layers
        decoder.layers = blocks[: max(args.target_layers) + 1]
        with torch.no_grad(), model.disable_adapter():
            reference = model(**inputs, output_hidden_states=True).hidden_states
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        decoder.layers = blocks
        layers = range(len(hidden)) if published else args.target_layers
        hidden, reference = (torch.stack([states[layer] for layer in layers]) for states in (hidden, reference))
        tokens = args.rr_tokens if name == "circuit_breaker" else args.retain_l2_tokens
        mask = batch[name]["completion_mask" if tokens == "completion" else "attention_mask"].float()
        if name == "circuit_breaker":
            cosine = F.cosine_similarity(hidden, reference, dim=-1)
            losses[name] = (F.relu(cosine) * mask).sum() / (mask.sum() * len(layers))
        else:
            distance = torch.linalg.vector_norm(hidden * mask[..., None] - reference * mask[..., None], dim=-1)
            positions = mask.numel() if args.retain_l2_norm == "reference" else mask.sum()
            losses[name] = distance.sum() / (positions * len(layers))
    progress = step / (2 * args.max_steps)
    return (
        args.alpha * (1 - progress) * losses["circuit_breaker"]
        + args.alpha * progress * args.retain_coefficient * losses["retain"]
    )


VARIANTS = {
    "default": {},
    "published": {
        "rr_tokens": "all",
        "retain_l2_tokens": "all",
        "retain_l2_layers": "all",
        "retain_l2_norm": "reference",
        "pad_to_multiple_of": 64,
    },
    "mixed": {"retain_l2_norm": "reference", "rr_tokens": "all", "retain_coefficient": 0.3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_equal_the_plain_computation(make_trainer, variant):
    trainer = make_trainer(**VARIANTS[variant], lora_b_init_std=0.1, target_layers=[1, 2])
    batch = first_batch(trainer)
    train_at_step(trainer, 3)
    parameters = [value for value in trainer.model.parameters() if value.requires_grad]
    ours, plain = trainer.compute_loss(trainer.model, batch), plain_loss(trainer, batch, step=3)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for gradient, expected in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


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
    inputs = first_batch(trainer)["circuit_breaker"]
    _, reference = trainer._hidden_states(trainer.model, "circuit_breaker", inputs)
    with torch.no_grad():
        base = hidden_states_at(
            model, get_decoder(model), [2, 3], inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
        )
    for state, expected in zip(reference, base, strict=True):
        assert torch.equal(state, expected)


def test_adapter_reaches_the_blocks_that_a_loss_reaches(make_trainer):
    def blocks(trainer):
        return {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in adapter(trainer)}

    assert blocks(make_trainer(target_layers=[1, 2])) == {0, 1}
    assert blocks(make_trainer(target_layers=[1, 2], retain_l2_layers="all")) == {0, 1, 2}
    assert blocks(make_trainer(target_layers=[4], retain_l2_layers="all")) == {0, 1, 2, 3}
    trainer = make_trainer(target_layers=[2])
    trainer.train()
    start = adapter(make_trainer(target_layers=[2]))
    assert not any(torch.equal(value, start[name]) for name, value in adapter(trainer).items())
    assert {name.split(".")[-4] for name in start} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    with pytest.raises(ValueError, match="never be trained"):
        make_trainer(target_layers=[2], peft_config=LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2]))


def test_initial_noise_is_set_by_its_deviation_and_the_seed(make_trainer, model):
    b = {std: adapter(make_trainer(lora_b_init_std=std)) for std in (0.0, 1e-2)}
    matrices = [name for name in b[0.0] if "lora_B" in name]
    assert not any(b[0.0][name].any() for name in matrices)
    values = torch.cat([b[1e-2][name].flatten() for name in matrices])
    assert values.std().item() == pytest.approx(1e-2, rel=0.1)
    torch.manual_seed(1)  # whatever was drawn before, the run's own seed decides
    again = adapter(make_trainer(model=model, lora_b_init_std=1e-2))
    assert all(torch.equal(again[name], value) for name, value in b[1e-2].items())


def test_mask_covers_the_completion_and_nothing_else(make_trainer, rows, tokenizer):
    trainer = make_trainer()
    assert len(trainer.train_dataset) == 16
    for row, source in zip(trainer.train_dataset, rows(), strict=True):
        encoded = encode_sample(tokenizer, source)
        assert row["input_ids"] == encoded["prompt_ids"] + encoded["completion_ids"]
        kept = [token for token, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
        assert kept == encoded["completion_ids"]
        assert tokenizer.decode(kept) == source["assistant_raw"]


@pytest.mark.parametrize("name", ["circuit_breaker", "retain"])
def test_loss_does_not_read_states_of_prompt_tokens(make_trainer, name):
    trainer = make_trainer()
    inputs = first_batch(trainer)[name]
    hidden, reference = trainer._hidden_states(trainer.model, name, inputs)
    assert {len(state) for state in hidden + reference} == {int(inputs["completion_mask"].sum())}
    trainer.args.rr_tokens = trainer.args.retain_l2_tokens = "all"
    hidden, _ = trainer._hidden_states(trainer.model, name, inputs)
    assert {len(state) for state in hidden} == {int(inputs["attention_mask"].sum())}


def test_collator_pads_each_set_on_its_own():
    batch = DataCollatorForCircuitBreaker(pad_token_id=9)(
        [
            {"set": "circuit_breaker", "input_ids": [1, 2, 3], "completion_mask": [0, 1, 1]},
            {"set": "retain", "input_ids": [4, 5], "completion_mask": [0, 1]},
            {"set": "retain", "input_ids": [6], "completion_mask": [1]},
        ]
    )
    assert {name: {key: value.tolist() for key, value in part.items()} for name, part in batch.items()} == {
        "circuit_breaker": {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]], "completion_mask": [[0, 1, 1]]},
        "retain": {
            "input_ids": [[4, 5], [6, 9]],
            "attention_mask": [[1, 1], [1, 0]],
            "completion_mask": [[0, 1], [1, 0]],
        },
    }


def test_preparing_twice_is_preparing_once(make_trainer, tokenizer):
    trainer = make_trainer()
    again = trainer._prepare_dataset(trainer.train_dataset, tokenizer, trainer.args, "train")
    assert again.to_list() == trainer.train_dataset.to_list()


def test_long_and_empty_rows_are_named(make_trainer, rows, sample):
    empty = rows().from_list(
        [sample("ds/empty", "circuit_breaker", "harmful_flip", "Moon", "", "train")], features=rows().features
    )
    with pytest.raises(ValueError, match="1 of the 17 rows of the train dataset have no completion: ds/empty"):
        make_trainer(train_dataset=concatenate_datasets([rows(), empty]))
    with pytest.raises(ValueError, match="more than `max_length=24` tokens: ds/0, ds/1, .* nothing is truncated"):
        make_trainer(max_length=24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_dataset": None}, "`train_dataset` is required"),
        ({"peft_config": None}, "Pass a `peft_config`"),
        ({"target_layers": [2, 9]}, "asks for layer 9, but the model has 4 blocks"),
        ({"retain_l2_classes": ["benign"]}, r"`retain_l2_classes` has \['benign'\]"),
        ({"retain_l2_classes": ["borderline"]}, "no row of the retain set .* in the classes borderline"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"rr_tokens": "prompt"}, "`rr_tokens` must be one of"),
        ({"target_layers": [0]}, "layers from 1 up"),
        ({"max_steps": -1}, "`max_steps` must be at least 1"),
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
    with pytest.raises(ValueError, match="of no class that batches are drawn by: set 'retain', priority_class 'chat'"):
        make_trainer(train_dataset=rows(retain={"chat": 1}))


def test_excluded_class_is_never_drawn_and_the_others_all_are(make_trainer):
    def drawn(trainer):
        batches = trainer.get_train_dataloader().batch_sampler
        return Counter(trainer.train_dataset[row]["priority_class"] for batch in batches for row in batch)

    options = {"max_steps": 12, "per_device_train_batch_size": 1}
    assert set(drawn(make_trainer(**options))) == {"harmful_flip", "benign_twin", "refusal", "adversarial_safe"}
    without = drawn(make_trainer(**options, retain_l2_classes=["benign_twin", "refusal"]))
    # masses 5 x 1.2 and 3 x 1.0 share 36 rows of Dr
    assert without == {"harmful_flip": 12, "benign_twin": 24, "refusal": 12}


@pytest.mark.parametrize("even", [True, False])
def test_accumulation_of_small_batches_is_one_large_batch(make_trainer, rows, even):
    options = {"train_dataset": rows(harmful=12, retain={"benign_twin": 12}, even=even), "max_steps": 3}
    large = make_trainer(**options, per_device_train_batch_size=8, retain_batch_size=8)
    small = make_trainer(**options, per_device_train_batch_size=1, retain_batch_size=1, gradient_accumulation_steps=8)
    for trainer in (large, small):
        trainer.train()
    for key in ("loss", "grad_norm", "loss/rr", "loss/retain_l2", "cosine/layer_2", "coefficient/rr"):
        assert logged(small, key) == pytest.approx(logged(large, key), rel=1e-4), key
    for name, value in adapter(small).items():
        torch.testing.assert_close(value, adapter(large)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_schedule_counts_optimizer_steps(make_trainer, accumulation):
    trainer = make_trainer(gradient_accumulation_steps=accumulation, retain_coefficient=0.5)
    trainer.train()
    assert logged(trainer, "coefficient/rr") == [8.75, 7.5, 6.25, 5.0]
    assert logged(trainer, "coefficient/retain_l2") == [0.625, 1.25, 1.875, 2.5]
    for loss, rr, retain, c_rr, c_retain in zip(
        *(logged(trainer, key) for key in ("loss", "loss/rr", "loss/retain_l2", "coefficient/rr")),
        logged(trainer, "coefficient/retain_l2"),
        strict=True,
    ):
        assert loss == pytest.approx(c_rr * rr + c_retain * retain, rel=1e-5)


def test_interrupted_run_goes_on_as_if_it_had_not_been(make_trainer, tmp_path):
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

    for key in ("loss", "cosine/layer_3", "loss/retain_l2", "coefficient/rr", "coefficient/retain_l2"):
        assert logged(resumed, key) == logged(whole, key), key
    for name, value in adapter(resumed).items():
        assert torch.equal(value, adapter(whole)[name]), name


def test_cosine_falls_and_the_retain_set_stays(make_trainer, caplog):
    trainer = make_trainer(max_steps=40, eval_strategy="no")
    with caplog.at_level(logging.WARNING):
        trainer.train()
    cosine, distance = logged(trainer, "cosine/mean"), logged(trainer, "loss/retain_l2")
    assert cosine[0] > 0.99
    assert cosine[-1] < 0.3
    assert distance[-1] < max(distance)
    assert "nothing is being rerouted" not in caplog.text


def test_run_that_does_not_leave_its_start_is_told_of(make_trainer, caplog):
    trainer = make_trainer(max_steps=20, learning_rate=1e-7, lora_b_init_std=0.0)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    warnings = [record.message for record in caplog.records if "nothing is being rerouted" in record.message]
    assert len(warnings) == 1
    assert "at step 3 of 20" in warnings[0]


def test_loss_that_is_no_number_stops_the_run(make_trainer):
    trainer = make_trainer()
    next(value for name, value in trainer.model.named_parameters() if "lora_B" in name).data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="The loss is nan at step 1"):
        trainer.train()


def test_evaluation_is_the_mean_over_all_rows(make_trainer, rows):
    # 7 rows of Ds and 3 of Dr: in batches of 2 the last ones hold rows of Ds alone
    dataset = rows(harmful=7, retain={"benign_twin": 3}, split="eval")
    evaluations = [
        make_trainer(eval_dataset=dataset, lora_b_init_std=0.1, per_device_eval_batch_size=size).evaluate()
        for size in (16, 2)
    ]
    whole, parts = evaluations
    for key in ("eval_loss", "eval_loss/rr", "eval_loss/retain_l2", "eval_cosine/layer_2", "eval_cosine/mean"):
        assert parts[key] == pytest.approx(whole[key], rel=1e-5), key
    assert whole["eval_coefficient/rr"] == 10.0
    assert whole["eval_loss"] == pytest.approx(10.0 * whole["eval_loss/rr"], rel=1e-6)
    assert 0 < whole["eval_loss/retain_l2"]


def test_evaluation_during_training_leaves_its_metrics_apart(make_trainer, rows):
    trainer = make_trainer(eval_dataset=rows(split="eval"), eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert len(logged(trainer, "eval_loss/rr")) == 2
    assert len(logged(trainer, "loss/rr")) == 4
    assert logged(trainer, "eval_coefficient/rr") == [7.5, 5.0]
    assert trainer.evaluate(rows(split="eval"))["eval_loss/rr"] == logged(trainer, "eval_loss/rr")[-1]


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
        "training_args.bin",
    }
    inputs = first_batch(trainer)["circuit_breaker"]["input_ids"]
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


def test_help_of_each_option_is_its_docstring():
    def plain(text):
        return " ".join(text.split()).replace("[`", "`").replace("`]", "`").replace("`~transformers.", "`")

    entry = re.compile(r"^        (\w+) \([^\n]*\):\n((?:            .*\n?)+)", re.MULTILINE)
    documented = dict(entry.findall(CircuitBreakerConfig.__doc__))
    own = [name for name in CircuitBreakerConfig.__annotations__ if not name.startswith("_")]
    assert list(documented) == own
    for name in own:
        assert plain(documented[name]) == plain(CircuitBreakerConfig.__dataclass_fields__[name].metadata["help"]), name
