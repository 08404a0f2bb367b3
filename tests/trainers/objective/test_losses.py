"""Each loss against its formula, written out in loops."""

import math

import pytest
import torch

from trainers.objective import losses


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

    selected = [[h[mask.bool()] for h in network] for network in (hidden, reference)]
    assert losses.rr(*selected).mean().item() == pytest.approx(total / count, abs=1e-6)
    assert min(losses.token_cosine(h, h0).min() for h, h0 in zip(*selected, strict=True)) < 0  # the ReLU has an effect


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

    selected = [[h[mask.bool()] for h in network] for network in (hidden, reference)]
    items = mask.numel() if published else mask.sum()
    ours = losses.weighted_mean(losses.retain_l2(*selected), torch.ones(int(mask.sum())), items)
    assert ours.item() == pytest.approx(sum(norms) / len(norms), abs=1e-6)


def test_scaled_distance_of_retain_l2_is_that_of_frozen_states_with_norm_10():
    hidden, reference = states(layers=3, rows=2, length=6)
    scales = torch.linspace(1, 300, 12).reshape(2, 6, 1)  # of tokens, within a layer
    ours = losses.retain_l2(hidden, reference, "scaled")
    torch.testing.assert_close(
        ours, losses.retain_l2([h * scales for h in hidden], [h0 * scales for h0 in reference], "scaled")
    )
    norms = [10 / h0.norm(dim=-1, keepdim=True) for h0 in reference]
    ten = [[h * norm for h, norm in zip(network, norms, strict=True)] for network in (hidden, reference)]
    torch.testing.assert_close(ours, losses.retain_l2(*ten))


def test_gradient_at_the_start_of_a_run_is_zero_and_not_nan():
    hidden, _ = states(layers=1, rows=1, length=4)
    start = hidden[0][0].requires_grad_()
    losses.retain_l2([start], [start.detach()]).mean().backward()
    assert torch.equal(start.grad, torch.zeros_like(start))


def test_losses_of_bfloat16_states_are_float32():
    hidden, _ = states(layers=1, rows=1, length=64)
    h = [hidden[0][0].bfloat16()]
    assert losses.rr(h, h).mean().item() == pytest.approx(1.0, abs=1e-6)
    harmful = torch.ones(64, dtype=torch.bool)
    values = [
        losses.rr(h, h),
        losses.retain_l2(h, h),
        losses.twin(h, h),
        losses.triplet(h, h, harmful, (1.0, 1.0)),
    ]
    values += [losses.kl(h[0], h[0]), losses.cross_entropy(h[0], torch.zeros(64, dtype=torch.long))]
    values += [losses.unlikelihood(h[0], torch.zeros(64, dtype=torch.long)), losses.entropy(h[0])]
    assert {value.dtype for value in values} == {torch.float32}
    assert {value.shape for value in values} == {(64,)}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_that_of_the_teacher_from_the_student(temperature):
    [logits], [reference] = states(layers=1, rows=1, length=5)
    ours = losses.kl(logits[0], reference[0], temperature)
    for i in range(5):
        p = [math.exp(x / temperature) for x in logits[0, i].tolist()]
        p0 = [math.exp(x / temperature) for x in reference[0, i].tolist()]
        expected = sum(b / sum(p0) * math.log(b / sum(p0) / (a / sum(p))) for a, b in zip(p, p0, strict=True))
        assert ours[i].item() == pytest.approx(temperature**2 * expected, abs=1e-5)


def test_unlikelihood_is_exact_where_the_token_is_certain():
    logits = torch.tensor([[40.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    values = losses.unlikelihood(logits, torch.tensor([0, 1]))
    assert values.tolist() == pytest.approx([40 - math.log(2), -math.log(2 / 3)], abs=1e-5)
    values.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_entropy_of_a_coin_is_one_bit():
    assert losses.entropy(torch.zeros(1, 2)).item() == pytest.approx(math.log(2))


def test_twin_is_relative_to_the_frozen_state():
    hidden = [torch.tensor([[3.0, 4.0]])]
    assert losses.twin(hidden, [torch.tensor([[0.0, 2.0]])]).item() == pytest.approx(math.sqrt(13) / 2)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("linear", [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5)]),
        ("cosine", [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5)]),
        ("constant", [(1.0, 1.0)] * 3),
    ],
)
def test_schedules_end_at_half(name, ends):
    assert [losses.schedule(name, step, 150) for step in (0, 75, 150)] == [pytest.approx(end) for end in ends]
    breaker, retain = zip(*(losses.schedule(name, step, 150) for step in range(151)), strict=True)
    assert list(breaker) == sorted(breaker, reverse=True)
    assert list(retain) == sorted(retain)
