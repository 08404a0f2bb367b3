"""The training script of the SmolLM2 agent, on the tiny agent's network; `make smollm2` runs it on the real model."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders.trace import message
from cb_datasets.chat import render_prompt
from cb_datasets.formats import format_of
from demo import train_smollm2_agent as script
from demo.agent_rows import row_of, single_turn_rows
from tools.smollm2 import COMPACT_TEMPLATE, TEMPLATE


STEPS = 4


@pytest.fixture
def tokenizer(tiny_agent_path):
    return AutoTokenizer.from_pretrained(tiny_agent_path)


def test_the_compact_template_names_tools_and_changes_nothing_else(tokenizer):
    row, prompts = row_of([message("user", "Pictures of the moon?")]), {}
    for name, template in (("whole", TEMPLATE), ("compact", COMPACT_TEMPLATE)):
        tokenizer.chat_template = template
        prompts[name] = render_prompt(tokenizer, row).split("Functions you can call:\n")
        assert format_of(tokenizer).name == "hermes"
    (head, rest), (compact_head, compact_rest) = prompts["whole"], prompts["compact"]
    assert head == compact_head
    tools, turns = compact_rest.split("<|im_end|>", 1)
    assert tools.split("\n")[:2] == ["search_web", "retrieve_multimodal_docs"] and len(tools.split("\n")) == 8
    assert rest.endswith(turns) and rest.startswith('{"name": "search_web"')


def test_training_and_dev_rows_are_disjoint():
    train_texts, dev_texts = (
        {row.messages[row.first - 1]["content"] for row in single_turn_rows(0, 400, split)}
        for split in ("train", "dev")
    )
    assert len(train_texts) > 350 and len(dev_texts) > 350
    assert not train_texts & dev_texts


def trained(path, checkpoint, tokenizer):
    """The weights after training from the weights at `path`."""
    random.seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    script.train(model, tokenizer, 0, STEPS, checkpoint)
    return model.state_dict()


def test_interrupted_run_resumes_from_its_checkpoint(tiny_agent_path, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(script, "DEV_ROWS", 16)
    whole = trained(tiny_agent_path, tmp_path / "whole.pt", tokenizer)

    update, steps = script.update, []

    def interrupted_after_three(*arguments):
        steps.append(arguments[-1])
        if len(steps) == 4:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(script, "update", interrupted_after_three)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_agent_path, tmp_path / "killed.pt", tokenizer)
    resumed = trained(tiny_agent_path, tmp_path / "killed.pt", tokenizer)
    assert len(steps) == 4 + 2  # the third step was not saved, and is repeated
    assert steps[4] == steps[2]
    for name, weights in whole.items():
        torch.testing.assert_close(resumed[name], weights)
    first = AutoModelForCausalLM.from_pretrained(tiny_agent_path, dtype=torch.float32).state_dict()
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], whole["model.layers.0.mlp.up_proj.weight"])
