"""What a recipe decides about a chat template is part of it, in every stage."""

import json

import pytest
from typer.testing import CliRunner

from builders.trace import message
from cb_datasets.chat import render_prompt
from cb_datasets.cli import app
from cb_datasets.formats import format_of
from cb_datasets.formats.chat_template import named_format, settings_of, with_decisions
from cb_datasets.generation.tokenizer import decided_tokenizer, load_tokenizer, save_tokenizer
from cb_datasets.template_probe import probe_template, template_hash


PLAIN = """{% if mood is defined and mood %}Be {{ mood }}. {% endif %}{{ tools | tojson }}
{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls | default([]) | tojson }}{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_decisions_are_in_the_template_and_are_replaced_one_by_one():
    named = with_decisions(PLAIN, "llama3_json", {"mood": "kind"})
    assert named.endswith(PLAIN) and named_format(named) == "llama3_json"
    again = with_decisions(named, None, {"mood": None})
    assert again.endswith(PLAIN) and settings_of(again) == {"mood": None} and named_format(again) == "llama3_json"
    assert with_decisions(PLAIN, None, {}) == PLAIN and settings_of(PLAIN) == {} and named_format(PLAIN) is None


def test_what_a_template_sets_itself_is_no_decision():
    own = "{%- set count = namespace(value=0) %}{%- set mood = 1 %}" + PLAIN
    named = with_decisions(own, None, {"mood": "kind"})
    assert settings_of(named) == {"mood": "kind"} and named_format(named) is None
    assert with_decisions(named, None, {"mood": "kind"}) == named and named.endswith(own)


def test_a_setting_reaches_every_render(tiny_agent_path, tmp_path):
    (tmp_path / "own.jinja").write_text(PLAIN)
    row = {"messages": [message("user", "Hi.")], "tools": "[]"}
    hashes = set()
    for mood in ('say "hi"', True, 3, None):
        tokenizer = decided_tokenizer(str(tiny_agent_path), "llama3_json", {"mood": mood}, str(tmp_path / "own.jinja"))
        save_tokenizer(tokenizer, tmp_path / "data" / "decided")
        loaded = load_tokenizer(str(tmp_path / "data" / "decided"))
        begins = f"Be {mood}. " if mood else "[]"
        prompt = render_prompt(loaded, row)
        assert prompt == render_prompt(tokenizer, row) and prompt.startswith(begins)
        assert settings_of(loaded.chat_template) == {"mood": mood} and format_of(loaded).name == "llama3_json"
        hashes.add(template_hash(loaded))
    assert len(hashes) == 4


def test_a_template_without_tools_is_refused_with_the_remedy(tiny_agent_path, tmp_path):
    (tmp_path / "own.jinja").write_text(PLAIN.replace("tools | tojson", "'no tools'"))
    result = run(
        *("tokenizer", tiny_agent_path, "--output", tmp_path / "decided", "--tool-format", "llama3_json"),
        *("--chat-template", tmp_path / "own.jinja"),
    )
    assert "shows the model no tools" in str(result.exception) and "--chat-template" in str(result.exception)
    assert not (tmp_path / "decided").exists()


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ tools | tojson }}{{ messages[1].content }}", "cannot write a call and its result"),
        ("{{ tools | tojson }}{{ messages | tojson }}<|eot_id|>", "no prompt opens the model's turn"),
        (
            "{{ tools | tojson }}{{ messages | tojson }}{{ range(9000) | random }}{{ range(9000) | random }}>",
            "not write the same",
        ),
    ],
)
def test_what_no_prompt_can_be_written_with_is_refused(template, fault, tiny_agent_path, tmp_path):
    (tmp_path / "own.jinja").write_text(template)
    with pytest.raises(ValueError, match=fault):
        decided_tokenizer(str(tiny_agent_path), "llama3_json", {}, str(tmp_path / "own.jinja"))


def test_a_template_that_prints_the_day_prints_a_pinned_one(tiny_agent_path, tmp_path):
    (tmp_path / "own.jinja").write_text(PLAIN + "{{ strftime_now('%Y-%m-%d') }}{{ date_string }}>")
    tokenizer = decided_tokenizer(str(tiny_agent_path), "llama3_json", {}, str(tmp_path / "own.jinja"))
    assert probe_template(tokenizer).prompts[0].endswith("2024-07-2626 Jul 2024>")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--template-setting", "mood"], "write NAME=VALUE"),
        (["--template-setting", "mood=kind"], "no setting 'mood'"),
        (["--tool-format", "lama"], "Unknown tool-call format 'lama'; known: llama3_json"),
        (["--tool-format", "hermes"], "hermes is not this tokenizer's, which has no token <|im_end|>"),
        (["--chat-template", "nowhere.jinja"], "There is no file nowhere.jinja"),
    ],
)
def test_a_wrong_decision_is_one_line(flags, error, tiny_agent_path, tmp_path):
    result = run("tokenizer", tiny_agent_path, "--output", tmp_path / "decided", *flags)
    assert result.exit_code == 1 and error in str(result.exception)


def test_the_command_shows_a_prompt_and_writes_a_tokenizer(tiny_agent_path, tmp_path):
    result = run("tokenizer", tiny_agent_path, "--output", tmp_path / "decided")
    assert result.exit_code == 0 and "<|start_header_id|>assistant" in result.output
    assert "tokenizer: llama3_json, template" in result.output
    assert json.loads((tmp_path / "decided" / "tokenizer_config.json").read_text())
