"""Paths on the command line: inputs are there and of their kind, and outputs are apart from them, in every command."""

import inspect
import os
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from cb_datasets.cli import app, paths
from cb_datasets.cli.options import Engine
from cb_datasets.path_rules import NamedPath, Role, check_all_apart, check_apart, check_exists


CALLBACKS = [value for value in vars(paths).values() if getattr(value, "__qualname__", "").startswith("_callback.")]
# Texts that name a model or an adapter.
MODELS = ("model", "adapter", "also", "tokenizer")

COMMANDS = {
    typer.main.get_command_name(command.name or command.callback.__name__): command.callback
    for group in app.registered_groups
    for command in group.typer_instance.registered_commands
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "data/stage2/train", "data/prompts/tool_flip", "raw"):
        Path(folder).mkdir(parents=True)
    for file in ("file", "model/config.json", "data/prompts/tool_flip/eval.parquet"):
        Path(file).write_text("mine")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_of_a_command_is_checked(name):
    for option in inspect.signature(COMMANDS[name]).parameters.values():
        types = [str(each) for each in get_args(option.annotation)[:1]]
        if any("Path" in each for each in types) or option.name in MODELS:
            [info] = get_args(option.annotation)[1:]
            assert info.callback in CALLBACKS, f"{name}: {option.name} has no callback of cli/paths.py"


def test_the_options_of_an_engine_are_among_them():
    assert {"model", "tokenizer", "work_dir"} <= {*inspect.signature(COMMANDS["evaluate"]).parameters}
    assert "work_dir" in Engine.__dataclass_fields__


