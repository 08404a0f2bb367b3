"""A section of the report that shows results of another command, for the models that are evaluated here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..evaluation.compare import BASE
from ..evaluation.results import is_evaluated


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        anchor, title (`str`): Its id in the page, and its heading.
        paragraphs (`list[str]`): Text before the table: settings, and how to read the numbers.
        models (`list[str]`): Columns of the table; empty if there is no table.
        rows (`list[tuple[str, ...]]`): Rows of the table, `(label, cell of each model, ...)`.
        details (`list[tuple[str, list[str], list[tuple[str, ...]]]]`): Title, header and rows of tables on parts.
    """

    anchor: str
    title: str
    paragraphs: list[str]
    models: list[str]
    rows: list[tuple[str, ...]]
    details: list[tuple[str, list[str], list[tuple[str, ...]]]] = field(default_factory=list)


def adapter_revisions(settings: dict) -> dict[str, str]:
    """Hash of the weights of each attacked adapter, by name, from the settings of an attack."""
    return {
        name: str(model["revision"]).rpartition("+")[2] for name, model in settings["models"].items() if name != BASE
    }


def models_to_show(revisions: Mapping[str, str], evaluation_settings: dict, file: str) -> tuple[list[str], list[str]]:
    """The models of a table, and a paragraph about the models that are left out.

    Beside adapters the base model is shown for comparison only: if none of them is evaluated, no models are shown.
    """
    evaluated = evaluation_settings["adapters"]
    shown = [name for name, revision in revisions.items() if is_evaluated(evaluated, name, revision)]
    others = [f"{name} ({revision})" for name, revision in revisions.items() if name not in shown]
    omitted = [f"Not shown, because {file} has results of weights that are not evaluated here: {', '.join(others)}."]
    return [BASE, *shown] if shown or not revisions else [], omitted if others else []
