"""The dataset card of a release, filled from its rows and from the reports of the pipeline steps.

Nothing in it is written by hand, so the card always describes the data beside it.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from ..counts import gate_number, listed
from ..datasheet import by_source
from ..files import read_json
from ..formats import FORMATS
from ..generation.serving import serving_command
from ..markdown import cell, code
from ..model_licences import licence_of
from ..sample import PRIORITY_WEIGHTS
from ..terminal import shown
from .folder import PLOT, SIZE_CATEGORIES, Writer, WrittenSplit, union
from .released_rows import RELEASED_PROMPT_FEATURES, RELEASED_SAMPLE_FEATURES


# `cards/` is beside the packages, both in a checkout and in an installation.
DATASET_CARD_TEMPLATE = Path(__file__).parents[2] / "cards" / "dataset_card.md.jinja"

TAGS = ["agents", "circuit-breakers", "prompt-injection", "representation-rerouting", "safety", "tool-calling"]
GATED_PROMPT = (
    "These rows contain working attacks on tool-calling agents and completions that comply with them. Access is for "
    "people who make agents robust to such attacks. By requesting access you agree not to share the rows and to use "
    "them for this purpose only."
)
GATED_FIELDS = {
    "Name": "text",
    "Affiliation": "text",
    "Intended use": "text",
    "I will not share the rows": "checkbox",
}
# Longest text, in characters, that the example row shows in full.
LONG_TEXT = 240

Configs = dict[str, dict[str, WrittenSplit]]


def dataset_card(repo_id: str, folder: Path, configs: Configs) -> DatasetCard:
    """The card of a release.

    Args:
        repo_id (`str`): The Hub repository, `owner/name`.
        folder (`Path`): The release folder, with its reports.
        configs (`dict`): The written splits by configuration, from [`~publish.folder.write_release`].
    """
    reports = {path.stem: read_json(path) for path in sorted((folder / "reports").glob("*.json"))}
    facts = card_facts(configs, reports)
    return DatasetCard.from_template(
        card_data(configs, facts["licences"], folder),
        template_path=str(DATASET_CARD_TEMPLATE),
        repo_id=repo_id,
        title="Circuit breakers for tool-calling agents",
        configs={
            name: {split: written.rows for split, written in splits.items()} for name, splits in _all(configs).items()
        },
        plot=PLOT,
        fence="```",
        cell=cell,
        code=code,
        listed=lambda counts: listed(dict(counts)) or "none",
        number=gate_number,
        **facts,
    )


def card_data(configs: Configs, licences: list[str], folder: Path) -> DatasetCardData:
    """The YAML header of the card of a release."""
    features = {name: features_of(name) for name in _all(configs)}
    return yaml_header("Circuit breakers for tool-calling agents", _all(configs), features, licences, TAGS, folder)


def yaml_header(
    title: str,
    configs: Configs,
    features: dict[str, Features],
    licences: list[str],
    tags: list[str],
    folder: Path,
) -> DatasetCardData:
    """A YAML header, which the Hub, its viewer and `load_dataset` read.

    Args:
        title (`str`): Title of the card.
        configs (`dict`): The splits by configuration. If there are several, `train` is the default one.
        features (`dict`): The row type of each configuration.
        licences (`list[str]`): Licences of the rows.
        tags (`list[str]`): Tags on the Hub.
        folder (`Path`): The folder of the files.
    """
    # `train` repeats the rows of other configurations.
    total = sum(written.rows for name, splits in configs.items() if name != "train" for written in splits.values())
    data = DatasetCardData(
        pretty_name=title,
        language=["en"],
        license=licences if len(licences) > 1 else licences[0],
        size_categories=[next(name for name, bound in SIZE_CATEGORIES.items() if total < bound)],
        task_categories=["text-generation"],
        tags=tags,
        viewer=True,
        extra_gated_prompt=GATED_PROMPT,
        extra_gated_fields=GATED_FIELDS,
    )
    data_files = {name: _data_files(name, splits) for name, splits in configs.items()}
    MetadataConfigs(data_files).to_dataset_card_data(data)
    infos = {name: _info(features[name], splits, folder) for name, splits in configs.items()}
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return data


def features_of(config: str) -> Features:
    """The row type of a configuration."""
    return RELEASED_PROMPT_FEATURES if config == "eval" else RELEASED_SAMPLE_FEATURES


def card_facts(configs: Configs, reports: dict[str, dict]) -> dict[str, Any]:
    """Variables of the card template, counted from rows and reports."""
    samples = [written for name in ("harmful", "retain") for written in configs[name].values()]
    prompts = list(configs["eval"].values())
    sample_counts, prompt_counts = _sum(samples, "source"), _sum(prompts, "source")
    names = sorted({*sample_counts, *prompt_counts})
    sheets = by_source(reports["sources"])
    generators = _generators(samples)
    # Some licences cover the outputs of models, so the release inherits them beside the licences of the sources.
    models = sorted({each["model"] for each in generators if each["writer"] != Writer.SOURCE})
    by_model = {model: licence_of(model) for model in models}
    by_licence = {
        licence: [model for model, its in by_model.items() if its == licence] for licence in by_model.values()
    }
    terms = {licence: models for licence, models in by_licence.items() if licence and licence.outputs}
    validated = reports["validation_report"]["sets"].values()
    example, shortened = _example(configs["harmful"]["train"].example or {})
    completions, formats = _sum(samples, "completion"), sorted(_sum(samples, "format"))
    return {
        "sources": [_source(name, sheets[name], sample_counts[name], prompt_counts[name]) for name in names],
        "source_names": names,
        "licences": sorted({sheets[name]["licence"] for name in names} | {licence.hub_id for licence in terms}),
        "classes": _classes(configs),
        "outcomes": {name: _sum(configs[name].values(), "outcome") for name in ("harmful", "retain")},
        "generators": generators,
        "completions": completions,
        "samples": completions.total(),
        "formats": formats,
        "templates": sorted(_sum(samples, "template")),
        "dates": sorted(_sum(samples, "date")),
        "categories": dict(sorted(_sum(configs["harmful"].values(), "category").items())),
        "fitted": _sum(samples, "fitted").total(),
        "read_by_schema": _sum(samples, "read_by_schema").total(),
        "redacted": _sum(samples, "redacted").total(),
        "rules": {key: sum(report[key] for report in validated) for key in ("rows", "quarantined")},
        "gates": reports["quality_gates"]["gates"] + reports["stats"]["gates"],
        "changed": reports["quality_gates"]["thresholds_changed_by_recipe"]
        | reports["stats"]["thresholds_changed_by_recipe"],
        "preflight": reports["preflight"],
        "output_terms": terms,
        "of_unknown_licence": [model for model in by_licence.get(None, []) if model not in _names_in_runs(generators)],
        "serving": [serving_command("BASE", "ADAPTER", "RANK", FORMATS[name]) for name in formats if name in FORMATS],
        "notes": {name: note for name in names if (note := sheets[name].get("note"))},
        "citations": sorted({citation for name in names for citation in _citations(sheets[name])}),
        # In JSON, control characters are escapes, but not those that reverse a line or hide.
        "example": shown(example),
        "example_shortened": shortened,
    }


def _citations(sheet: dict) -> Iterable[str]:
    """Citations of a source, or of the works that it holds."""
    of_works = [origin["citation"] for origin in sheet.get("origins", ())]
    return filter(None, of_works or [sheet.get("citation")])


def plot_classes(configs: Configs, path: Path) -> None:
    """Plot the number of rows of each class, by split."""
    from matplotlib.figure import Figure

    classes = _classes(configs)
    figure = Figure(figsize=(7, 0.45 * len(classes) + 1), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(classes)
    for split in ("train", "test"):
        widths = [numbers[split] for numbers in classes.values()]
        axes.barh(list(classes), widths, left=left, label=split)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("rows")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    # Without the library version in the metadata, the same rows give the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _all(configs: Configs) -> Configs:
    return {
        "harmful": configs["harmful"],
        "retain": configs["retain"],
        "train": union(configs),
        "eval": configs["eval"],
    }


def _data_files(config: str, splits: dict[str, WrittenSplit]) -> dict[str, Any]:
    files = [{"split": split, "path": written.files} for split, written in splits.items()]
    return {"data_files": files} | ({"default": True} if config == "train" else {})


def _info(features: Features, splits: dict[str, WrittenSplit], folder: Path) -> DatasetInfo:
    infos = SplitDict()
    for name, written in splits.items():
        infos[name] = SplitInfo(name, written.num_bytes, written.rows)
    return DatasetInfo(
        features=features,
        splits=infos,
        download_size=sum((folder / file).stat().st_size for written in splits.values() for file in written.files),
        dataset_size=sum(written.num_bytes for written in splits.values()),
    )


def _sum(splits: Iterable[WrittenSplit], key: str) -> Counter:
    return sum((written.counts.get(key, Counter()) for written in splits), Counter())


def _source(name: str, sheet: dict, samples: int, prompts: int) -> dict[str, Any]:
    """The row of a source in the card's table."""
    return {
        "name": name,
        "samples": samples,
        "prompts": prompts,
        "licence": sheet["licence"],
        "revision": sheet["source_revision"],
        "records": sheet["records"],
        "dropped": listed(sheet["drops"]),
    }


