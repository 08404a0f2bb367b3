"""Builds a release from a data folder: a complete, checked folder, or an error that names every obstacle.

data/demo/{stage2,prompts,reports}/ -> data/demo/release/ -> one commit of a private repository (`push.py`)
"""

from pathlib import Path

from ..datasheet import by_source, read_sheets
from ..files import dataset_folders, hashes_of, read_json
from .check import folder_faults
from .dataset_card import Configs, dataset_card, plot_classes
from .folder import DATASET_RELEASE, PLOT, REPORTS, SPLITS, replacing_folder, write_manifest, write_release


# Reports of steps that can fail; `sources` cannot.
GATED_REPORTS = tuple(name for name in REPORTS if name != "sources")


class ReleaseError(ValueError):
    """Raised with the reasons why a release cannot be built. Nothing was sent."""


def make_release(data: Path, repo_id: str, output: Path, token: str | None = None) -> dict:
    """Write the release folder of a dataset, exactly as it will be on the Hub.

    Args:
        data (`Path`): The data folder of a recipe.
        repo_id (`str`): The Hub repository, `owner/name`, for the card.
        output (`Path`): The release folder. An older release there is replaced when the new one is complete.
        token (`str`, *optional*): The token in use, which no file may contain.

    Returns:
        `dict`: The manifest.

    Raises:
        ReleaseError: If a check failed, a source may not be redistributed, or the Hub would reject the folder.
        FileNotFoundError: If a step of the pipeline has not been run.
    """
    raise_if_any(_report_faults(data / "reports") or _stale_report_faults(data))
    with replacing_folder(output, DATASET_RELEASE) as folder:
        configs = write_release(data, folder)
        raise_if_any(source_faults(configs, read_sheets(data / "reports" / "sources.json")))
        plot_classes(configs, folder / PLOT)
        dataset_card(repo_id, folder, configs).save(folder / "README.md")
        manifest = write_manifest(folder, configs, DATASET_RELEASE)
        raise_if_any(folder_faults(folder, token))
    return manifest


def source_faults(configs: Configs, sheets: dict[str, dict]) -> list[str]:
    """Sources whose rows may not be redistributed. AgentHarm never may, whatever its data sheet says."""
    faults = []
    source_sheets = by_source(sheets)
    for name, splits in configs.items():
        for split, written in splits.items():
            for source, rows in sorted(written.counts["source"].items()):
                if why := source_fault(source, source_sheets.get(source)):
                    faults.append(f"{name}/{split}: {rows} rows of {source}: {why}. Make the data without it.")
    return faults


def source_fault(source: str, sheet: dict | None) -> str | None:
    """Why rows of a source may not be redistributed, by its data sheet; `None` if they may."""
    if source == "agentharm":
        return "AgentHarm is never published"
    if sheet is None:
        return "the source is not in reports/sources.json, so its licence is not known"
    if sheet["licence"] == "unknown":
        return "its licence was not stated; state it with `--licence NAME`"
    if not sheet["redistributable"]:
        return f"its licence ({sheet['licence']}) does not allow redistribution"
    return None


def _report_faults(reports: Path) -> list[str]:
    faults = []
    for name in GATED_REPORTS:
        failed = reports / f"{name}.failed.json"
        if failed.is_file():
            faults.append(f"{failed}: the last run of this check failed.")
        elif not read_json(reports / f"{name}.json").get("passed"):
            faults.append(f"{reports / name}.json: this check did not pass.")
    return faults


def _stale_report_faults(data: Path) -> list[str]:
    """Reports of other rows than the current ones, by the hashes that they recorded."""
    stats, preflight = (read_json(data / "reports" / f"{name}.json") for name in ("stats", "preflight"))
    merged = hashes_of(data / "stage2" / split for split in SPLITS)
    prompts = hashes_of(dataset_folders(data, "prompts/*"))
    hashes = {
        "stats": (merged | prompts, stats.get("outputs", {}) | stats.get("inputs", {})),
        "preflight": (merged, preflight.get("inputs", {})),
    }
    return [
        f"reports/{report}.json: was made from other rows than those in {name}. Run the steps again, from merge on."
        for report, (current, recorded) in hashes.items()
        for name in current
        if recorded.get(name) != current[name]
    ]


def raise_if_any(faults: list[str]) -> None:
    """Raise a [`ReleaseError`] that names all faults."""
    # One fault fits on the line of the error; several are listed below it.
    if faults:
        raise ReleaseError("no release: " + "\n  ".join(["", *faults][len(faults) == 1 :]))
