"""Random models with four small decoder layers, one for each family of chat models.

Windows and chunks are shorter than the rows that these models are compared on, so that they matter.
"""

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


NUM_LAYERS = 4
VOCAB_SIZE = 160
WINDOW = 16

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    # Large enough for attention and experts to make a difference
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_WINDOW = {"sliding_window": WINDOW}
_WINDOW_EVERY_OTHER = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
_DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# Queries and keys of 12 numbers, values of 8
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_GROUPED_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}


class Architecture(NamedTuple):
    """A family of models: its name, its `model_type` in Transformers, and the settings of its tiny model."""

    title: str
    model_type: str
    settings: dict[str, Any]


ARCHITECTURES = {
    "llama": Architecture("Llama 2, 3, 3.1-3.3", "llama", {}),
    "llama_tied": Architecture("Llama, tied embeddings (3.2 1B, 3B)", "llama", {"tie_word_embeddings": True}),
    "qwen2": Architecture("Qwen2, Qwen2.5", "qwen2", {}),
    "qwen3": Architecture("Qwen3", "qwen3", {}),
    "mistral": Architecture("Mistral, window", "mistral", _WINDOW),
    "ministral": Architecture("Ministral, window in every other layer", "ministral", _WINDOW_EVERY_OTHER),
    "ministral3": Architecture("Ministral 3", "ministral3", {}),
    "phi3": Architecture("Phi-3, Phi-4-mini, window", "phi3", _WINDOW),
    "olmo2": Architecture("OLMo 2", "olmo2", {}),
    "smollm3": Architecture("SmolLM3", "smollm3", {}),
    "gemma2": Architecture(
        "Gemma 2: window, soft cap", "gemma2", {**_WINDOW_EVERY_OTHER, "attn_logit_softcapping": 2.0}
    ),
    "gemma3_text": Architecture("Gemma 3, text: window", "gemma3_text", _WINDOW_EVERY_OTHER),
    "mixtral": Architecture(
        "Mixtral, window", "mixtral", {**_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "qwen2_moe": Architecture(
        "Qwen2-MoE, window in every other layer",
        "qwen2_moe",
        {**_EXPERTS, **_WINDOW_EVERY_OTHER, "shared_expert_intermediate_size": 24, "use_sliding_window": True},
    ),
    "qwen3_moe": Architecture("Qwen3-MoE, Qwen3-Coder", "qwen3_moe", _EXPERTS),
    "gpt_oss": Architecture(
        "gpt-oss: window, sinks",
        "gpt_oss",
        {**_WINDOW_EVERY_OTHER, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "llama4_text": Architecture(
        "Llama 4, text: chunks",
        "llama4_text",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": WINDOW,
            "interleave_moe_layer_step": 2,
        },
    ),
    "deepseek_v3": Architecture("DeepSeek V3, R1", "deepseek_v3", {**_LATENT, **_GROUPED_EXPERTS, "head_dim": 4}),
    "glm4_moe": Architecture("GLM-4 MoE", "glm4_moe", _GROUPED_EXPERTS),
    "granite": Architecture(
        "Granite", "granite", {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
    ),
    "granitemoehybrid": Architecture(
        "Granite 4 hybrid: Mamba",
        "granitemoehybrid",
        {
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            **_MAMBA,
        },
    ),
    "granitemoehybrid_attention": Architecture(
        "Granite 4, attention only (micro)",
        "granitemoehybrid",
        {"layer_types": ["attention"] * 4, "num_local_experts": 0, "shared_intermediate_size": 48, **_MAMBA},
    ),
    "granitemoe": Architecture(
        "Granite MoE", "granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 4.0}
    ),
    "cohere": Architecture("Cohere, Command R", "cohere", {"logit_scale": 0.25}),
    "cohere2": Architecture("Cohere 2, window in every other layer", "cohere2", _WINDOW_EVERY_OTHER),
    "exaone4": Architecture("EXAONE 4, window in every other layer", "exaone4", _WINDOW_EVERY_OTHER),
    "lfm2": Architecture(
        "LFM2: convolutions", "lfm2", {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8}
    ),
    "qwen3_next": Architecture(
        "Qwen3-Next: DeltaNet",
        "qwen3_next",
        # With larger weights rounding alone changes its gradients by 5e-5; in float64 they agree to 3e-16
        {**_EXPERTS, **_DELTA_NET, "shared_expert_intermediate_size": 24, "initializer_range": 0.1},
    ),
    "qwen3_5_text": Architecture("Qwen3.5, 3.6: DeltaNet", "qwen3_5_text", _DELTA_NET),
}


def tiny_model(name: str, **settings: Any) -> PreTrainedModel:
    """The random model of an architecture, with attention written out as in the models' own code."""
    _, model_type, own = ARCHITECTURES[name]
    config = AutoConfig.for_model(model_type, **{**_SMALL, **own, **settings})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
