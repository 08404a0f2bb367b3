"""docs/from_the_guide.md: commands of the documents run as written, or the error says what to write; ours parse."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cb_datasets.cli import app
from cb_datasets.cli.guide_hints import COMMANDS, FLAGS, command_hint, flag_hint


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from_the_guide.md").read_text(encoding="utf-8")
ROWS = [
    tuple(re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split(" | ")[:2])
    for row in PAGE.splitlines()
    if row.startswith("| `")
]
SCRIPTS = [(theirs, ours) for (theirs, *_), [ours] in ROWS if theirs.partition(" ")[0].endswith(".py")]
GROUP = typer.main.get_command(app)
UsageError = typer.BadParameter.__mro__[1]

pytestmark = pytest.mark.usefixtures("any_path")


def parse(words: list[str]) -> None:
    name, *arguments = words
    GROUP.commands[name].make_context(name, arguments)


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_every_script_of_the_documents_has_a_row():
    scripts = {theirs.partition(" ")[0].removesuffix(".py") for theirs, _ in SCRIPTS}
    assert scripts == {*COMMANDS, "train_circuit_breaker"}


@pytest.mark.parametrize("ours", [ours for _, ours in SCRIPTS])
def test_what_the_table_says_to_write_is_a_command(ours: str):
    program, *words = shlex.split(ours)
    if program == "cb-datasets":
        parse(words)
    else:
        assert (
            words[words.index("-m") + 1] == "trainers.train" and (ROOT / words[words.index("--config") + 1]).is_file()
        )


@pytest.mark.parametrize("theirs", [theirs for theirs, _ in SCRIPTS if " " in theirs])
def test_their_flags_are_ours_or_the_error_says_what_to_write(theirs: str):
    script, *flags = shlex.split(theirs)
    words = [*COMMANDS[script.removesuffix(".py")].split(), *flags]
    try:
        parse(words)
    except UsageError as error:
        result = run(*words)
        assert result.exit_code == 2 and error.ctx.info_name == words[0]
        assert result.stderr.startswith(f"error: {words[0]} ") and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize("script", [*COMMANDS, "train_circuit_breaker"])
def test_their_scripts_are_named_by_what_to_write(script: str):
    for name in (script, f"{script}.py"):
        result = run(name, "--whatever", "x")
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert result.stderr.strip().endswith(str(command_hint(name)))
    assert command_hint("generate") is None and run("ingestt").exit_code == 2


def test_hints_name_commands_and_flags_as_they_are():
    for command in COMMANDS.values():
        assert command.split()[0] in GROUP.commands
    for command, flag in FLAGS:
        opts = [opt for param in GROUP.commands[command].params for opt in param.opts]
        lacks = run(command, flag).stderr if flag.startswith("--") and flag not in opts else run(command).stderr
        assert lacks.startswith(f"error: {command} ") or flag == "--output", lacks
    assert flag_hint("merge", ["--strict"]) is None


def test_other_targets_that_the_page_names_are_there():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "mk" / "pipeline.mk").read_text(encoding="utf-8"), re.M))
    assert {"export", "data"} <= targets and set(re.findall(r"`make ([a-z-]+)", PAGE)) <= targets
    for recipe in re.findall(r"RECIPE=([\w.-]+)", PAGE):
        assert (ROOT / "recipes" / f"{recipe}.mk").is_file()


@pytest.mark.parametrize("command", re.findall(r"^cb-datasets ((?:.*\\\n)*.*)$", PAGE, re.M))
def test_the_examples_parse(command: str):
    parse(shlex.split(command.replace("\\\n", " ")))
