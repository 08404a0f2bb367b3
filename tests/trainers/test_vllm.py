"""vLLM loads the adapters that the trainer saves."""

from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from builders import load_source
from cb_datasets.chat import encode_prompt
from cb_datasets.generation import Sampling
from cb_datasets.generation.transformers_backend import TransformersBackend
from cb_datasets.sets.prompts import prompts_for_task
from tests.trainers.conftest import made_for
from tools.small_models import save_wide_agent
from trainers import CircuitBreakerConfig, CircuitBreakerTrainer


@pytest.mark.vllm
def test_vllm_and_transformers_generate_the_same_with_a_trained_adapter(attacked_rows, tiny_agent_path, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    from cb_datasets.generation.vllm_backend import VllmBackend

    model, adapter = tmp_path / "agent", tmp_path / "adapter"
    save_wide_agent(tiny_agent_path, model)
    train(str(model), attacked_rows(records=8, refusals=8), adapter)
    traces = load_source("lookalike")["test"]
    in_vllm, in_transformers = VllmBackend(str(model), str(adapter)), TransformersBackend(str(model), str(adapter))
    prompts = [
        encode_prompt(in_vllm.tokenizer, row) for row in prompts_for_task(traces, "tool_flip").select(range(32))
    ]

    sampling = Sampling(max_new_tokens=24)
    [vllm, transformers, base] = (
        [completions[0].text for completions in backend.generate(prompts, sampling, seed=0)]
        for backend in (in_vllm, in_transformers, in_transformers.without_adapter())
    )
    assert sum(a == b for a, b in zip(vllm, transformers, strict=True)) >= 30
    assert sum(a != b for a, b in zip(transformers, base, strict=True)) >= 16  # the adapter has an effect


def train(model: str, rows: Dataset, adapter: Path) -> None:
    """A few steps with a learning rate high enough to have an effect."""
    args = CircuitBreakerConfig(
        output_dir=str(adapter),
        preset="selective",
        learning_rate=2e-2,
        max_steps=6,
        per_device_train_batch_size=2,
        retain_batch_size=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"},
        save_strategy="no",
    )
    rows = made_for(rows, AutoTokenizer.from_pretrained(model))
    trainer = CircuitBreakerTrainer(model, args, train_dataset=rows, peft_config=LoraConfig(r=8, lora_alpha=16))
    trainer.train()
    trainer.save_model(str(adapter))
