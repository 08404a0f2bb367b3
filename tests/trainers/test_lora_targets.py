"""LoRA on tiny random models of many architectures: which linear maps get it, and what the report says."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from trainers.lora_targets import coverage_line


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
EXPERTS = {"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}

SIZES = {
    "vocab_size": 263,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 262,
    "bos_token_id": 256,
    "eos_token_id": 259,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
MOE |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
DENSE_FIRST = MOE | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_n_groups": 1, "mamba_d_state": 8}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}

# By model type: further sizes, the modules with LoRA, and by reason those without in the first three layers
ARCHITECTURES = {
    "llama4_text": (
        MOE | {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
        ATTENTION | MLP,
        {
            "expert": {"feed_forward.experts.down_proj", "feed_forward.experts.gate_up_proj"},
            "router": {"feed_forward.router"},
        },
    ),
    "deepseek_v3": (
        DENSE_FIRST
        | {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "v_head_dim": 8}
        | {"head_dim": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        {
            "expert": EXPERTS,
            "router": {"mlp.gate"},
            "renamed": {f"mlp.{name}" for name in MLP} | {f"mlp.shared_experts.{name}" for name in MLP},
        },
    ),
    "glm4_moe": (
        DENSE_FIRST,
        ATTENTION,
        {
            "expert": EXPERTS,
            "router": {"mlp.gate"},
            "renamed": {f"mlp.{name}" for name in MLP} | {f"mlp.shared_experts.{name}" for name in MLP},
        },
    ),
    "qwen3_next": (
        MOE
        | {"layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2}
        | {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        ATTENTION | {"in_proj_qkvz", "in_proj_ba", "out_proj"},
        {
            "expert": EXPERTS,
            "router": {"mlp.gate", "mlp.shared_expert_gate"},
            "renamed": {f"mlp.shared_expert.{name}" for name in MLP},
        },
    ),
    "qwen3_moe": (MOE, ATTENTION, {"expert": EXPERTS, "router": {"mlp.gate"}}),
    "mixtral": (MOE, ATTENTION, {"expert": EXPERTS, "router": {"mlp.gate"}}),
    "gpt_oss": (MOE, ATTENTION, {"expert": EXPERTS, "router": {"mlp.router"}}),
    "phimoe": (MOE, ATTENTION, {"expert": EXPERTS, "router": {"mlp.router"}}),
    "granitemoe": (
        MOE,
        ATTENTION,
        {
            "expert": {"block_sparse_moe.experts.down_proj", "block_sparse_moe.experts.gate_up_proj"},
            "router": {"block_sparse_moe.router"},
        },
    ),
    "granitemoehybrid": (
        MAMBA
        | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0, "mamba_expand": 2}
        | {"shared_intermediate_size": 48},
        ATTENTION | {"in_proj", "input_linear", "output_linear"},
        {"mamba": {"mamba.out_proj"}},
    ),
    "falcon_h1": (MAMBA, ATTENTION | MLP | {"in_proj"}, {"mamba": {"mamba.out_proj"}}),
    "lfm2": (
        {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
        {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"},
        {},
    ),
    "gemma3": (
        {"vision_config": VISION, "mm_tokens_per_image": 1, "image_token_index": 262},
        ATTENTION | MLP,
        {"outside": {"lm_head", "model.vision_tower.encoder.layers"}},
    ),
}


def make_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = ARCHITECTURES[name][0]
    if "vision_config" in sizes:
        config = AutoConfig.for_model(name, text_config=SIZES, **sizes)
    else:
        config = AutoConfig.for_model(name, **SIZES | sizes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


# With plain forwards: packing is another matter
PLAIN = {"padding_free": False, "shared_prefix": False, "fused_norms": False, "masked_logits": False}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_layers_of_the_decoder_are_adapted_but_routers_and_experts(name, make_trainer, tmp_path):
    _, adapted, without = ARCHITECTURES[name]
    model = make_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # The published preset, which ends below the last layer
    trainer = make_trainer(
        model=model, retain_l2_layers=["all"], target_layers=[1, 2], max_steps=2, lora_b_init_std=0.1, **PLAIN
    )
    trainer.train()

    coverage = {rows.reason: rows for rows in trainer.lora_coverage}
    assert {module.rpartition(".")[2] for module in coverage[None].modules} == adapted
    assert coverage["above"].modules[0].endswith("layers[3:]")
    for reason, modules in without.items():
        assert modules <= set(coverage[reason].modules)
    assert set(coverage) == {None, "above", "outside", *without}

    after = {
        key.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for key, value in trainer.model.state_dict().items()
        if "lora_" not in key
    }
    assert all(torch.equal(after[key], value) for key, value in before.items())

    trainer.save_model(str(tmp_path))
    again = make_model(name)
    again.load_state_dict(before)
    loaded = PeftModel.from_pretrained(again, tmp_path).eval()
    trainer.model.eval()
    tokens = torch.tensor([[65, 66, 67, 68]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, trainer.model(tokens).logits)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_next"])
def test_names_that_peft_takes_for_experts_are_refused(name, make_trainer):
    with pytest.raises(ValueError, match=r"^PEFT takes down_proj, gate_proj, up_proj in a \w+ for the experts of all"):
        make_trainer(model=make_model(name), peft_config=LoraConfig(target_modules=[*MLP, "o_proj"]), **PLAIN)
    with pytest.raises(ValueError, match=r"^PEFT takes up_proj in a "):
        make_trainer(model=make_model(name), peft_config=LoraConfig(target_modules=["up_proj", "o_proj"]), **PLAIN)


def test_layers_outside_of_the_decoder_are_refused(make_trainer):
    config = LoraConfig(target_modules=r".*\.layers\.[012]\.self_attn\.q_proj")
    with pytest.raises(ValueError, match=r"outside of the decoder.*: model\.vision_tower\.encoder\.layers\.0\."):
        make_trainer(model=make_model("gemma3"), peft_config=config, **PLAIN)


def test_named_modules_are_adapted_in_the_decoder_alone(make_trainer):
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2])
    trainer = make_trainer(model=make_model("gemma3"), peft_config=config, **PLAIN)
    coverage = {rows.reason: rows for rows in trainer.lora_coverage}
    assert (coverage[None].modules, coverage[None].number) == (("self_attn.q_proj",), 2)
    assert "self_attn.q_proj" in coverage["unnamed"].modules  # of the first layer


def test_models_with_other_names_for_their_layers_are_refused(make_trainer):
    config = AutoConfig.for_model("gpt2", vocab_size=263, n_embd=32, n_layer=4, n_head=4)
    with pytest.raises(ValueError, match=r"^GPT2LMHeadModel is not supported: it has no module with decoder"):
        make_trainer(model=AutoModelForCausalLM.from_config(config), **PLAIN)


@pytest.mark.parametrize("excluded", [None, ["k_proj"], r".*\.k_proj"])
def test_experts_that_share_names_with_dense_mlps_are_excluded(excluded, model, make_trainer, tmp_path):
    """As in models whose code keeps a list of experts: names of modules alone would select these, too."""
    model.model.layers[1].mlp.experts = nn.ModuleList([LlamaMLP(model.config)])
    config = LoraConfig(r=4, exclude_modules=excluded)
    trainer = make_trainer(model=model, peft_config=config, output_dir=str(tmp_path), **PLAIN)
    coverage = {rows.reason: rows for rows in trainer.lora_coverage}
    assert coverage["expert"].modules == tuple(f"mlp.experts.0.{name}" for name in sorted(MLP))
    adapted = {name.rpartition(".")[2] for name in coverage[None].modules}
    assert adapted == MLP | ATTENTION - ({"k_proj"} if excluded else set())


def test_report_in_one_line_and_in_the_card(make_trainer, tmp_path):
    trainer = make_trainer(model=make_model("qwen3_moe"), output_dir=str(tmp_path), **PLAIN)
    assert coverage_line(trainer.lora_coverage) == (
        "LoRA on 12 linear maps (k_proj, o_proj, q_proj, v_proj); without: routed experts (6: mlp.experts.down_proj, "
        "mlp.experts.gate_up_proj), routers (3: mlp.gate), layers that the loss does not depend on (7: "
        "model.layers[3:]), outside the decoder layers (1: lm_head)"
    )
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "\n| linear maps | number | LoRA |\n|---|---|---|\n| `self_attn.k_proj`, `self_attn.o_proj`, " in card
    assert "\n| `mlp.gate` | 3 | no: routers |\n" in card


def test_adapter_of_a_plain_model_names_its_modules(make_trainer, tmp_path):
    make_trainer().save_model(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == ATTENTION | MLP
    assert (config["layers_to_transform"], config["layers_pattern"]) == ([0, 1, 2], ["model.layers"])
    assert config["exclude_modules"] is None and not config["target_parameters"]
