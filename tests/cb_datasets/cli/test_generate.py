"""`cb-datasets generate` runs the commands that make a recipe's sets, one for each kind of set."""

from pathlib import Path

import pytest

from cb_datasets.cli.generate import generating_commands


DATA = Path("data")
FLAGS = {"ds": "--n 4", "dr": "--n 2", "safe": "", "regenerate": "--rounds 3"}


def commands(*sets: str) -> list[list[str]]:
    return generating_commands(list(sets), DATA, "lookalike", ["lookalike", "ultrachat"], FLAGS)


def test_sets_of_one_kind_share_a_command():
    assert commands("harmful/lookalike_flips", "retain/chat", "retain/lookalike_benign_twins") == [
        ["generate-ds", "--traces", "data/traces/lookalike", "--output", "data/harmful/lookalike_flips", "--n", "4"],
        [
            *("generate-dr", "--traces", "data/traces/lookalike", "--traces", "data/traces/ultrachat"),
            *("--output", "data/retain", "--kinds", "chat", "--kinds", "benign_twins", "--n", "2"),
        ],
    ]


def test_both_regenerated_sets_are_made_even_if_one_is_asked_for():
    [command] = commands("retain/agentdojo_resisted")
    assert command[:3] == ["regenerate", "--traces", "data/traces/agentdojo"]
    assert {"data/harmful/agentdojo_failures", "data/retain/agentdojo_resisted"} <= set(command)
    assert command[-2:] == ["--rounds", "3"]


def test_recorded_sets_need_no_command():
    assert commands("retain/tau2_traces") == []


def test_an_unknown_set_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"No such set: harmful/b4_flips\. .* harmful/lookalike_flips"):
        commands("harmful/b4_flips")
