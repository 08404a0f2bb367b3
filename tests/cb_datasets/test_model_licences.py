"""Licences by the names of models: exactly the names that are known."""

import pytest

from builders.licenses import LICENCES
from cb_datasets.model_licences import _FAMILIES, licence_of


KNOWN = {
    "llama3": ["meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3-70b-chat-hf", "someone/Llama3-8B-for-us"],
    "llama3.1": [
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8",
        "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
        "NousResearch/Hermes-3-Llama-3.1-8B",
        "nvidia/Llama-3_1-Nemotron-51B-Instruct",
        "llama-3.1-8b/checkpoint-9",
        "allenai/Llama-3.1-Tulu-3-8B",
    ],
    "llama3.2": ["meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-11B-Vision-Instruct", "llama3.2"],
    "llama3.3": ["meta-llama/Llama-3.3-70B-Instruct", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"],
    "llama4": ["meta-llama/Llama-4-Scout-17B-16E-Instruct", "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"],
    "gemma": [
        *("google/gemma-7b-it", "google/gemma-2b", "google/gemma-1.1-7b-it", "google/gemma-2-9b-it"),
        *("google/gemma-3-270m", "google/gemma-3-4b-it", "google/gemma-3n-E4B-it", "google/functiongemma-270m-it"),
        *("unsloth/gemma-3-12b-it-GGUF", "gemma-3-4b/best"),
    ],
    "qwen": ["Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-72B-Instruct-AWQ", "Qwen/Qwen2.5-Math-72B-Instruct"],
    "qwen-research": ["Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-Coder-3B-Instruct", "Qwen2.5-3B"],
    "deepseek": ["deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3-Base"],
    "apache-2.0": [
        *("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-Coder-32B-Instruct", "Qwen2.5-7B-Instruct"),
        *("Qwen/Qwen2.5-14B-Instruct-1M", "Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4", "qwen3-8b/checkpoint-9"),
        *("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Thinking-2507"),
        *("Qwen/Qwen3-235B-A22B-FP8", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
        *("mistralai/Mistral-Nemo-Instruct-2407", "mistralai/Mistral-7B-Instruct-v0.3"),
        *("mistralai/Mistral-Small-24B-Instruct-2501", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
        *("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "openai/gpt-oss-20b", "openai/gpt-oss-120b"),
        *("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM3-3B"),
        *("ibm-granite/granite-3.1-8b-instruct", "ibm-granite/granite-4.0-h-small"),
    ],
    "mit": [
        *("microsoft/phi-4", "microsoft/Phi-4-mini-instruct", "microsoft/Phi-3.5-mini-instruct"),
        *("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-V3-0324"),
        *("deepseek-ai/DeepSeek-V3.1", "deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek-ai/DeepSeek-V3.2-Exp"),
    ],
}
UNKNOWN = [
    *("gpt-4o-2024-05-13", "claude-3-5-sonnet-20241022", "unknown", "", "demo/tiny_agent", ".models/smollm2-agent"),
    # Llamas by name only, and versions without a licence here.
    *("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-2-7b-chat-hf", "meta-llama/LlamaGuard-7b"),
    *(
        "openlm-research/open_llama_3b",
        "codellama/CodeLlama-34b-Instruct-hf",
        "someone/llama-34b",
        "meta-llama/Llama-3.9-8B",
    ),
    *("google/gemma-4-31B-it", "google/medgemma-4b-it", "google/codegemma-7b", "google/gemma-scope"),
    # Of other owners: the licence may be another one.
    *("someone/Qwen3-8B", "unsloth/Qwen2.5-7B-Instruct", "someone/Mistral-Nemo-Instruct-2407", "Qwen3-8B-for-us"),
    *("Qwen/Qwen3-Embedding-8B", "Qwen/Qwen-72B-Chat", "Qwen/Qwen2-72B-Instruct", "Qwen/QwQ-32B", "Qwen/Qwen3.6-27B"),
    *(
        "mistralai/Mistral-Small-Instruct-2409",
        "mistralai/Mistral-Large-Instruct-2411",
        "mistralai/Ministral-8B-Instruct-2410",
    ),
    *(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "deepseek-ai/DeepSeek-V2.5",
    ),
    *("openai/gpt-oss-safeguard-20b", "CohereForAI/c4ai-command-r-v01", "microsoft/phi-2"),
]


@pytest.mark.parametrize(("wanted", "model"), [(wanted, model) for wanted, names in KNOWN.items() for model in names])
def test_known_families(model: str, wanted: str):
    licence = licence_of(model)
    assert licence is not None and (licence.hub_name or licence.hub_id) == wanted


@pytest.mark.parametrize("model", UNKNOWN)
def test_other_names_give_none(model: str):
    assert licence_of(model) is None


def test_licences_are_the_hubs_and_their_sentences_end():
    for _, _, licence in _FAMILIES:
        assert licence.hub_id in LICENCES and (licence.hub_id == "other") == (licence.hub_name is not None)
        assert not licence.adapter.endswith(".") and (licence.outputs or ".").endswith(".")


def test_a_name_must_begin_as_the_licence_asks():
    prefixes = {name: licence_of(names[0]).name_prefix for name, names in KNOWN.items()}
    assert {name: prefix for name, prefix in prefixes.items() if prefix} == {
        "llama3": "Llama-3", **dict.fromkeys(("llama3.1", "llama3.2", "llama3.3", "llama4"), "Llama")
    }  # fmt: skip
