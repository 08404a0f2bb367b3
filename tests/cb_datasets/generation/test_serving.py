"""Adapters that vLLM can serve, and at which rank; the others are refused before it starts."""

import json
import shutil

import pytest
from peft import LoraConfig

from cb_datasets.generation import vllm_backend
from cb_datasets.generation.serving import adapter_rank, max_lora_rank, serving_faults


@pytest.mark.parametrize(
    ("rank", "served"), [(1, 8), (8, 8), (9, 16), (16, 16), (64, 64), (65, 128), (300, 320), (512, 512)]
)
def test_a_rank_is_rounded_up_to_one_with_kernels(rank, served):
    assert max_lora_rank({"r": rank}) == served


def test_single_modules_may_have_larger_ranks():
    assert max_lora_rank({"r": 8, "rank_pattern": {"q_proj": 24}}) == 32


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "LoRA biases"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 513}, "a rank above 512"),
    ],
)
def test_kinds_that_are_not_served_are_named(settings, fault, tmp_path):
    config = LoraConfig(target_modules=["q_proj"], **settings).to_dict()
    assert serving_faults(config) == [fault]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config, default=list))
    with pytest.raises(ValueError, match=f"{tmp_path}: vLLM cannot serve this adapter: it has {fault}. Use --backend"):
        adapter_rank(str(tmp_path))


def test_an_ordinary_adapter_is_served():
    assert serving_faults(LoraConfig(r=64, target_modules=["q_proj"], use_rslora=True).to_dict()) == []


def test_the_engine_does_not_start_for_one_that_it_cannot_serve(adapter, tiny_agent_path, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_backend, "_load_engine", lambda *arguments: pytest.fail("the engine was started"))
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="it has DoRA"):
        vllm_backend.VllmBackend(str(tiny_agent_path), str(folder))
