"""Packed rows against the same rows padded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch._subclasses import FakeTensorMode

from tools.tiny_architectures import tiny_model
from trainers.speed import packed_attention as attention_module
from trainers.speed.packed_attention import ATTENTION, FlashAttentionWithSinks, packed_attention
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
    attention = [layer.self_attn for layer in model.model.layers[:2]]  # without and with a window, where there is one
    parameters = [parameter for one in attention for parameter in one.parameters()]
    logits = model(**layout.inputs).logits.flatten(0, 1)[torch.from_numpy(np.concatenate(layout.positions))]
    return logits, torch.autograd.grad(logits.square().sum(), parameters)


# Windows of 16 tokens, where rows have up to 65 and share up to 63: of all layers or of every other one, passed to the
# attention or not. Sinks, a soft cap, values smaller than keys.
@pytest.mark.parametrize(
    "architecture",
    ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_oss", "qwen2_moe", "exaone4", "deepseek_v3"],
)
@pytest.mark.parametrize("share_prefixes", [False, True])
def test_logits_and_gradients_equal_those_of_padded_rows(architecture, share_prefixes):
    model = tiny_model(architecture)
    logits, gradients = logits_and_gradients(model, padded(SEQUENCES, 0, length=80))
    model.set_attn_implementation(ATTENTION)
    own, own_gradients = logits_and_gradients(model, packed(SEQUENCES, share_prefixes))
    assert (own - logits).norm() <= 2e-6 * logits.norm()
    for ours, plain in zip(own_gradients, gradients, strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share_prefixes", [False, True])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("sinks", [False, True])
def test_flash_attention_computes_what_the_groups_compute(share_prefixes, window, sinks):
    def attend(dtype):
        inputs = send_to_device(packed(SEQUENCES, share_prefixes).inputs, "cuda")
        generator = torch.Generator("cuda").manual_seed(0)
        shapes = [(1, heads, inputs["input_ids"].shape[1], 64) for heads in (4, 2, 2, 4)]
        *states, weights = (torch.randn(shape, generator=generator, device="cuda") for shape in shapes)
        states = [state.bfloat16().to(dtype).requires_grad_() for state in states]
        s_aux = torch.linspace(-1, 1, 4, device="cuda", dtype=dtype).requires_grad_() if sinks else None
        settings = {"sliding_window": window, "s_aux": s_aux, "segments": inputs["segments"]}
        output, _ = packed_attention(nn.Module(), *states, None, **settings)
        (output.float() * weights.transpose(1, 2)).sum().backward()
        return [output, *(state.grad for state in states), *([s_aux.grad] if sinks else [])]

    for ours, exact in zip(attend(torch.bfloat16), attend(torch.float32), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - exact).norm() <= 1e-2 * exact.norm()


def test_padded_rows_and_generation_work_with_the_same_attention(model):
    layout, prompt = padded(SEQUENCES, 0, length=80), torch.tensor([SYSTEM])
    plain, written = model(**layout.inputs).logits, model.generate(prompt, max_new_tokens=5, do_sample=False)
    model.set_attn_implementation(ATTENTION)
    assert torch.equal(model(**layout.inputs).logits, plain)
    assert torch.equal(model.generate(prompt, max_new_tokens=5, do_sample=False), written)


# ---------------------------------------------------------------------------------------------------------------------
# Flash Attention, emulated on the CPU: the kernels are given, what is made of them is compared


def scores_of_segments(query, key, cu_seq_q, cu_seq_k, scale, window):
    """Scores of each segment's queries and keys, `(heads, queries, keys)`, hidden ones -inf; and their ranges."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    ranges = zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:], strict=True)
    for start_q, end_q, start_k, end_k in ranges:
        q, k = slice(start_q, end_q), slice(start_k, end_k)
        scores = torch.einsum("qhd,khd->hqk", query[q], key[k]) * scale
        distance = (torch.arange(end_q - start_q) + (end_k - start_k) - (end_q - start_q))[:, None] - torch.arange(
            end_k - start_k
        )
        hidden = (distance < 0) | ((distance > window[0]) & (window[0] >= 0))
        yield q, k, scores.masked_fill(hidden, -torch.inf)


def flash_forward(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal, scale, window, enable_gqa):
    assert query.shape[-1] == value.shape[-1]
    assert window[1] == 0
    assert enable_gqa
    assert causal == (window[0] == -1)
    output, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    for q, k, scores in scores_of_segments(query, key, cu_seq_q, cu_seq_k, scale, window):
        output[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[k])
        lse[:, q] = scores.logsumexp(-1)
    return output, lse, torch.zeros(2)


def flash_backward(
    grad, query, key, value, output, lse, cu_seq_q, cu_seq_k, max_q, max_k, causal, rng_state, scale, window
):
    """Backward as Flash Attention defines it: probabilities from the log-sum-exp, not from a softmax."""
    groups = query.shape[1] // key.shape[1]
    wide_key, wide_value = (state.repeat_interleave(groups, dim=1) for state in (key, value))
    grads = [torch.zeros_like(state) for state in (query, wide_key, wide_value)]
    for q, k, scores in scores_of_segments(query, key, cu_seq_q, cu_seq_k, scale, window):
        probabilities = torch.exp(scores - lse[:, q, None])
        along = (grad[q] * output[q]).sum(-1).t()[..., None]
        grad_scores = probabilities * (torch.einsum("qhd,khd->hqk", grad[q], wide_value[k]) - along) * scale
        grads[0][q] = torch.einsum("hqk,khd->qhd", grad_scores, wide_key[k])
        grads[1][k] = torch.einsum("hqk,qhd->khd", grad_scores, query[q])
        grads[2][k] = torch.einsum("hqk,qhd->khd", probabilities, grad[q])
    return grads[0], *(state.unflatten(1, (-1, groups)).sum(2) for state in grads[1:])


