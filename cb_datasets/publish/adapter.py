"""The folder of a published breaker: the adapter, what it needs to be loaded, its card and its evaluation."""

import re
import shutil
from pathlib import Path

from huggingface_hub import ModelCard
from jinja2 import Template

from ..evaluation.results import model_names, read_results
from ..files import write_json, write_text
from ..report.plots import PICTURES
from ..report.tables import gate_rows, table_rows
from .check import secret_faults
from .dataset_card import licence_of
from .folder import whole_folder, write_manifest
from .release import ReleaseError


CARD_SECTIONS_TEMPLATE = Path(__file__).parents[2] / "cards" / "model_card_sections.md.jinja"
# Optimizer states and pickles stay at home.
FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "curves.png",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Not `report.html`, which has the prompts in it.
REPORT_FILES = ("report.md", *PICTURES)


def make_adapter_release(
    adapter: Path, report: Path, repo_id: str, output: Path, dataset: str | None = None, token: str | None = None
) -> dict:
    """Write the folder of a breaker as the Hub will hold it; returns its manifest.

    Args:
        adapter (`Path`): What the trainer wrote, with its card.
        report (`Path`): What `evaluate` wrote about this adapter.
        repo_id (`str`): Where it will be loaded from.
        output (`Path`): The release folder.
        dataset (`str`, *optional*): The dataset it was trained on, `owner/name@revision`.
        token (`str`, *optional*): The token in use, which must be in no file.

    Raises:
        FileNotFoundError: If there is no adapter, card or evaluation.
        ReleaseError: If the evaluation is of another adapter, a Llama's name is missing, or a file holds a token.
    """
    from ..generation.backend import adapter_revision

    found = read_results(report / "results.json")
    evaluated, trained = str(found["settings"]["adapters"]["breaker"]), adapter_revision(str(adapter))
    if not evaluated.endswith(trained):
        raise ReleaseError(
            f"{report}: evaluates the weights {evaluated}, and {adapter} holds {trained}. Run `make evaluate`."
        )
    with whole_folder(output) as folder:
        _copy(adapter, FILES, folder)
        _copy(report, REPORT_FILES, folder / "report")
        # Figures only: the prompts have sources, some of which may not be passed on, and models' answers to attacks.
        figures = {key: value for key, value in found.items() if key != "prompts"}
        write_json(folder / "report" / "results.json", figures)
        card = _card(adapter / "README.md", found, (report / "report.png").is_file(), repo_id, dataset)
        write_text(folder / "README.md", str(card))
        manifest = write_manifest(folder, {})
        if faults := secret_faults(folder, token):
            raise ReleaseError("no release: " + "; ".join(faults))
    return manifest


def _copy(source: Path, wanted: tuple[str, ...], target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in wanted:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def is_owned(path: str) -> bool:
    """Whether a file of a model repository is part of a release."""
    return path in FILES or path.startswith("report/")


def _card(path: Path, found: dict, has_plot: bool, repo_id: str, dataset: str | None) -> ModelCard:
    """The trainer's card with what was measured since: evaluation, intended use, limits, licence."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no card {path}: train with this version.")
    card = ModelCard.load(path)
    base = card.data.base_model
    licence = licence_of(str(base))
    if licence is not None:
        name = repo_id.split("/")[-1]
        if not name.startswith("Llama"):
            raise ReleaseError(
                f"{repo_id}: the licence of {base} wants a name that begins with Llama: {name!r} does not."
            )
        card.data.license = licence
    card.data.model_name = repo_id.split("/")[-1]
    if dataset is not None:
        card.data.datasets = [dataset.partition("@")[0]]
    sections = Template(CARD_SECTIONS_TEMPLATE.read_text(encoding="utf-8"), trim_blocks=False).render(
        models=model_names(found),
        rows=table_rows(found, model_names(found)),
        gates=gate_rows(found),
        tasks="greedy decoding",
        has_plot=has_plot,
        base_model=base,
        llama=licence is not None,
    )
    if dataset is not None:
        sections = (
            f"Published as [`{dataset}`](https://huggingface.co/datasets/{dataset.partition('@')[0]}).\n\n{sections}"
        )
    text, replaced = re.subn(
        r"## Evaluation\n.*?(?=^## )", lambda _: sections + "\n", card.text, flags=re.DOTALL | re.MULTILINE
    )
    if not replaced:
        raise ReleaseError(f"{path}: no section Evaluation to fill in: train with this version.")
    card.text = text.replace("path/to/this/folder", repo_id).replace(
        f"# {path.parent.name}\n", f"# {card.data.model_name}\n", 1
    )
    return card
