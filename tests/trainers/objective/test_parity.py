"""The loss and its gradients against plain implementations, written for these tests from the formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from tests.trainers.conftest import make_model
from trainers.objective.hidden_states import get_decoder


def gradients(trainer, loss):
    parameters = [value for value in trainer.model.parameters() if value.requires_grad]
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, parts, strict=True)]
    )


def assert_same(trainer, ours, plain, tolerance=3e-6):
    assert ours.item() == pytest.approx(plain.item(), rel=tolerance)
    expected, own = gradients(trainer, plain), gradients(trainer, ours)
    assert expected.norm() > 1e-3
    assert (own - expected).norm() <= tolerance * expected.norm()


def one_batch(trainer, step):
    """The rows of the first micro-batch, and its loss at a step."""
    loader = trainer.get_train_dataloader()
    rows = [trainer.train_dataset[row] for row in next(iter(loader.batch_sampler))]
    trainer.model.train()
    trainer.state.global_step, trainer.state.logging_steps = step - 1, 500
    return rows, trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))


def published_loss(trainer, rows, step, multiple):
    """Algorithm 1 as the published code computes it: a truncated model, padded batches, all hidden states stacked."""
    model, decoder = trainer.model, get_decoder(trainer.model)
    targets, alpha, total = trainer.args.target_layers, trainer.args.rr_weight, trainer.args.max_steps
    layers = decoder.layers
    decoder.layers = layers[: int(max(targets)) + 1]
    states = {}
    for name in ("circuit_breaker", "retain"):
        ids = [torch.tensor(row["input_ids"]) for row in rows if row["set"] == name]
        padded = pad_sequence(ids, batch_first=True, padding_value=262)
        padded = F.pad(padded, (0, -padded.shape[1] % multiple), value=262)
        mask = torch.zeros_like(padded)
        for row, tokens in zip(mask, ids, strict=True):
            row[: len(tokens)] = 1
        inputs = {"input_ids": padded, "attention_mask": mask}
        with torch.no_grad(), model.disable_adapter():
            reference = torch.stack(model(**inputs, output_hidden_states=True).hidden_states)
        states[name] = torch.stack(model(**inputs, output_hidden_states=True).hidden_states), reference, mask.float()
    decoder.layers = layers

    hidden, reference, mask = states["retain"]
    distances = torch.norm(hidden * mask[None, ..., None] - reference * mask[None, ..., None], dim=-1, p=2)
    retain = distances.nanmean()
    hidden, reference, mask = states["circuit_breaker"]
    hidden, reference = hidden[[int(layer) for layer in targets]], reference[[int(layer) for layer in targets]]
    unit, unit0 = (h / torch.norm(h, dim=-1, keepdim=True) for h in (hidden, reference))
    inner = F.relu((unit * unit0).sum(-1)) * mask[None]
    breaker = inner.sum() / (mask.sum() * len(targets))
    return alpha * (1 - step / (2 * total)) * breaker + alpha * step / (2 * total) * retain


@pytest.mark.parametrize("seed", range(6))
def test_reference_preset_is_the_published_computation(make_trainer, rows, seed):
    rng = np.random.default_rng(seed)
    num_layers = int(rng.integers(3, 7))
    targets = sorted(rng.choice(np.arange(1, num_layers), size=2, replace=False).tolist())
    total = int(rng.integers(5, 50))
    step, multiple = int(rng.integers(1, total + 1)), int(rng.choice([1, 16, 64]))
    trainer = make_trainer(
        preset="reference",
        model=make_model(num_hidden_layers=num_layers, seed=seed),
        train_dataset=rows(harmful=7, retain={"benign_twin": 5, "refusal": 4}),
        target_layers=targets,
        lora_b_init_std=0.1,
        rr_weight=(alpha := float(rng.uniform(1, 20))),
        retain_l2_weight=alpha,
        max_steps=total,
        pad_to_multiple_of=multiple,
        per_device_train_batch_size=int(rng.integers(1, 5)),
        retain_batch_size=int(rng.integers(1, 5)),
        seed=seed,
    )
    batch, ours = one_batch(trainer, step)
    assert_same(trainer, ours, published_loss(trainer, batch, step, multiple))


# --------------------------------------------------------------------------------------------------------------------
# Each term on its own, row by row, without padding


def outputs(trainer, ids, adapted):
    """Hidden states by layer, and the logits, of one row."""
    if adapted:
        output = trainer.model(torch.tensor([ids]), output_hidden_states=True)
    else:
        with torch.no_grad(), trainer.model.disable_adapter():
            output = trainer.model(torch.tensor([ids]), output_hidden_states=True)
    return [state[0] for state in output.hidden_states], output.logits[0]


def repeats(row, token):
    """Weight of a token of a completion: 5 if it decides what the completion does, otherwise 1."""
    return 5 if token == row["prompt_length"] or row["tool_name"][0] <= token <= row["tool_name"][1] else 1


def plain_term(trainer, rows, term):
    """Mean of a term over the tokens of the rows."""
    values, layers = [], [int(layer) for layer in trainer.args.target_layers]
    harmful = [row for row in rows if row["set"] == "circuit_breaker"]
    safe = [row for row in rows if row["priority_class"] == "adversarial_safe"]
    others = [row for row in rows if row["set"] == "retain" and row["priority_class"] != "adversarial_safe"]
    if term in ("rr", "retain_l2"):
        for row in harmful if term == "rr" else others + safe:
            h, h0 = outputs(trainer, row["input_ids"], True)[0], outputs(trainer, row["input_ids"], False)[0]
            for i in range(
                row["prompt_length"] - 1, len(row["input_ids"])
            ):  # from the token that predicts the first one
                cosines = [F.cosine_similarity(h[layer][i], h0[layer][i], dim=0) for layer in layers]
                distances = [
                    10 * torch.norm(h[layer][i] - h0[layer][i]) / torch.norm(h0[layer][i]) for layer in layers
                ]
                values.append(sum(map(F.relu, cosines)) / 2 if term == "rr" else sum(distances) / 2)
    if term in ("retain_kl", "distill", "twin"):
        for row in others if term == "retain_kl" else safe:
            other = row["input_ids"] if term == "retain_kl" else row["clean_ids"]
            (h, logits), (h0, logits0) = outputs(trainer, row["input_ids"], True), outputs(trainer, other, False)
            for back in range(1, len(row["input_ids"]) - row["prompt_length"] + 1 + (term == "twin")):
                i, j = (len(ids) - back - (term != "twin") for ids in (row["input_ids"], other))
                if term == "twin":
                    values.append(
                        sum(torch.norm(h[layer][i] - h0[layer][j]) / torch.norm(h0[layer][j]) for layer in layers) / 2
                    )
                else:
                    p, p0 = logits[i].softmax(0), logits0[j].softmax(0)
                    values += [(p0 * (p0 / p).log()).sum()] * repeats(row, i + 1)
    if term in ("ce", "splice"):
        for row in safe:
            ids, start = (
                (row["input_ids"], row["prompt_length"]) if term == "ce" else (row["splice_ids"], row["splice_start"])
            )
            logits = outputs(trainer, ids, True)[1]
            for i in range(start, len(ids)):
                # From the tool's name on both sequences are the same
                values += [-logits[i - 1].log_softmax(0)[ids[i]]] * repeats(row, i - len(ids) + len(row["input_ids"]))
    if term == "stop":
        for row in safe:
            logits = outputs(trainer, row["hijack_ids"], True)[1]
            values.append(-logits[-2].log_softmax(0)[row["hijack_ids"][-1]])
    if term == "unlikelihood":
        for row in harmful:
            logits, name = outputs(trainer, row["input_ids"], True)[1], row["name_divergence"]
            for i in {row["divergence"], *range(name, min(name + 2, row["tool_name"][1]))}:
                values.append(-torch.log1p(-logits[i - 1].softmax(0)[row["input_ids"][i]]))
    if term == "triplet":
        retain_margin, breaker_margin = trainer.args.triplet_margins
        spans = [(row, range(row["prompt_length"] - 1, len(row["input_ids"]))) for row in harmful + others]
        states = [
            (
                row["set"],
                *(torch.stack(outputs(trainer, row["input_ids"], adapted)[0][:4])[:, span] for adapted in (1, 0)),
            )
            for row, span in spans
        ]
        center = torch.cat([h for name, h, _ in states if name == "circuit_breaker"], dim=1).mean(1, keepdim=True)

        def d(a, b):
            return 0.5 * torch.norm(a - b, dim=-1) + 0.5 * (1 - F.cosine_similarity(a, b, dim=-1))

        for name, h, h0 in states:
            own, far = d(h, h0)[layers], d(h, center)[layers]
            value = far - own + breaker_margin if name == "circuit_breaker" else own - far + retain_margin
            values += F.relu(value).mean(0)
    return sum(values) / len(values)


WEIGHTS = {
    **{"rr": 0.7, "unlikelihood": 0.3, "triplet": 0.2, "retain_l2": 0.5, "retain_kl": 1.1},
    **{"distill": 0.9, "twin": 1.3, "splice": 0.8, "ce": 0.4, "stop": 0.6},
}


def trainer_with_terms(make_trainer, attacked_rows, terms, **options):
    weights = {f"{term}_weight": WEIGHTS[term] if term in terms else 0.0 for term in WEIGHTS}
    return make_trainer(
        preset="selective",
        train_dataset=attacked_rows(),
        lora_b_init_std=0.1,
        rr_from="start",
        decision_weight=5.0,
        per_device_train_batch_size=2,
        retain_batch_size=5,
        triplet_margins=[5.0, 9.0],
        **weights | options,
    )


@pytest.mark.parametrize("term", WEIGHTS)
def test_each_term_is_its_formula_on_rows_of_their_own(make_trainer, attacked_rows, term):
    trainer = trainer_with_terms(make_trainer, attacked_rows, [term])
    rows, ours = one_batch(trainer, step=1)
    assert_same(trainer, ours, WEIGHTS[term] * plain_term(trainer, rows, term), tolerance=1e-5)


def test_terms_are_summed_by_their_weights(make_trainer, attacked_rows):
    trainer = trainer_with_terms(make_trainer, attacked_rows, WEIGHTS)
    rows, ours = one_batch(trainer, step=1)
    plain = sum(weight * plain_term(trainer, rows, term) for term, weight in WEIGHTS.items())
    assert_same(trainer, ours, plain, tolerance=1e-5)