ENGINE = ["--model", "model", "--adapter", "model"]
MISSING = {
    "merge": (["data/stage2/train", "--output", "out", "--prompts", "data/promts"], "--prompts: there is no folder"),
    "merge, a file": (["data", "--output", "out", "--prompts", "file"], "--prompts: file is a file. Name a folder."),
    "merge, a set": (["nowhere", "--output", "out"], "FOLDERS: there is no folder and no file nowhere."),
    "merge, marks": (["data", "--output", "out", "--marks", "data"], "--marks: data is a folder. Name a file."),
    "evaluate": ([*ENGINE, "--prompts", "nowhere", "--output", "out"], "--prompts: there is no folder nowhere."),
    "evaluate, curves": (
        [*ENGINE, "--prompts", "data/prompts", "--output", "out", "--curves", "no.png"],
        "--curves: there is no file no.png.",
    ),
    "report, curves": (["file", "--output", "out", "--curves", "data"], "--curves: data is a folder. Name a file."),
    "ingest": (["jsonl", "--output", "out", "--data-files", "nowhere"], "--data-files: there is no file nowhere."),
    "ingest, a folder": (["jsonl", "--output", "out", "--data-dir", "file"], "--data-dir: file is a file."),
    "generate-ds": (["--traces", "nowhere", "--model", "m", "--output", "out"], "--traces: there is no folder and no"),
    "generate": (
        ["--sets", "", "--data-dir", "x", "--rank", "0", "--world", "1"],
        "--data-dir: there is no folder x.",
    ),
    "sources": (["nowhere", "--output", "out"], "TRACES: there is no folder nowhere."),
    "import": (["data", "--output", "out"], "FILE: data is a folder. Name a file."),
    "push": (["owner/name", "--data", "nowhere", "--dry-run"], "--data: there is no folder nowhere."),
    "report": (["nowhere/results.json", "--output", "out"], "RESULTS: there is no file nowhere/results.json."),
    "explain": (["id", "--data-dir", "nowhere"], "--data-dir: there is no folder nowhere."),
    "view": (["nowhere"], "PATH: there is no folder and no file nowhere."),
    "view, a file": (["data/nowhere.jsonl"], "PATH: there is no folder and no file data/nowhere.jsonl."),
    "view, a path": (["./nowhere"], "PATH: there is no folder and no file nowhere."),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_input_and_one_of_another_kind_are_named(case, here):
    arguments, message = MISSING[case]
    error = CliRunner().invoke(app, [case.split(",")[0], *arguments]).exception
    assert isinstance(error, FileNotFoundError) and str(error).startswith(message)
    assert not Path("out").exists()


def test_curves_are_a_picture(here):
    arguments = ["report", "file", "--output", "out", "--curves", "model/config.json"]
    error = CliRunner().invoke(app, arguments).exception
    assert str(error) == "--curves: model/config.json is no PNG file. Name the curves.png that the trainer wrote."


APART = {
    "merge": (
        ["data/stage2/train", "--output", "o", "--eval-output", "data/stage2/train"],
        "--eval-output: .* is data",
    ),
    "merge, in a link": (["link/stage2", "--output", "data/stage2/x"], r"--output: data/stage2/x lies in link/stage2"),
    "merge, around": (["data/stage2", "--output", "data"], "--output: data contains data/stage2, which FOLDERS reads"),
    "generate-eval": (["raw", "--output", "."], r"--output: \. contains raw, which TRACES reads"),
    "ingest": (["jsonl", "--data-dir", "raw", "--output", "raw/x"], "--output: raw/x lies in raw, which --data-dir"),
    "tokenizer": (["model", "--output", "model"], "--output: model is model, which MODEL loads. Name another place."),
    "merge-adapter": (
        [*ENGINE, "--prompts", "data/prompts", "--output", "model"],
        "--output: model is model, which --(model|adapter) loads",
    ),
    "evaluate": (
        [*ENGINE, "--prompts", "data/prompts", "--output", "data/prompts/r"],
        "--output: .* lies in data/pro",
    ),
    "evaluate, cache": (
        [*ENGINE, "--prompts", "data/prompts", "--output", "out", "--work-dir", "data/prompts/x"],
        "--work-dir: data/prompts/x lies in data/prompts, which --prompts reads",
    ),
    "push": (["owner/name", "--data", "data", "--output", "data/prompts"], "--output: data/prompts is data"),
    "export": (["data", "--output", "data/stage2/train/x.jsonl"], "--output: .* lies in data, which FOLDER reads"),
    "import": (["file", "--output", "."], r"--output: \. contains file, which FILE reads"),
}


@pytest.mark.parametrize("case", APART)
def test_an_output_is_no_input_nor_in_one_nor_around_one(case, here):
    Path("link").symlink_to("data")
    before = sorted(str(path) for path in here.rglob("*"))
    arguments, message = APART[case]
    error = CliRunner().invoke(app, [case.split(",")[0], *arguments]).exception
    with pytest.raises(ValueError, match=f"^{message}"):
        raise error
    assert sorted(str(path) for path in here.rglob("*")) == before


def read(path: str, role: Role = Role.READ) -> NamedPath:
    return NamedPath("--input", Path(path), role)


def write(path: str, role: Role = Role.WRITE) -> NamedPath:
    return NamedPath("--output", Path(path), role)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (read("data"), write("data/release")),  # a data folder: its parts are read
        (read("data", Role.DATA), write("data/stage2/validation_report.json")),
        (read("data/stage2"), write("data/report")),
        (read("data/stage2"), write("data/stage2-2")),
        (read("model", Role.MODEL), write("model/report")),
        (read("report/results.json", Role.RESULT), write("report")),
        (read("data/stage2"), write(".", Role.CACHE)),
        (read("data/stage2"), read("data/stage2/train")),
        (write("out"), write("out/report.json")),
    ],
)
def test_outputs_beside_inputs_are_allowed(source, output, here):
    check_all_apart([source, output])
    check_all_apart([output, source])


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (read("data"), write("data")),
        (read("data"), write("data/prompts/x")),
        (read("data", Role.DATA), write("data")),
        (read("data", Role.DATA), write("data/harmful/report.json")),  # which need not be there yet
        (read("data/stage2"), write("data/x/../stage2")),
        (read("model", Role.MODEL), write("model/config.json")),
        (read("model", Role.MODEL), write("model", Role.CACHE)),
        (read("report/results.json", Role.RESULT), write("report/results.json")),
    ],
)
def test_outputs_on_inputs_are_refused_in_either_order(source, output, here):
    for pair in ((source, output), (output, source)):
        with pytest.raises(ValueError, match=r"^--output: .*which --input .* Name another place"):
            check_apart(*pair)


def test_a_link_to_nothing_is_missing(here):
    os.symlink("nowhere", "broken")
    with pytest.raises(FileNotFoundError, match="--x: there is no file broken"):
        check_exists("--x", Path("broken"), "file")
