"""Every speed setting leaves the loss and its gradients as they are."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from tests.trainers.conftest import make_model
from tests.trainers.objective.test_parity import assert_same, one_batch
from tools.tiny_architectures import tiny_model
from trainers.objective.terms import TERMS
from trainers.speed.fused_lora import LoraProduct, MergedLoraProduct, merging_pays
from trainers.speed.fused_rms_norm import RMSNormProduct, fuse_norms
from trainers.speed.recomputed_mlp import recompute_gates


PLAIN = dict.fromkeys(
    ["padding_free", "shared_prefix", "skip_layers", "masked_logits", "fused_lora", "fused_norms", "recompute_gates"],
    False,
)

SWITCHES = {
    "skip_layers": {"skip_layers": True},
    "masked_logits": {"masked_logits": True},
    "chunked": {"masked_logits": True, "logits_chunk_size": 5},
    "padding_free": {"padding_free": True},
    "shared_prefix": {"padding_free": True, "shared_prefix": True},
    "fused_lora": {"fused_lora": True},
    "fused_norms": {"fused_norms": True},
    "recompute_gates": {"recompute_gates": True},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "all": dict.fromkeys(PLAIN, True) | {"gradient_checkpointing": True, "logits_chunk_size": 5},
}

# All terms together, the two presets, and the adversary.
LOSSES = {
    "reference": {"preset": "reference", "target_layers": [1, 2]},
    "selective": {"preset": "selective"},
    "adversary": {"preset": "selective", "adversary_steps": 2, "adversary_rate": 1.0},
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
        if "gradient_checkpointing" in switches:  # as `train` does
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        batch, ours = one_batch(trainer, step=2)
        assert [row["id"] for row in batch] == [row["id"] for row in rows], name
        assert trainer.model.is_gradient_checkpointing == ("gradient_checkpointing" in switches)
        # The adversary's steps are normalized gradients, which magnify rounding
        assert_same(trainer, ours, plain_of(trainer, plain_trainer, plain), 3e-5 if loss == "adversary" else 3e-6)


def plain_of(trainer, plain_trainer, plain):
    """The plain loss as a function of the parameters of `trainer`, which equal those of `plain_trainer`."""
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


def test_forwards_with_different_numbers_of_layers_are_joined_where_rows_share_tokens(make_trainer, attacked_rows):
    """Rows of the same record share their prompts, so that one forward through more layers is cheaper than two."""
    options = {"preset": "reference", "target_layers": [1, 2], "train_dataset": attacked_rows(refusals=0)}
    options |= {"lora_b_init_std": 0.1, "per_device_train_batch_size": 4, "retain_batch_size": 8}
    trainer, apart = make_trainer(**options), make_trainer(**options)
    apart.data_collator.join_forwards = False
    rows, ours = one_batch(trainer, step=2)
    _, plain = one_batch(apart, step=2)
    layers_run = [[forward["num_layers"] for forward in t.data_collator(rows)["adapted"]] for t in (trainer, apart)]
    assert layers_run == [[3], [2, 3]]
    assert_same(trainer, ours, plain_of(trainer, apart, plain))


@pytest.mark.parametrize("masked_logits", [True, False])
def test_cached_states_change_neither_loss_nor_gradients(make_trainer, attacked_rows, tmp_path, masked_logits):
    options = {
        **LOSSES["everything"],
        "train_dataset": attacked_rows(),
        "lora_b_init_std": 0.1,
        "retain_batch_size": 8,
    }
    options["masked_logits"] = masked_logits
    plain_trainer = make_trainer(**options)
    _, plain = one_batch(plain_trainer, step=2)

    trainer = make_trainer(**options, reference_cache=str(tmp_path / "cache"))
    rows, ours = one_batch(trainer, step=2)
    assert_same(trainer, ours, plain_of(trainer, plain_trainer, plain))
    files = set((tmp_path / "cache").rglob("*.safetensors"))
    gathered = sum(TERMS[term].teacher is not None for row in rows for term in trainer.plan.terms_of(row))
    assert 0 < len(files) <= gathered  # terms with the same positions share it

    # With half of the cache: stored and computed rows are put together in the right order
    for path in sorted(files)[::2]:
        path.unlink()
    again = make_trainer(**options, reference_cache=str(tmp_path / "cache"))
    _, ours = one_batch(again, step=2)
    assert_same(again, ours, plain_of(again, plain_trainer, plain))
    assert set((tmp_path / "cache").rglob("*.safetensors")) == files

    # With the whole cache the frozen network does not run
    third = make_trainer(**options, reference_cache=str(tmp_path / "cache"))
    assert third.data_collator(rows)["frozen"] == []


def test_cached_states_are_those_of_one_model(make_trainer, tmp_path):
    options = {"reference_cache": str(tmp_path / "cache"), "preset": "reference", "target_layers": [1, 2]}
    one_batch(make_trainer(**options), step=1)
    number = len(list((tmp_path / "cache").rglob("*.safetensors")))
    one_batch(make_trainer(**options, lora_b_init_std=0.3), step=1)  # another adapter on the same model
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == number
    one_batch(make_trainer(**options, model=make_model(seed=5)), step=1)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2 * number
    one_batch(make_trainer(**options, bf16=True), step=1)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3 * number


def test_bfloat16_is_the_same_loss_up_to_rounding(make_trainer, attacked_rows):
    options = {
        **LOSSES["everything"],
        "train_dataset": attacked_rows(),
        "lora_b_init_std": 0.1,
        "retain_batch_size": 8,
    }
    _, plain = one_batch(make_trainer(**options), step=2)
    _, ours = one_batch(make_trainer(**options, model=make_model().bfloat16(), bf16=True), step=2)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(plain.item(), rel=3e-2)


def test_only_mlps_with_the_same_forward_recompute_their_gates():
    class Halved(LlamaMLP):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x) / 2) * self.up_proj(x))

    class Normed(LlamaMLP):
        def forward(self, x):
            return self.down_proj(self.norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))

    config = make_model().config
    plain, gelu = LlamaMLP(config), LlamaMLP(LlamaConfig(**config.to_dict() | {"hidden_act": "gelu"}))
    others = [gelu, Halved(config), Normed(config)]
    recompute_gates(nn.ModuleList([plain, *others]))
    assert "forward" in vars(plain)
    assert not any("forward" in vars(mlp) for mlp in others)
    # A copy computes with its own weights
    copy, x = deepcopy(plain), torch.ones(1, config.hidden_size)
    plain.up_proj.weight.data.zero_()
    assert plain(x).abs().sum() == 0
    assert copy(x).abs().sum() > 0


@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_of_lora_are_those_of_its_formula(dropout):
    torch.manual_seed(0)
    sizes = [(5, 4), (5, 4), (6, 4), (6,), (2, 4), (6, 2)]
    x, dropped, weight, bias, A, B = (torch.randn(size, dtype=torch.float64) for size in sizes)
    trained = [x, dropped, A, B] if dropout else [x, A, B]
    for tensor in trained:
        tensor.requires_grad_()
    arguments = x, dropped if dropout else None, weight, bias, A, B, 0.5
    formula = x @ weight.T + bias + ((dropped if dropout else x) @ A.T * 0.5) @ B.T
    assert torch.allclose(LoraProduct.apply(*arguments), formula)
    assert torch.autograd.gradcheck(LoraProduct.apply, arguments)
    if not dropout:
        arguments = x, weight, bias, A, B, 0.5
        assert torch.allclose(MergedLoraProduct.apply(*arguments), formula)
        assert torch.autograd.gradcheck(MergedLoraProduct.apply, arguments)


def test_lora_is_merged_where_that_takes_fewer_multiplications():
    # 96 x 96 with rank 64: 55k multiplications of a token if narrow, 28k if merged
    assert merging_pays(4000, 64, 96, 96)
    assert not merging_pays(1, 64, 96, 96)
    assert not merging_pays(4000, 8, 96, 96)
    assert not merging_pays(100_000, 64, 4096, 4096)


def test_gradients_of_a_norm_are_those_of_its_formula():
    torch.manual_seed(0)
    x, weight = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(5, 8), (8,)])
    assert torch.allclose(RMSNormProduct.apply(x, weight, 0.1), nn.functional.rms_norm(x, (8,), weight, 0.1))
    assert torch.autograd.gradcheck(RMSNormProduct.apply, (x, weight, 0.1))


def test_norms_and_mlps_that_take_a_further_argument_keep_their_forward():
    """The norm of Granite 4's Mamba layers computes the same without its optional gate, but is given one."""
    model, x = tiny_model("granitemoehybrid"), torch.randint(3, 99, (2, 9))
    plain = model(x).logits
    fuse_norms(model)
    recompute_gates(model)
    assert torch.allclose(model(x).logits, plain, rtol=1e-5, atol=1e-6)
    fused = {type(module).__name__ for module in model.modules() if "forward" in vars(module)}
    assert fused == {"GraniteMoeHybridRMSNorm"}


def test_only_norms_with_the_same_forward_are_fused():
    plain, other = LlamaRMSNorm(8), Gemma2RMSNorm(8)
    other.variance_epsilon = other.eps  # the same attribute, but another norm
    fuse_norms(nn.ModuleList([plain, other, nn.LayerNorm(8)]))
    assert "forward" in vars(plain)
    assert "forward" not in vars(other)
    x = torch.randn(2, 3, 8)
    assert torch.equal(plain(x), LlamaRMSNorm.forward(plain, x))
    assert torch.equal(plain(x.bfloat16()), LlamaRMSNorm.forward(plain, x.bfloat16()))
