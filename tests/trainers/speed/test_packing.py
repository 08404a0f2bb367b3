"""Packed rows against the same rows padded."""

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from transformers import AutoModelForCausalLM, Qwen3Config

from trainers.speed.packed_attention import ATTENTION, packed_attention
from trainers.speed.packing import packed, padded


SYSTEM = list(range(100, 140))
SEQUENCES = [
    [*SYSTEM, 1, 2, 3],
    [*SYSTEM, 1, 2, 4, *range(20)],
    [*SYSTEM, 9],
    SYSTEM,  # a prefix of others
    [*SYSTEM, 1, 2, 4, *range(20), 7, 7],
    [*SYSTEM, 1, 2, 4, *range(20)],  # a duplicate
    [5],
    [5, 6, 7, 8, 9, 10, 11],
]


def has_sequences(layout, sequences=SEQUENCES):
    flat = layout.inputs["input_ids"].flatten().numpy()
    return [flat[own].tolist() for own in layout.positions] == sequences


@pytest.mark.parametrize("share_prefixes", [False, True])
def test_layout_has_every_sequence(share_prefixes):
    layout = packed(SEQUENCES, share_prefixes)
    assert has_sequences(layout)
    positions = layout.inputs["position_ids"].flatten().numpy()
    assert all(positions[own].tolist() == list(range(len(own))) for own in layout.positions)


def test_shared_prefix_is_packed_once():
    assert packed(SEQUENCES, share_prefixes=False).inputs["input_ids"].shape[1] == sum(map(len, SEQUENCES))
    # SYSTEM once; 3 tokens; 1 token; 23 tokens once for the three rows that share them, and 2; the short rows
    assert packed(SEQUENCES, share_prefixes=True).inputs["input_ids"].shape[1] == 40 + 3 + 1 + 23 + 2 + 1 + 7


def test_short_prefixes_are_not_shared():
    layout = packed([[1, 2, 3, *range(10, 40)], [1, 2, 3, *range(50, 80)]], share_prefixes=True)
    assert layout.inputs["input_ids"].shape[1] == 66


def logits_and_gradients(model, layout):
    parameters = [model.model.layers[0].self_attn.k_proj.weight, model.model.layers[1].mlp.up_proj.weight]
    logits = model(**layout.inputs).logits.flatten(0, 1)[torch.from_numpy(np.concatenate(layout.positions))]
    return logits, torch.autograd.grad(logits.square().sum(), parameters)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("share_prefixes", [False, True])
def test_logits_and_gradients_equal_those_of_padded_rows(model, architecture, share_prefixes):
    if architecture == "qwen3":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 263}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen3Config(**sizes, **heads))
    logits, gradients = logits_and_gradients(model, padded(SEQUENCES, 0, length=80))
    model.set_attn_implementation(ATTENTION)
    own, own_gradients = logits_and_gradients(model, packed(SEQUENCES, share_prefixes))
    assert (own - logits).norm() <= 1e-6 * logits.norm()
    for ours, plain in zip(own_gradients, gradients, strict=True):
        assert (ours - plain).norm() <= 1e-6 * plain.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share_prefixes", [False, True])
def test_flash_attention_computes_what_the_groups_compute(share_prefixes):
    def attend(dtype):
        inputs = send_to_device(packed(SEQUENCES, share_prefixes).inputs, "cuda")
        generator = torch.Generator("cuda").manual_seed(0)
        shapes = [(1, heads, inputs["input_ids"].shape[1], 64) for heads in (4, 2, 2, 4)]
        *states, weights = (torch.randn(shape, generator=generator, device="cuda") for shape in shapes)
        states = [state.bfloat16().to(dtype).requires_grad_() for state in states]
        output, _ = packed_attention(torch.nn.Module(), *states, None, segments=inputs["segments"])
        (output.float() * weights.transpose(1, 2)).sum().backward()
        return [output, *(state.grad for state in states)]

    for ours, exact in zip(attend(torch.bfloat16), attend(torch.float32), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - exact).norm() <= 1e-2 * exact.norm()


def test_padded_rows_and_generation_work_with_the_same_attention(model):
    layout, prompt = padded(SEQUENCES, 0, length=80), torch.tensor([SYSTEM])
    plain, written = model(**layout.inputs).logits, model.generate(prompt, max_new_tokens=5, do_sample=False)
    model.set_attn_implementation(ATTENTION)
    assert torch.equal(model(**layout.inputs).logits, plain)
    assert torch.equal(model.generate(prompt, max_new_tokens=5, do_sample=False), written)


def test_rows_beyond_a_sliding_window_are_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 263, "num_hidden_layers": 2}
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(**sizes, **window, num_attention_heads=4, num_key_value_heads=2)
    )
    model.set_attn_implementation(ATTENTION)
    with pytest.raises(ValueError, match=r"sliding window of 16.*padding_free: false"):
        model(**packed(SEQUENCES, share_prefixes=True).inputs)