def _classes(configs: Configs) -> dict[str, dict[str, int]]:
    counts = {split: Counter[str]() for split in ("train", "test")}
    for config in ("harmful", "retain"):
        for split, written in configs[config].items():
            counts[split] += written.counts["class"]
    present = [name for name in PRIORITY_WEIGHTS if any(count[name] for count in counts.values())]
    return {name: {split: count[name] for split, count in counts.items()} for name in present}


def _generators(samples: list[WrittenSplit]) -> list[dict[str, Any]]:
    keys = ("model", "revision", "temperature", "top_p", "writer")
    by_count = sorted(_sum(samples, "generator").items(), key=lambda item: (-item[1], str(item[0])))
    generators = [dict(zip(keys, generator, strict=True)) | {"rows": rows} for generator, rows in by_count]
    names = _names_in_runs(generators)
    for each in generators:
        in_runs = each["writer"] == Writer.TARGET and each["model"] in names
        each["role"] = "target, in its recorded runs" if in_runs else each["writer"].value
    return generators


def _names_in_runs(generators: list[dict[str, Any]]) -> set[str]:
    """What runs of the target itself call it (`collect --own-agent`), where other rows have its name and weights."""
    target = [each for each in generators if each["writer"] == Writer.TARGET]
    known = {each["model"] for each in target if each["revision"] is not None}
    return {each["model"] for each in target} - known if known else set()


def _example(row: dict) -> tuple[str, bool]:
    """A row as JSON text, without the column that repeats its messages, and whether it was shortened."""
    full = {name: value for name, value in row.items() if name != "prompt"}
    short = _shortened(full)
    return json.dumps(short, indent=2, ensure_ascii=False), short != full


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= LONG_TEXT else f"{value[:LONG_TEXT]}..."
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items() if item not in (None, [])}
    if isinstance(value, list):
        return [_shortened(item) for item in value[:2]] + ([f"... {len(value) - 2} more"] if len(value) > 2 else [])
    return value
