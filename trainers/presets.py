"""Presets: named sets of defaults of the trainer's settings."""

from typing import Any


# Defaults of the settings that are `None`, by preset. Weights that are missing here are 0.
PRESETS: dict[str, dict[str, Any]] = {
    # The published computation (Zou et al. 2024), up to rounding: all tokens, all layers, all padded positions
    "reference": {
        "lora_b_init_std": 0.0,
        "rr_weight": 10.0,
        "retain_l2_weight": 10.0,
        "schedule": "linear",
        "rr_tokens": "all",
        "rr_from": "start",
        "decision_weight": 1.0,
        "retain_tokens": "all",
        "retain_l2_layers": ["all"],
        "retain_l2_distance": "absolute",
        "retain_l2_norm": "reference",
        "span_wrap_probability": 0.0,
        "span_noise_probability": 0.0,
        "bare_head_probability": 0.0,
        "text_noise_probability": 0.0,
        "adversary_steps": 0,
    },
    # Teaches the right call under attack and makes the attacker's unlikely. The terms are means over tokens, and most
    # tokens of a call follow from its tool's name, so that decision tokens get more weight; with 5, names and answers
    # that an agent has to copy from its tools' results suffer (docs/selectivity.md).
    "selective": {
        "lora_b_init_std": 1e-3,
        "distill_weight": 1.0,
        "splice_weight": 1.0,
        "retain_kl_weight": 5.0,
        "unlikelihood_weight": 0.2,
        "stop_weight": 0.1,
        "schedule": "constant",
        "rr_tokens": "completion",
        "rr_from": "tool_name",
        "decision_weight": 2.0,
        "retain_tokens": "completion",
        "retain_l2_layers": ["target"],
        "retain_l2_distance": "scaled",
        "retain_l2_norm": "token",
        "span_wrap_probability": 0.4,
        "span_noise_probability": 0.3,
        "bare_head_probability": 0.5,
        "text_noise_probability": 0.5,
        "adversary_steps": 0,
    },
}
