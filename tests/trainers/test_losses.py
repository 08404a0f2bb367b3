"""Every loss against its formula, written out in loops."""

import math

import pytest
import torch

from trainers.losses import linear_schedule, retain_l2_loss, rr_loss, token_cosine


def states(layers: int, rows: int, length: int, size: int = 8) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(2, layers, rows, length, size, generator=generator)
    return list(pairs[0]), list(pairs[1])


def test_rr_is_the_published_mean_over_layers_and_masked_tokens():
    hidden, reference = states(layers=2, rows=3, length=5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])

    total, count = 0.0, 0
    for layer in range(2):
        for row in range(3):
            for i in range(5):
                h, h0 = hidden[layer][row, i], reference[layer][row, i]
                cosine = float(h @ h0 / math.sqrt(float(h @ h)) / math.sqrt(float(h0 @ h0)))
                total += max(cosine, 0.0) * int(mask[row, i])
                count += int(mask[row, i])

    cosines = [token_cosine(h[mask.bool()], h0[mask.bool()]) for h, h0 in zip(hidden, reference, strict=True)]
    assert rr_loss(cosines, mask.sum()).item() == pytest.approx(total / count, abs=1e-6)
    assert min(cosine.min() for cosine in cosines) < 0  # the ReLU had something to do


@pytest.mark.parametrize("published", [False, True])
def test_retain_l2_is_a_mean_over_tokens_or_over_padded_positions(published):
    hidden, reference = states(layers=3, rows=2, length=6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]])

    norms = []
    for layer in range(3):
        for row in range(2):
            for i in range(6):
                m = int(mask[row, i])
                difference = m * hidden[layer][row, i] - m * reference[layer][row, i]
                if published or m:
                    norms.append(math.sqrt(sum(float(d) ** 2 for d in difference)))

    kept = [[h[mask.bool()] for h in side] for side in (hidden, reference)]
    items = mask.numel() if published else mask.sum()
    assert retain_l2_loss(*kept, items).item() == pytest.approx(sum(norms) / len(norms), abs=1e-6)


def test_gradient_at_the_start_of_a_run_is_zero_and_not_nan():
    hidden, _ = states(layers=1, rows=1, length=4)
    start = hidden[0][0].requires_grad_()
    retain_l2_loss([start], [start.detach()], 4).backward()
    assert torch.equal(start.grad, torch.zeros_like(start))


def test_losses_of_bfloat16_states_are_float32():
    hidden, _ = states(layers=1, rows=1, length=64)
    h = [hidden[0][0].bfloat16()]
    cosine = token_cosine(h[0], h[0])
    assert cosine.dtype == torch.float32
    assert rr_loss([cosine], 64).item() == pytest.approx(1.0, abs=1e-6)
    assert retain_l2_loss(h, [h[0] + 1], 64).dtype == torch.float32


def test_schedule_hands_over_half_of_alpha():
    assert linear_schedule(0, 150, alpha=10.0) == (10.0, 0.0)
    assert linear_schedule(75, 150, alpha=10.0) == (7.5, 2.5)
    assert linear_schedule(150, 150, alpha=10.0) == (5.0, 5.0)
