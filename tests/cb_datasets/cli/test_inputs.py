"""Inputs that exist and still cannot be meant: each is refused before anything is written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cb_datasets.cli import app
from cb_datasets.cli.evaluate import load_prompts
from cb_datasets.cli.options import Engine
from cb_datasets.cli.output import tokenizer
from cb_datasets.files import load_rows, save_rows, to_dataset
from cb_datasets.sample import PROMPT_FEATURES
from cb_datasets.template_probe import template_hash


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_import_of_an_empty_file_leaves_what_was_there(text, tmp_path):
    file, output = tmp_path / "in.jsonl", tmp_path / "out"
    file.write_text(text)
    output.mkdir()
    for name in ("train.parquet", "report.json"):
        (output / name).write_text("mine")
    error = CliRunner().invoke(app, ["import", str(file), "--output", str(output)]).exception
    assert str(error) == f"{file}: no record in it. Name a JSONL file with one sample a line."
    assert {path.name: path.read_text() for path in output.iterdir()} == {
        "train.parquet": "mine",
        "report.json": "mine",
    }


@pytest.mark.parametrize("repo", ["../x", "name", "owner/name/more", "owner/", "owner/na me"])
@pytest.mark.parametrize("command", ["push", "push-model", "publish-source"])
def test_a_dry_run_needs_a_repository_too(repo, command, tmp_path):
    flags = {
        "push": [repo, "--data", tmp_path],
        "push-model": [repo, "--adapter", tmp_path, "--report", tmp_path],
        "publish-source": ["xstest", repo],
    }[command]
    error = CliRunner().invoke(app, [command, *map(str, flags), "--dry-run"]).exception
    assert str(error) == f"{repo!r} is no repository of the Hub. Name it as owner/name."


@pytest.mark.parametrize("column", ["id", "group", "task"])
def test_prompts_without_a_key_are_refused(column, prompt, tmp_path):
    rows = [prompt, {**prompt, column: None}]
    save_rows(to_dataset(rows, PROMPT_FEATURES), Path(tmp_path, "tool_flip"), {}, "eval.parquet")
    with pytest.raises(ValueError, match=f"^{tmp_path}/tool_flip: row 2 .*: `{column}` is empty"):
        load_prompts(tmp_path, Engine("demo/tiny_agent"))


@pytest.mark.parametrize(
    ("made_for", "refused"),
    [
        ({}, None),
        ({"prompt_format": "llama3_json"}, None),
        (
            {"prompt_format": "hermes"},
            "for format hermes, and the tokenizer .* has format llama3_json and chat",
        ),
        (
            {"prompt_format": "llama3_json", "template_hash": "0" * 16},
            "and chat template 0{16}, and the tokenizer",
        ),
    ],
)
def test_prompts_of_another_format_or_template_are_refused(made_for, refused, prompt, tiny_agent_path, tmp_path):
    rows = [prompt, {**prompt, "provenance": {**prompt["provenance"], **made_for}}]
    save_rows(to_dataset(rows, PROMPT_FEATURES), Path(tmp_path, "tool_flip"), {}, "eval.parquet")
    engine = Engine(str(tiny_agent_path))
    if refused is None:
        assert len(load_prompts(tmp_path, engine)) == 2
        return
    with pytest.raises(ValueError, match=f"^{tmp_path}: the prompt .* {refused}.* `cb-datasets generate-eval"):
        load_prompts(tmp_path, engine)


def test_prompts_say_what_they_were_made_for(tiny_agent_path, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.exception

    traces = tmp_path / "traces" / "lookalike"
    run("ingest", "lookalike", "--tasks", "chat", "--n-samples", 8, "--held-out", "test", "--output", traces)
    run("generate-eval", traces, "--tasks", "chat", "--tool-format", "hermes", "--output", tmp_path / "named")
    run("generate-eval", traces, "--tasks", "chat", "--model", tiny_agent_path, "--output", tmp_path / "model")
    made = [load_rows(tmp_path / name / "chat")["provenance"] for name in ("named", "model")]
    assert {(each["prompt_format"], each["template_hash"]) for each in made[0]} == {("hermes", None)}
    own = template_hash(tokenizer(str(tiny_agent_path)))
    assert {(each["prompt_format"], each["template_hash"]) for each in made[1]} == {("llama3_json", own)}
    assert len(load_prompts(tmp_path / "model", Engine(str(tiny_agent_path)))) == len(made[1])
