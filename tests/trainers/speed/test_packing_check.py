"""Models whose packed rows are not their padded ones are refused."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tools.tiny_architectures import NUM_LAYERS, tiny_model
from trainers.speed import packing_check
from trainers.speed.packed_attention import ATTENTION
from trainers.speed.packing_check import use_packed_attention


def check(model, num_layers=NUM_LAYERS, max_length=512):
    use_packed_attention(model, num_layers, max_length)
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("qwen3_next", "linear_attention"),
        ("qwen3_5_text", "linear_attention"),
        ("granitemoehybrid", "linear_attention"),
        ("lfm2", "conv"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_mix_tokens_other_than_by_attention_are_refused(architecture, layers, dtype):
    model = tiny_model(architecture).to(dtype)
    message = (
        rf"{type(model).__name__} computes other hidden states for packed rows .* relative difference of 0\.\d+, .*"
        rf"Not all of its layers are full or sliding attention: {layers} .*`padding_free: false`"
    )
    with pytest.raises(ValueError, match=message):
        check(model)


def test_only_layers_that_the_loss_depends_on_are_compared():
    model = tiny_model("qwen3_next", layer_types=["full_attention"] * 2 + ["linear_attention"] * 2)
    check(model, num_layers=2)
    with pytest.raises(ValueError, match="linear_attention"):
        check(model, num_layers=3)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "granitemoehybrid_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_not_refused(architecture, dtype):
    check(tiny_model(architecture).to(dtype))


def test_mode_and_random_numbers_are_restored():
    model = get_peft_model(
        tiny_model("gpt_oss", attention_dropout=0.5), LoraConfig(target_modules=["q_proj"], lora_dropout=0.5)
    )
    for training in (True, False):
        model.train(training)
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        check(model)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(module.training == training for module in model.modules())


def test_attention_in_chunks_is_refused_where_rows_are_longer():
    model = tiny_model("llama4_text", attn_temperature_tuning=False)
    message = r"Llama4ForCausalLM cannot run packed rows: .* chunks of 16 tokens .* 512 \(`max_length`\)"
    with pytest.raises(ValueError, match=message):
        check(model)


def test_queries_scaled_by_their_position_in_the_packed_row_are_refused():
    model = tiny_model("llama4_text", attention_chunk_size=512)
    with pytest.raises(ValueError, match=r"`attn_temperature_tuning`.*`padding_free: false`"):
        check(model)


def test_a_forward_that_fails_is_refused_by_its_cause(monkeypatch):
    model = tiny_model("llama")

    def unknown(*args, **kwargs):
        raise ValueError("LlamaAttention passes `new_bias`. Set `padding_free: false` and `shared_prefix: false`.")

    monkeypatch.setattr(packing_check, "packed", unknown)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot run packed rows: LlamaAttention passes `new_bias`"):
        check(model)


@pytest.mark.parametrize("cause", ["rank", "meta"])
def test_processes_without_weights_do_not_compare(monkeypatch, cause):
    """With FSDP one process loads the weights, and the others hold arbitrary values until it sends them."""
    model = tiny_model("qwen3_next")
    if cause == "meta":
        model.to("meta")
    else:
        ranks = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 1)
        monkeypatch.setattr(packing_check.torch, "distributed", ranks)
    check(model)
