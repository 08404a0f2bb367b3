"""Numbers on the command line: NaN, infinity and what is out of range are refused, in every command."""

import inspect
from typing import get_args

import pytest
from typer.testing import CliRunner

from cb_datasets.cli import app
from cb_datasets.cli.merge import _numbers
from cb_datasets.cli.numbers import finite

from .test_paths import COMMANDS


FLOATS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in inspect.signature(command).parameters.values()
    if "float" in str(get_args(option.annotation)[:1])
]


@pytest.mark.parametrize(("name", "option"), FLOATS, ids=[f"{name}-{option.name}" for name, option in FLOATS])
def test_no_number_with_a_point_is_taken_unchecked(name, option):
    [info] = get_args(option.annotation)[1:]
    assert info.callback is finite


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "flags",
    [
        ["merge", "--output", "out", "--max-similarity"],
        ["generate-ds", "--output", "out", "--traces", "in", "--model", "m", "--min-yield"],
        ["evaluate", "--output", "o", "--prompts", "in", "--model", "m", "--adapter", "a", "--min-asr-reduction"],
    ],
)
def test_what_is_no_number_is_refused(flags, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    result = CliRunner().invoke(app, [*flags, value])
    # Infinity may be out of the option's bounds already, which is an error of usage.
    assert flags[-1] in f"{result.output} {result.exception}" and result.exit_code in (1, 2)


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1"])
def test_a_similarity_is_a_number_from_0(value):
    result = CliRunner().invoke(app, ["merge", "--output", "out", "--repeat-similarity", value])
    assert result.exit_code in (1, 2) and "FOLDERS" not in str(result.exception)
    assert "--repeat-similarity" in f"{result.output} {result.exception}"


@pytest.mark.parametrize(
    ("text", "number"), [("refusal=nan", float), ("refusal=inf", float), ("refusal=-1", float), ("refusal=-1", int)]
)
def test_weights_and_quotas_of_classes_are_finite(text, number):
    with pytest.raises(ValueError, match="not a number from 0 on of one of the classes"):
        _numbers([text], number)
