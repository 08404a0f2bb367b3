"""The release folder of an adapter: weights, tokenizer files, model card and evaluation."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Template

from ..evaluation.gates import failed_gates
from ..evaluation.results import model_names, read_results
from ..files import write_json, write_text
from ..markdown import cell, code
from ..model_licences import licence_of
from ..public_name import hub_id, is_local, local_label, model_label, public_name, publish_adapter_config
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
    adapter: Path,
    report: Path,
    repo_id: str,
    output: Path,
    dataset: str | None = None,
    token: str | None = None,
    base_model: str | None = None,
    allow_failed_gates: bool = False,
) -> dict:
    """Write the release folder of an adapter, exactly as it will be on the Hub.

    Args:
        adapter (`Path`): The folder that the trainer wrote, with its card.
        report (`Path`): The folder that `evaluate` wrote for this adapter.
        repo_id (`str`): The Hub repository, `owner/name`.
        output (`Path`): The release folder.
        dataset (`str`, *optional*): The dataset it was trained on, `owner/name@revision`.
        token (`str`, *optional*): The token in use, which no file may contain.
        base_model (`str`, *optional*): Hub id of the base model, where a local copy of it was trained on.
        allow_failed_gates (`bool`, *optional*, defaults to `False`): Release a breaker that failed a gate of its own
            evaluation; the card says so.

    Returns:
        `dict`: The manifest.

    Raises:
        FileNotFoundError: If there is no adapter, card or evaluation.
        ReleaseError: If the evaluation is of another adapter or failed a gate, the name does not begin as the licence
            of the base requires, or a file contains a token.
    """
    from ..generation.backend import adapter_revision

    results = read_results(report / "results.json")
    evaluated, trained = str(results["settings"]["adapters"]["breaker"]), adapter_revision(str(adapter))
    if not evaluated.endswith(trained):
        raise ReleaseError(
            f"{report}: evaluates the weights {evaluated}, but {adapter} has {trained}. Run `make evaluate`."
        )
    failed = failed_gates(results["gates"], strict=False)
    if failed and not allow_failed_gates:
        raise ReleaseError(
            f"{report}: this breaker failed a gate of its own evaluation ({', '.join(failed)}). Train a better one, "
            "or pass --allow-failed-gates: the card will say so."
        )
    card = _read_card(adapter / "README.md")
    base = _Base.of(card, results["settings"], base_model)
    with replacing_folder(output, ADAPTER_RELEASE) as folder:
        _copy(adapter, FILES, folder)
        publish_adapter_config(folder, base.hub_id or base.label)
        _copy(report, REPORT_FILES, folder / "report")
        # Metrics only: some sources of the prompts may not be redistributable, and some completions obey attacks.
        metrics = {key: value for key, value in results.items() if key != "prompts"}
        metrics["settings"] = {**metrics["settings"], "model": _evaluated_model(results["settings"])}
        write_json(folder / "report" / "results.json", metrics)
        _complete_card(card, base, results, (report / "report.png").is_file(), repo_id, dataset)
        card.text = card.text.replace(f"# {adapter.name}\n", f"# {repo_id.split('/')[-1]}\n", 1)
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


@dataclass(frozen=True)
class _Base:
    """The base model of a release.

    Args:
        hub_id (`str`, *optional*): By which anybody can load it; `None` for a local model.
        label (`str`, *optional*): What readers are told of it; `None` if nothing is known.
        in_card (`str`, *optional*): What the trainer's card loads, which may be a folder of this machine.
    """

    hub_id: str | None
    label: str | None
    in_card: str | None

    @classmethod
    def of(cls, card: ModelCard, settings: dict, given: str | None) -> "_Base":
        """The base model that the user names, or else that of the card, unless a local one was evaluated."""
        named = cast(ModelCardData, card.data).base_model
        in_card = str(named) if named else None
        if given is not None:
            return cls(given, given, in_card)
        evaluated = _evaluated_model(settings)
        if is_local(evaluated):
            return cls(None, evaluated, in_card)
        if in_card is None:
            return cls(None, evaluated, None)
        known = hub_id(in_card)
        return cls(known, known or local_label(in_card, settings["revision"]), in_card)


def _evaluated_model(settings: dict) -> str:
    return model_label(public_name(settings["model"]), settings["revision"])


def _read_card(path: Path) -> ModelCard:
    if not path.is_file():
        raise FileNotFoundError(f"There is no card {path}: train with this version.")
    return ModelCard.load(path)


def _complete_card(
    card: ModelCard, base: _Base, results: dict, has_plot: bool, repo_id: str, dataset: str | None
) -> None:
    """Add evaluation, intended use, limitations and licence to the trainer's card."""
    data = cast(ModelCardData, card.data)
    data.base_model = base.hub_id
    data.model_name = name = repo_id.split("/")[-1]
    licence = licence_of(base.label or "")
    if licence is not None:
        if licence.name_prefix and not name.startswith(licence.name_prefix):
            raise ReleaseError(
                f"{repo_id}: the licence of {base.label} requires a name that begins with {licence.name_prefix}: "
                f"{name!r} does not."
            )
        data.license, data.license_name = licence.hub_id, licence.hub_name
    if dataset is not None:
        data.datasets = [dataset.partition("@")[0]]
    models = model_names(results)
    sections = Template(CARD_SECTIONS_TEMPLATE.read_text(encoding="utf-8"), trim_blocks=False).render(
        models=list(map(cell, models)),
        rows=[tuple(map(cell, row)) for row in [*metric_table_rows(results, models), *source_rows(results, models)]],
        gates=[tuple(map(cell, row)) for row in gate_rows(results)],
        tasks="greedy decoding",
        has_plot=has_plot,
        base_model=code(base.label) if base.label else None,
        failed=failed_gates(results["gates"], strict=False),
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
        raise ReleaseError("README.md of the adapter has no section Evaluation to fill in: train with this version.")
    # The trainer did not know the repository, nor always where the base model is published.
    text = text.replace("path/to/this/folder", repo_id)
    if base.in_card and base.in_card != base.hub_id:
        for before, after in ('""', "``", ("serve ", " ")):
            text = text.replace(f"{before}{base.in_card}{after}", f"{before}path/to/base{after}")
    card.text = text.replace("path/to/base", base.hub_id) if base.hub_id else text
