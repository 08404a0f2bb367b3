"""Recorded states against those of `output_hidden_states=True`."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, Qwen3Config

from trainers.objective import losses
from trainers.objective.hidden_states import LogitsHead, first_layers, get_decoder, hidden_states_at
from trainers.objective.terms import NORM


INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 3, 2, 262, 262]])
ATTENTION_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def plain_states(model):
    outputs = model(input_ids=INPUT_IDS, attention_mask=ATTENTION_MASK, output_hidden_states=True)
    return [state[ATTENTION_MASK.bool()] for state in outputs.hidden_states]


def recorded_states(model, layers, num_layers=None):
    inputs = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK}
    tokens = ATTENTION_MASK.flatten().nonzero().squeeze(1)
    num_layers = max(layers) if num_layers is None else num_layers
    return hidden_states_at(model, get_decoder(model), inputs, num_layers, {"all": (layers, tokens)})["all"]


def other_model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


SMALL = {
    "vocab_size": 263,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "granite"])
def test_layer_l_is_entry_l_of_the_tuple(model, architecture):
    if architecture == "qwen3":
        model = other_model(Qwen3Config(**SMALL))
    if architecture == "granite":  # scales its embeddings before the first layer
        model = other_model(GraniteConfig(**{**SMALL, "embedding_multiplier": 3.0}))
    model.eval()
    plain = plain_states(model)
    for layer, state in zip((0, 1, 3), recorded_states(model, (0, 1, 3)), strict=True):
        torch.testing.assert_close(state, plain[layer], rtol=0, atol=1e-6)


def test_state_l_is_the_output_of_layer_l_minus_1(model):
    recorded = {}
    model.model.layers[2].register_forward_hook(lambda module, args, output: recorded.update(output=output))
    [state] = recorded_states(model, (3,))
    assert torch.equal(state, recorded["output"][ATTENTION_MASK.bool()])


def test_last_state_is_taken_before_the_norm_unless_norm_is_given(model):
    plain = plain_states(model)
    [before] = recorded_states(model, (4,))
    [after] = recorded_states(model, (NORM,), num_layers=4)
    torch.testing.assert_close(after, plain[4], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.model.norm(before), plain[4], rtol=0, atol=1e-6)
    assert not torch.allclose(before, plain[4], atol=1e-2)


def test_states_with_norm_are_those_of_a_truncated_model(model):
    recorded = recorded_states(model, (0, 1, 2, NORM), num_layers=3)
    model.model.layers = model.model.layers[:3]
    for state, plain in zip(recorded, plain_states(model), strict=True):
        torch.testing.assert_close(state, plain, rtol=0, atol=1e-6)


def test_nothing_above_the_last_layer_runs(model):
    def forbid(module, args):
        raise AssertionError("must not run")

    model.model.layers[2].register_forward_pre_hook(forbid)
    shapes = []
    model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    recorded_states(model, (1, 2))
    assert shapes == [(2, 0, 263)]  # no token reaches the LM head


def test_model_is_restored_after_an_error(model):
    decoder = get_decoder(model)
    with pytest.raises(RuntimeError, match="stop"), first_layers(decoder, 2):
        assert len(decoder.layers) == 2
        raise RuntimeError("stop")
    assert len(decoder.layers) == 4
    recorded_states(model, (1, 2))
    assert not any(layer._forward_hooks for layer in decoder.layers)


def test_gradients_equal_those_of_the_plain_forward(model):
    parameter = model.model.layers[0].mlp.up_proj.weight
    gradients = []
    for states in (plain_states(model)[2:4], recorded_states(model, (2, 3))):
        (gradient,) = torch.autograd.grad(sum(state.square().sum() for state in states), parameter)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_each_name_gets_its_layers_and_tokens(model):
    plain = plain_states(model)
    gather = {"a": ((2, 1), torch.tensor([0, 7])), "b": ((NORM,), torch.tensor([4]))}
    inputs = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK}
    states = hidden_states_at(model, get_decoder(model), inputs, 4, gather)
    positions = [0, 7]  # among the 10 flattened positions, of which the mask covers the first 8
    assert torch.equal(states["a"][0], plain[2][positions])
    assert torch.equal(states["a"][1], plain[1][positions])
    assert torch.equal(states["b"][0], plain[4][[4]])
    logits = hidden_states_at(model, get_decoder(model), inputs, 4, gather, full_logits=True)["b"][0]
    torch.testing.assert_close(logits, model.lm_head(plain[4][[4]]))


@pytest.mark.parametrize("chunk_size", [3, 100])
def test_logits_in_chunks_are_the_logits(model, chunk_size):
    head, targets = LogitsHead(model, chunk_size), torch.arange(7)
    states = torch.randn(7, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain = losses.cross_entropy(model.lm_head(states), targets)
    ours = head(losses.cross_entropy, [states], targets)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    own, expected = (torch.autograd.grad(values.sum(), states)[0] for values in (ours, plain))
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


def test_model_that_scales_its_logits_is_refused():
    with pytest.raises(ValueError, match=r"Granite.* `masked_logits: false`"):
        LogitsHead(other_model(GraniteConfig(**{**SMALL, "logits_scaling": 3.0})), chunk_size=10)
