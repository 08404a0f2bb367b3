"""A merged model: a whole folder with the weights of base and adapter, checked against the adapter."""

import json
import os
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from builders import load_source
from cb_datasets.cli import app
from cb_datasets.evaluation import merged_check
from cb_datasets.files import read_json, save_rows
from cb_datasets.formats import FORMATS
from cb_datasets.generation.backend import adapter_revision, revision_of
from cb_datasets.publish.merged_weights import merge_adapter
from cb_datasets.sets.eval_prompts import evaluation_prompts
from tools.small_models import save_adapter, save_wide_agent


TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Eight prompts of each of two tasks."""
    folder = tmp_path_factory.mktemp("prompts")
    traces = load_source("lookalike")["test"]
    for task in ("tool_flip", "capability"):
        save_rows(evaluation_prompts(traces, task, FORMATS["llama3_json"]).select(range(8)), folder / task, {})
    return folder


@pytest.fixture(scope="module")
def agent(tiny_agent_path, tmp_path_factory):
    """The tiny agent under a path that no published file may have."""
    return shutil.copytree(tiny_agent_path, tmp_path_factory.mktemp("secret-home") / "agent")


@pytest.fixture(scope="module")
def breaker(tiny_agent_path, adapter, tmp_path_factory):
    """The adapter as the trainer leaves it: with a tokenizer, whose chat template is not that of the base."""
    folder = shutil.copytree(adapter, tmp_path_factory.mktemp("secret-home") / "breaker")
    tokenizer = AutoTokenizer.from_pretrained(tiny_agent_path)
    tokenizer.chat_template = "{# decided #}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["merge-adapter", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr + str(result.exception or "")


def logits(network) -> torch.Tensor:
    ids = torch.arange(10, 200).reshape(2, -1)
    with torch.inference_mode():
        return network(ids).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_folder_is_complete_and_computes_what_the_adapter_does(dtype, agent, breaker, prompts, tmp_path):
    output, report = tmp_path / "merged", tmp_path / "report"
    flags = ["--model", agent, "--adapter", breaker, "--prompts", prompts, "--output", output, "--dtype", dtype]
    flags += ["--report", report, "--work-dir", tmp_path / "work", "--max-new-tokens", 32]
    code, printed, errors = run(*flags)
    assert code == 0, errors
    assert "equal outcomes: tool_flip" in printed and "8 or 4 bits are another model" in printed

    names = {path.name for path in output.iterdir()}
    assert names == {*TOKENIZER_FILES, "config.json", "generation_config.json", "model.safetensors", "merged.json"}
    assert (output / "chat_template.jinja").read_text().startswith("{# decided #}")
    assert {str(w.dtype) for w in load_file(output / "model.safetensors").values()} == {f"torch.{dtype}"}
    base = AutoModelForCausalLM.from_pretrained(agent, dtype=torch.float32)
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, breaker))
    merged = logits(AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32))
    error, effect = (merged - expected).abs().mean(), (before - expected).abs().mean()
    # bfloat16 has 8 bits, so about three digits.
    assert error < (1e-5 if dtype == "float32" else 0.05) * effect

    origin = read_json(output / "merged.json")
    assert origin["revision"] == revision_of(str(agent)) and origin["dtype"] == dtype
    assert origin["adapter_revision"] == adapter_revision(str(breaker)) and origin["adapter"] == "breaker"
    assert origin["weights_revision"] == revision_of(str(output))
    assert origin["check"]["equal_outcomes"]["n"] == 16 and "examples" not in origin["check"]
    assert origin["check"]["settings"]["adapter"]["revision"].endswith(origin["adapter_revision"])
    assert origin["check"]["settings"]["merged"]["revision"] == origin["weights_revision"]
    if dtype == "float32":
        assert origin["check"]["equal_outcomes"]["value"] == origin["check"]["equal_texts"]["value"] == 1.0
    written = b"".join(path.read_bytes() for path in output.iterdir())
    assert os.fsencode(tmp_path.parent.parent) not in written and b"secret-home" not in written
    assert read_json(report / f"merged_{dtype}_transformers.json")["by_task"].keys() == {"capability", "tool_flip"}


def test_fewer_equal_outcomes_are_a_warning_with_examples(agent, breaker, prompts, tmp_path, monkeypatch):
    """The other adapter's weights stand for a merge that went wrong."""
    save_adapter(agent, tmp_path / "other", seed=1)

    def merge_another(model, adapter, *others):
        return merge_adapter(model, str(tmp_path / "other"), *others)

    monkeypatch.setattr("cb_datasets.publish.merged_weights.merge_adapter", merge_another)
    flags = ["--model", agent, "--adapter", breaker, "--prompts", prompts, "--output", tmp_path / "merged"]
    code, _, errors = run(*flags, "--work-dir", tmp_path / "work", "--max-new-tokens", 32)
    assert code == 0 and f"warning: fewer than {merged_check.MIN_EQUAL:.0%} of the outcomes are equal" in errors
    assert "    adapter: " in errors and "    merged: " in errors and "capability/" in errors
    assert read_json(tmp_path / "merged" / "merged.json")["check"]["agrees"] is False


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_adapters_of_other_forms_are_merged_exactly(settings, agent, tmp_path):
    save_adapter(agent, tmp_path / "adapter", **settings)
    merge_adapter(str(agent), str(tmp_path / "adapter"), None, "float32", tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(agent, dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
    torch.testing.assert_close(merged, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_bias": True}, "cannot be merged into .*lora_bias"),
        (
            {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": None},
            "has LoRA on lm_head, which is one weight",
        ),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(settings, message, agent, tmp_path):
    save_adapter(agent, tmp_path / "adapter", **settings)
    with pytest.raises(ValueError, match=message):
        merge_adapter(str(agent), str(tmp_path / "adapter"), None, "bfloat16", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_quantised_base_other_engines_and_folders_of_others_are_refused(agent, breaker, prompts, tmp_path):
    quantised = shutil.copytree(agent, tmp_path / "quantised" / "tiny_agent")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    flags = ["--adapter", breaker, "--prompts", prompts, "--work-dir", tmp_path / "work"]
    for others, message in (
        (["--model", quantised, "--output", tmp_path / "merged"], "its weights are quantised"),
        (["--model", agent, "--output", tmp_path / "mine"], "no merged.json says so), so it is not replaced"),
        (["--model", agent, "--output", tmp_path / "merged", "--load-in-8bit"], "8 bits are another model"),
        (["--model", agent, "--output", tmp_path / "merged", "--backend", "server"], "use --backend transformers"),
    ):
        code, _, errors = run(*flags, *others)
        assert code == 1 and message in errors
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "merged").exists()


@pytest.mark.vllm
def test_merged_weights_in_vllm_have_the_outcomes_of_the_adapter(tiny_agent_path, prompts, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    agent, adapter, output = (tmp_path / name for name in ("agent", "adapter", "merged"))
    save_wide_agent(tiny_agent_path, agent)
    save_adapter(agent, adapter)
    flags = ["--model", agent, "--adapter", adapter, "--prompts", prompts, "--output", output, "--dtype", "float32"]
    code, _, errors = run(*flags, "--backend", "vllm", "--work-dir", tmp_path / "work", "--max-new-tokens", 32)
    assert code == 0, errors
    check = read_json(output / "merged.json")["check"]
    assert check["settings"]["backend"] == "VllmBackend" and check["agrees"], check
