"""Small models and adapters for tests, made from the tiny agent."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM


# A further end token, which is in the model's generation config only, and in no tool call format.
EXTRA_END_TOKEN = " but"

# A head size that vLLM's attention on CPU supports, unlike the 24 of the tiny agent.
WIDE_HEAD = 32


def widened(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A model with heads of size `WIDE_HEAD` that computes the same function.

    Each head is padded with zeros, which does not change products of queries and keys. Rotary embeddings rotate
    dimension i of a head together with dimension i + half, by theta ** (-i / half) per position, so each half is
    padded on its own, and theta is raised such that the original pairs keep their frequencies. Attention divides by
    the square root of the head size, so queries are scaled up by the growth of that root.
    """
    config = model.config.__class__.from_dict(model.config.to_dict())
    size = config.head_dim
    config.head_dim = WIDE_HEAD
    theta = config.rope_parameters["rope_theta"] ** (WIDE_HEAD / size)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": theta}
    kept = [*range(size // 2), *range(WIDE_HEAD // 2, WIDE_HEAD // 2 + size // 2)]
    weights = {}
    for name, weight in model.state_dict().items():
        if ".q_proj." in name:
            weight = _padded_rows(weight, size, kept) * math.sqrt(WIDE_HEAD / size)
        elif ".k_proj." in name or ".v_proj." in name:
            weight = _padded_rows(weight, size, kept)
        elif ".o_proj." in name:
            weight = _padded_rows(weight.T, size, kept).T
        weights[name] = weight.contiguous()
    wide = LlamaForCausalLM(config).to(model.dtype)
    wide.load_state_dict(weights)
    return wide


def _padded_rows(weight: torch.Tensor, size: int, kept: list[int]) -> torch.Tensor:
    heads = weight.unflatten(0, (-1, size))
    padded = heads.new_zeros(len(heads), WIDE_HEAD, heads.shape[-1])
    padded[:, kept] = heads
    return padded.flatten(0, 1)


def save_wide_agent(tiny_agent: Path, folder: Path) -> None:
    """Save the tiny agent in float32 with wide heads."""
    widened(AutoModelForCausalLM.from_pretrained(tiny_agent, dtype=torch.float32)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_agent).save_pretrained(folder)


def set_shipped_defaults(folder: Path) -> None:
    """Give a saved model the settings with which public models are shipped.

    Like Llama 3.1 it has no padding token, cleans up spaces and ends with any of several tokens; like Qwen it has
    sampling defaults of its own, which no backend may apply.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.eos_token_id, *tokenizer.encode(EXTRA_END_TOKEN)]
    config = GenerationConfig.from_pretrained(folder)
    config.update(eos_token_id=ends, do_sample=True, repetition_penalty=1.8, top_k=2, temperature=0.6)
    config.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    tokenizer_config = json.loads(path.read_text()) | {
        "pad_token": None,
        "clean_up_tokenization_spaces": True,
        # Without this, `transformers` does not clean up the text of a byte-level tokenizer
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
    }
    path.write_text(json.dumps(tokenizer_config))


def save_adapter(model: Path, folder: Path, seed: int = 0, **settings: Any) -> None:
    """Save a random LoRA adapter that changes the model's completions, on some layers only, like a circuit breaker.

    `settings` are further ones of `LoraConfig`, or others than those used here.
    """
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    defaults = {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "layers_to_transform": [0, 1, 2],
        "init_lora_weights": False,
        "task_type": "CAUSAL_LM",
    }
    config = LoraConfig(**defaults | settings)
    get_peft_model(network, config).save_pretrained(folder)
