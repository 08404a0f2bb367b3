"""Inputs that exist and still cannot be meant: each is refused before anything is written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cb_datasets.cli import app
from cb_datasets.cli.evaluate import load_prompts
from cb_datasets.files import save_rows, to_dataset
from cb_datasets.sample import PROMPT_FEATURES


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


@pytest.mark.parametrize("repo", ["", "../x", "name", "owner/name/more", "owner/", "owner/na me"])
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
    with pytest.raises(ValueError, match=f"^{tmp_path}: prompt 2 of 2 has no {column}"):
        load_prompts(tmp_path)
