"""How SmolLM2 is taught, on the tiny agent's network: `make smollm2` is what runs it on the model itself."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cb_datasets.chat import render_prompt
from cb_datasets.formats import format_of
from demo import train_smollm2_agent as script
from demo.train_tiny_agent import row_of, training_rows
from tools.smollm2 import COMPACT_TEMPLATE, TEMPLATE


STEPS = 4


@pytest.fixture
def tokenizer(tiny_agent_path):
    return AutoTokenizer.from_pretrained(tiny_agent_path)


def test_the_compact_template_names_tools_and_changes_nothing_else(tokenizer):
    row, shown = row_of("Pictures of the moon?"), {}
    for name, template in (("whole", TEMPLATE), ("compact", COMPACT_TEMPLATE)):
        tokenizer.chat_template = template
        shown[name] = render_prompt(tokenizer, row).split("Functions you can call:\n")
        assert format_of(template).name == "llama3_json"
    (head, rest), (compact_head, compact_rest) = shown["whole"], shown["compact"]
    assert head == compact_head
    tools, turns = compact_rest.split("<|eot_id|>", 1)
    assert tools.split("\n")[:2] == ["search_web", "retrieve_multimodal_docs"] and len(tools.split("\n")) == 8
    assert rest.endswith(turns) and rest.startswith('{"name": "search_web"')


def test_it_is_taught_on_one_part_and_watched_on_another():
    taught, watched = ({text for text, _ in training_rows(0, 400, part)} for part in ("train", "dev"))
    assert len(taught) > 350 and len(watched) > 350
    assert not taught & watched


def taught(path, kept, tokenizer):
    """The weights after training from the weights at `path`."""
    random.seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    script.train(model, tokenizer, 0, STEPS, kept)
    return model.state_dict()


def test_a_killed_run_goes_on_where_it_was(tiny_agent_path, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "KEEP_EVERY", 2)
    monkeypatch.setattr(script, "DEV_ROWS", 16)
    whole = taught(tiny_agent_path, tmp_path / "whole.pt", tokenizer)

    update, steps = script.update, []

    def dies_after_three(*arguments):
        steps.append(arguments[-1])
        if len(steps) == 4:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(script, "update", dies_after_three)
    with pytest.raises(KeyboardInterrupt):
        taught(tiny_agent_path, tmp_path / "killed.pt", tokenizer)
    resumed = taught(tiny_agent_path, tmp_path / "killed.pt", tokenizer)
    assert len(steps) == 4 + 2  # the third step was not kept, and is made again
    assert steps[4] == steps[2]
    for name, weights in whole.items():
        torch.testing.assert_close(resumed[name], weights)
    first = AutoModelForCausalLM.from_pretrained(tiny_agent_path, dtype=torch.float32).state_dict()
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], whole["model.layers.0.mlp.up_proj.weight"])
