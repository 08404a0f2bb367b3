"""Every way to be faster computes the same loss and the same gradients as the plain way."""

import pytest
import torch

from tests.trainers.test_parity import assert_same, one_batch


PLAIN = {"padding_free": False, "shared_prefix": False, "skip_layers": False, "masked_logits": False}

SWITCHES = {
    "skip_layers": {"skip_layers": True},
    "masked_logits": {"masked_logits": True},
    "chunked": {"masked_logits": True, "logits_chunk_size": 5},
    "padding_free": {"padding_free": True},
    "shared_prefix": {"padding_free": True, "shared_prefix": True},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "all": dict.fromkeys(PLAIN, True) | {"gradient_checkpointing": True, "logits_chunk_size": 5},
}

# All terms together, and the two presets.
LOSSES = {
    "reference": {"preset": "reference", "target_layers": [1, 2]},
    "selective": {"preset": "selective"},
    "everything": {
        "preset": "selective",
        **{f"{term}_weight": 0.5 for term in ("rr", "retain_l2", "twin", "ce", "triplet")},
        "retain_l2_layers": ["1", "0.5", "4"],
    },
}


@pytest.mark.parametrize("loss", LOSSES)
def test_switches_change_neither_loss_nor_gradients(make_trainer, attacked_rows, loss):
    options = {**LOSSES[loss], "train_dataset": attacked_rows(), "lora_b_init_std": 0.1, "retain_batch_size": 8}
    plain_trainer = make_trainer(**options, **PLAIN)
    rows, plain = one_batch(plain_trainer, step=2)
    for name, switches in SWITCHES.items():
        trainer = make_trainer(**options, **PLAIN | switches)
        if "gradient_checkpointing" in switches:  # which `train` turns on
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        batch, ours = one_batch(trainer, step=2)
        assert [row["id"] for row in batch] == [row["id"] for row in rows], name
        assert trainer.model.is_gradient_checkpointing == ("gradient_checkpointing" in switches)
        assert_same(trainer, ours, plain_of(trainer, plain_trainer, plain))


def plain_of(trainer, plain_trainer, plain):
    """The plain loss as a function of the trainer's own parameters, which are equal to the plain one's."""
    parameters = [value for value in trainer.model.parameters() if value.requires_grad]
    others = [value for value in plain_trainer.model.parameters() if value.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    gradients = torch.autograd.grad(plain, others, retain_graph=True, allow_unused=True)
    products = [
        (parameter * gradient).sum() - (parameter * gradient).sum().detach()
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    ]
    return plain.detach() + sum(products)