def flash_without_sinks(query, key, value, *ends, scale, window_size, enable_gqa):
    settings = (window_size == (-1, 0), scale, list(window_size), enable_gqa)
    return flash_forward(query, key, value, *ends, *settings)[0]


@pytest.mark.parametrize("share_prefixes", [False, True])
@pytest.mark.parametrize("window", [None, 7, 1000])
@pytest.mark.parametrize("sinks", [False, True])
def test_one_call_computes_what_the_groups_compute(monkeypatch, share_prefixes, window, sinks):
    def attend():
        generator = torch.Generator().manual_seed(0)
        inputs = packed(SEQUENCES, share_prefixes).inputs
        tokens = inputs["input_ids"].shape[1]
        shapes = [(1, 4, tokens, 8), (1, 2, tokens, 8), (1, 2, tokens, 6)]  # values smaller than keys
        states = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
        s_aux = torch.randn(4, generator=generator, requires_grad=True) if sinks else None
        weights = torch.randn((1, tokens, 4, 6), generator=generator)
        settings = {"scaling": 0.3, "sliding_window": window, "s_aux": s_aux, "segments": inputs["segments"]}
        output, _ = packed_attention(nn.Module(), *states, None, **settings)
        (output * weights).sum().backward()
        # Without sinks the emulated kernel is differentiated as it is: the backward of `varlen_attn` is PyTorch's own
        return [output, *(state.grad for state in states), *([s_aux.grad] if sinks else [])]

    by_group = attend()
    kernels = SimpleNamespace(_varlen_attn=flash_forward, _varlen_attn_backward=flash_backward)
    monkeypatch.setattr(torch.ops, "torch_attn", kernels, raising=False)
    monkeypatch.setattr(attention_module, "varlen_attn", flash_without_sinks)
    monkeypatch.setattr(attention_module, "_has_flash", lambda query, value: True)
    for ours, expected in zip(attend(), by_group, strict=True):
        assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_the_kernels_take_the_arguments_and_return_the_shapes_that_sinks_need():
    """PyTorch's own operators on tensors without values: their schemas and shapes are those of the GPU's."""
    with FakeTensorMode():
        states = [torch.empty(9, heads, 8, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)]
        sinks = torch.empty(4, dtype=torch.bfloat16, requires_grad=True)
        ends = (torch.empty(3, dtype=torch.int32), torch.empty(3, dtype=torch.int32), 5, 5)
        for window in ((-1, 0), (2, 0)):
            output = FlashAttentionWithSinks.apply(*states, sinks, ends, 0.3, window)
            gradients = torch.autograd.grad(output.sum(), [*states, sinks])
            shapes = [(9, 4, 8), (9, 2, 8), (9, 2, 8), (4,)]
            assert [tuple(gradient.shape) for gradient in gradients] == shapes
            assert output.dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------------------
# Ordinary batches, and what is refused


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padded_rows_have_windows_sinks_and_soft_caps(architecture, padding):
    model, layout = tiny_model(architecture), padded(SEQUENCES, 0, length=80)
    inputs = layout.inputs
    if padding == "left":
        inputs = {name: value.flip(1) for name, value in inputs.items()}
    tokens = inputs["attention_mask"].bool()
    plain = model(**inputs).logits[tokens]
    prompt = inputs["input_ids"][4:5][:, inputs["attention_mask"][4].bool()]
    written = model.generate(prompt, max_new_tokens=5, do_sample=False)
    model.set_attn_implementation(ATTENTION)
    own = model(**inputs).logits[tokens]
    assert (own - plain).norm() <= 1e-5 * plain.norm()
    assert torch.equal(model.generate(prompt, max_new_tokens=5, do_sample=False), written)


def attend_with(**kwargs):
    inputs = packed([[1, 2, 3]], share_prefixes=False).inputs
    states = [torch.ones(1, 2, 3, 4) for _ in range(3)]
    return packed_attention(nn.Module(), *states, None, **{"segments": inputs["segments"], **kwargs})


def test_keywords_that_change_the_result_are_refused():
    attend_with(position_ids=torch.arange(3)[None], use_cache=False, is_causal=True, new_bias=None)
    with pytest.raises(ValueError, match=r"Module passes `block_indices`, `new_bias` .*`padding_free: false`"):
        attend_with(new_bias=torch.ones(1), block_indices=torch.ones(1))
    with pytest.raises(ValueError, match=r"`is_causal`"):
        attend_with(is_causal=False)
    with pytest.raises(ValueError, match=r"`position_bias`"):
        attend_with(position_bias=torch.ones(1))
    with pytest.raises(ValueError, match=r"`new_bias`"):
        attend_with(new_bias=torch.ones(1), segments=None)
    attend_with(is_causal=False, segments=None)
