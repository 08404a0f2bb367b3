"""Help texts come from docstrings, and every field has one."""

from dataclasses import dataclass, field, fields
from inspect import cleandoc

import pytest
from transformers import HfArgumentParser

from trainers import CircuitBreakerConfig
from trainers.diagnostics.__main__ import DiagnosticsArguments
from trainers.diagnostics.__main__ import make_parser as make_diagnostics_parser
from trainers.docstring_help import docstring_help
from trainers.train import ScriptArguments


@dataclass
@docstring_help
class Arguments:
    """
    Arguments of a script.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Model, see [`CircuitBreakerTrainer`] and
            [`~transformers.AutoModel.from_pretrained`].

        > A heading

        fraction (`float`, *optional*, defaults to `0.5`):
            Fraction of rows: 0.5 is 50 % of them.
        names (`list[str]`, *optional*):
            Names.
    """

    model: str
    fraction: float = 0.5
    names: list[str] = field(default_factory=list, metadata={"action": "extend"})


def test_help_is_the_entry_of_the_docstring():
    assert {own.name: own.metadata["help"] for own in fields(Arguments)} == {
        "model": "Model, see `CircuitBreakerTrainer` and `AutoModel.from_pretrained`.",
        "fraction": "Fraction of rows: 0.5 is 50 %% of them.",
        "names": "Names.",
    }
    assert "0.5 is 50 % of them. (default: 0.5)" in " ".join(HfArgumentParser(Arguments).format_help().split())


def test_defaults_and_other_metadata_stay():
    assert Arguments("m") == Arguments("m", 0.5, [])
    with pytest.raises(TypeError, match="model"):
        Arguments()
    [parsed] = HfArgumentParser(Arguments).parse_args_into_dataclasses(
        ["--model", "m", "--names", "a", "--names", "b"]
    )
    assert parsed.names == ["a", "b"]


def test_field_without_entry_and_entry_without_field_are_errors():
    with pytest.raises(TypeError, match="fields of Undocumented and the entries of its docstring differ: seed"):

        @docstring_help
        class Undocumented:
            """Arguments."""

            seed: int = 0

    with pytest.raises(TypeError, match="differ: adapter, model"):

        @docstring_help
        class Renamed:
            """
            Arguments.

            Args:
                adapter (`str`):
                    Folder of the adapter.
            """

            model: str


@pytest.mark.parametrize("arguments", [CircuitBreakerConfig, DiagnosticsArguments, ScriptArguments])
def test_entries_have_the_order_of_the_fields(arguments):
    docstring = cleandoc(arguments.__doc__)
    entries = [docstring.index(f"\n    {name} (") for name in arguments.__annotations__]
    assert entries == sorted(entries)
    assert all(
        own.metadata["help"].endswith(".") for own in fields(arguments) if own.name in arguments.__annotations__
    )


def test_usage_names_the_command():
    assert make_diagnostics_parser().format_usage().startswith("usage: python -m trainers.diagnostics ")
