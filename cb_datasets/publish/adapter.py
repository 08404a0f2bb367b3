"""The release folder of an adapter: weights, tokenizer files, model card and evaluation."""

import re
import shutil
from pathlib import Path

from huggingface_hub import ModelCard
from jinja2 import Template

from ..evaluation.results import model_names, read_results
from ..files import write_json, write_text
from ..markdown import cell, code
from ..model_licences import licence_of
from ..public_name import public_name, publish_adapter_config
from ..report.plots import PLOT_CAPTIONS
from ..report.tables import gate_rows, metric_table_rows, source_rows
from .check import secret_faults
from .folder import ADAPTER_RELEASE, replacing_folder, write_manifest
from .release import ReleaseError


CARD_SECTIONS_TEMPLATE = Path(__file__).parents[2] / "cards" / "model_card_sections.md.jinja"
# Files of an adapter folder that are released. Optimizer states and pickles are not among them.
FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "curves.png",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Not `report.html`, which contains the prompts.
REPORT_FILES = ("report.md", *PLOT_CAPTIONS)


def make_adapter_release(
    adapter: Path, report: Path, repo_id: str, output: Path, dataset: str | None = None, token: str | None = None
) -> dict:
    """Write the release folder of an adapter, exactly as it will be on the Hub.

    Args:
        adapter (`Path`): The folder that the trainer wrote, with its card.
        report (`Path`): The folder that `evaluate` wrote for this adapter.
        repo_id (`str`): The Hub repository, `owner/name`.
        output (`Path`): The release folder.
        dataset (`str`, *optional*): The dataset it was trained on, `owner/name@revision`.
        token (`str`, *optional*): The token in use, which no file may contain.

    Returns:
        `dict`: The manifest.

    Raises:
        FileNotFoundError: If there is no adapter, card or evaluation.
        ReleaseError: If the evaluation is of another adapter, the name does not begin as the licence of the base
            requires, or a file contains a token.
    """
    from ..generation.backend import adapter_revision

    results = read_results(report / "results.json")
    evaluated, trained = str(results["settings"]["adapters"]["breaker"]), adapter_revision(str(adapter))
    if not evaluated.endswith(trained):
        raise ReleaseError(
            f"{report}: evaluates the weights {evaluated}, but {adapter} has {trained}. Run `make evaluate`."
        )
    with replacing_folder(output, ADAPTER_RELEASE) as folder:
        _copy(adapter, FILES, folder)
        publish_adapter_config(folder)
        _copy(report, REPORT_FILES, folder / "report")
        # Metrics only: some sources of the prompts may not be redistributable, and some completions obey attacks.
        metrics = {key: value for key, value in results.items() if key != "prompts"}
        write_json(folder / "report" / "results.json", metrics)
        card = _card(adapter / "README.md", results, (report / "report.png").is_file(), repo_id, dataset)
        write_text(folder / "README.md", str(card))
        manifest = write_manifest(folder, {}, ADAPTER_RELEASE)
        if faults := secret_faults(folder, token):
            raise ReleaseError("no release: " + "; ".join(faults))
    return manifest


def _copy(source: Path, names: tuple[str, ...], target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def is_adapter_file(path: str) -> bool:
    """Whether a file of a model repository belongs to a release."""
    return path in FILES or path.startswith("report/")


def _card(path: Path, results: dict, has_plot: bool, repo_id: str, dataset: str | None) -> ModelCard:
    """The trainer's card, completed with evaluation, intended use, limitations and licence."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no card {path}: train with this version.")
    card = ModelCard.load(path)
    base = card.data.base_model = public_name(str(card.data.base_model)) if card.data.base_model else None
    card.data.model_name = name = repo_id.split("/")[-1]
    licence = licence_of(str(base))
    if licence is not None:
        if licence.name_prefix and not name.startswith(licence.name_prefix):
            raise ReleaseError(
                f"{repo_id}: the licence of {base} requires a name that begins with {licence.name_prefix}: {name!r} "
                "does not."
            )
        card.data.license, card.data.license_name = licence.hub_id, licence.hub_name
    if dataset is not None:
        card.data.datasets = [dataset.partition("@")[0]]
    models = model_names(results)
    sections = Template(CARD_SECTIONS_TEMPLATE.read_text(encoding="utf-8"), trim_blocks=False).render(
        models=list(map(cell, models)),
        rows=[tuple(map(cell, row)) for row in [*metric_table_rows(results, models), *source_rows(results, models)]],
        gates=[tuple(map(cell, row)) for row in gate_rows(results)],
        tasks="greedy decoding",
        has_plot=has_plot,
        base_model=code(base) if base else None,
        licence=licence,
    )
    if dataset is not None:
        sections = (
            f"Published as [`{dataset}`](https://huggingface.co/datasets/{dataset.partition('@')[0]}).\n\n{sections}"
        )
    # The trainer's card has a placeholder section "Evaluation", which the rendered sections replace.
    text, replaced = re.subn(
        r"^## Evaluation\n.*?(?=^## )", lambda _: sections + "\n", card.text, flags=re.DOTALL | re.MULTILINE
    )
    if not replaced:
        raise ReleaseError(f"{path}: no section Evaluation to fill in: train with this version.")
    # The trainer did not know the repository: its card names the local folder.
    card.text = text.replace("path/to/this/folder", repo_id).replace(
        f"# {path.parent.name}\n", f"# {card.data.model_name}\n", 1
    )
    return card
