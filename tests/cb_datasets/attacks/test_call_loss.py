"""The loss of attacked prompts against plain forward passes."""

import pytest
import torch

from cb_datasets.attacks.call_loss import CallLoss
from cb_datasets.attacks.slots import make_slots
from cb_datasets.generation.transformers_backend import TransformersBackend

from .conftest import greedy, opening_of


LENGTHS = [(0, 6), (5, 6)]


def slots_of(agent, row, usable, lengths):
    return make_slots(agent.tokenizer, [row], lengths, usable, torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_losses_equal_those_of_forward_passes_over_whole_prompts(agent, row, usable, lengths, batch_size):
    """Neither the cached tokens, nor the grouping by first replaced slot, nor batching change them."""
    slots, opening = slots_of(agent, row, usable, lengths), opening_of(agent, row)
    shared = slots.initial
    variations = [[*shared[:slot], shared[slot - 1], *shared[slot + 1 :]] for slot in range(len(shared))]
    candidates = [shared, shared[::-1], *variations]
    with agent.network() as network:
        losses, opened = CallLoss(network, slots, opening, batch_size).losses(candidates, shared)
        for candidate, loss, opens in zip(candidates, losses, opened, strict=True):
            ids = torch.tensor([slots.prompt_ids(candidate) + opening])
            logits = network(input_ids=ids).logits[0, -len(opening) - 1 : -1]
            expected = torch.nn.functional.cross_entropy(logits, torch.tensor(opening))
            assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
            assert opens == (logits.argmax(dim=-1).tolist() == opening)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_gradient_with_respect_to_one_hot_rows_matches_finite_differences(agent, row, usable, lengths):
    """The embedding in one slot is shifted slightly towards another token's."""
    slots, opening = slots_of(agent, row, usable, lengths), opening_of(agent, row)
    with agent.network() as network:
        loss = CallLoss(network, slots, opening, batch_size=8)
        gradient = loss.gradient(slots.initial)
        weight = network.get_input_embeddings().weight.detach()
        for token in usable.nonzero()[:3, 0].tolist():
            embedded = [weight[slots.initial].clone() for _ in range(2)]
            for vectors, sign in zip(embedded, (1, -1), strict=True):
                vectors[2] += sign * 0.01 * weight[token]
            up, down = (loss.embedding_losses(vectors[None]).item() for vectors in embedded)
            assert gradient[2, token].item() == pytest.approx((up - down) / 0.02, rel=0.05, abs=1e-3)


def test_base_is_attacked_without_the_adapter(agent, adapter, row, usable, tiny_agent_path):
    """Also after a completion in between: `generate` deactivates and restores the adapter by itself."""
    slots, opening = slots_of(agent, row, usable, (0, 6)), opening_of(agent, row)
    losses = {}
    alone = TransformersBackend(str(tiny_agent_path))
    adapted = TransformersBackend(str(tiny_agent_path), str(adapter))
    for name, backend in (("alone", alone), ("base", agent), ("breaker", adapted), ("merged", adapted.merged())):
        with backend.network() as network:
            greedy(backend, slots.ids)
            losses[name] = CallLoss(network, slots, opening, 8).losses([slots.initial], slots.initial)[0].item()
    assert losses["base"] == pytest.approx(losses["alone"], abs=1e-6)
    assert losses["base"] != pytest.approx(losses["breaker"], abs=1e-2)
    assert losses["merged"] == pytest.approx(losses["breaker"], abs=1e-4)
