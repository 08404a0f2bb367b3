"""Real small models to test with, made from the tiny agent."""

import json
import math
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM


# A token that ends a turn of the wide agent: no format has it, only the model's generation config.
OWN_END = " but"

# A head size that vLLM's attention on CPU takes; the tiny agent's 24 is none.
WIDE_HEAD = 32


def widened(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same function of its input, with heads of `WIDE_HEAD` numbers instead of fewer.

    Each head is padded with zeros, which changes no product of a query with a key. Rotary embeddings turn number i
    of a head together with number i + half, by theta ** (-i / half) for each position, so the halves are padded
    separately, and theta grows such that the kept pairs keep their speed. Attention divides by the root of the head
    size, so queries are scaled up by as much as the root grew.
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
    """The tiny agent in float32 with wide heads."""
    widened(AutoModelForCausalLM.from_pretrained(tiny_agent, dtype=torch.float32)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_agent).save_pretrained(folder)


def give_ways_of_its_own(folder: Path) -> None:
    """Make a saved model ship like those people use.

    As Llama 3.1 it has no padding token, cleans up blanks and ends with any of several tokens; as Qwen it brings
    sampling defaults of its own, which no backend may follow.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.eos_token_id, *tokenizer.encode(OWN_END)]
    config = GenerationConfig.from_pretrained(folder)
    config.update(eos_token_id=ends, do_sample=True, repetition_penalty=1.8, top_k=2, temperature=0.6)
    config.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text()) | {
        "pad_token": None,
        "clean_up_tokenization_spaces": True,
        # Without this, `transformers` knows better than to clean up the text of a byte-level tokenizer.
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
    }
    path.write_text(json.dumps(described))


def save_adapter(model: Path, folder: Path, seed: int = 0) -> None:
    """A LoRA adapter that changes what the model writes, on some layers only, as a circuit breaker's is."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj", "down_proj"],
        layers_to_transform=[0, 1, 2],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    get_peft_model(network, config).save_pretrained(folder)
