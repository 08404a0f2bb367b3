"""Adapters that vLLM can serve, and at which rank; the others are refused before it starts."""

import json
import shlex
import shutil

import pytest
from peft import LoraConfig

from cb_datasets.formats import FORMATS
from cb_datasets.generation import vllm_backend
from cb_datasets.generation.serving import adapter_rank, max_lora_rank, serving_command, serving_faults


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


def test_the_command_of_a_card_quotes_what_a_shell_would_read():
    words = ["vllm", "serve", "a base", "--tokenizer", "o/n; rm", "--enable-lora", "--max-lora-rank", "16"]
    command = serving_command("a base", "o/n; rm", 16, FORMATS["llama3_json"])
    assert shlex.split(command)[:8] == words and shlex.split(command)[9] == "breaker=o/n; rm"


@pytest.mark.vllm
@pytest.mark.parametrize("name", FORMATS)
def test_vllm_takes_the_command_of_a_card(name):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = serving_command("some/base", "someone/breaker", max_lora_rank({"r": 24}), FORMATS[name])
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("vllm", "serve")
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    validate_parsed_serve_args(parsed)
    assert (parsed.model_tag, parsed.tokenizer, parsed.max_lora_rank) == ("some/base", "someone/breaker", 32)
    assert [(module.name, module.path) for module in parsed.lora_modules] == [("breaker", "someone/breaker")]
    if parsed.tool_call_parser:
        ToolParserManager.get_tool_parser(parsed.tool_call_parser)
    if parsed.reasoning_parser:
        ReasoningParserManager.get_reasoning_parser(parsed.reasoning_parser)
    assert parsed.tool_call_parser == FORMATS[name].tool_parser
    assert parsed.enable_auto_tool_choice == (parsed.tool_call_parser is not None)
