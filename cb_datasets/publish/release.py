"""From a data folder to a release: the folder, whole and checked, or a reason why not.

data/demo/{stage2,prompts,reports}/ -> data/demo/release/ -> one commit of a private repository (`push.py`)
"""

from pathlib import Path

from ..datasheet import by_source
from ..files import ROWS_FILE, hashes_of, read_json
from .check import faults_of
from .dataset_card import Configs, dataset_card, plot_classes
from .folder import PLOT, REPORTS, SPLITS, whole_folder, write_manifest, write_release


# Reports of steps that can fail; `sources` cannot.
GATED_REPORTS = tuple(name for name in REPORTS if name != "sources")


class ReleaseError(ValueError):
    """Why there is no release. Nothing was sent."""


def make_release(data: Path, repo_id: str, output: Path, token: str | None = None) -> dict:
    """Write the folder of a release, exactly as the Hub will hold it; returns its manifest.

    Args:
        data (`Path`): The data folder of a recipe.
        repo_id (`str`): Where it will be loaded from, for the card.
        output (`Path`): The release folder. An older release there is replaced when the new one is whole.
        token (`str`, *optional*): The token in use, which must be in no file.

    Raises:
        ReleaseError: If a check failed, a source may not be passed on, or the Hub would not take the folder.
        FileNotFoundError: If a step of the pipeline has not been run.
    """
    _stop(_report_faults(data / "reports") or _stale_faults(data))
    with whole_folder(output) as folder:
        configs = write_release(data, folder)
        _stop(source_faults(configs, read_json(data / "reports" / "sources.json")))
        plot_classes(configs, folder / PLOT)
        dataset_card(repo_id, folder, configs).save(folder / "README.md")
        manifest = write_manifest(folder, configs)
        _stop(faults_of(folder, token))
    return manifest


def source_faults(configs: Configs, sheets: dict[str, dict]) -> list[str]:
    """Sources whose rows may not be passed on. AgentHarm's never may, whatever its data sheet says."""
    faults = []
    known = by_source(sheets)
    for name, splits in configs.items():
        for split, part in splits.items():
            for source, rows in sorted(part.counts["source"].items()):
                if source == "agentharm":
                    why = "AgentHarm is never published"
                elif source not in known:
                    why = "reports/sources.json does not know the source, so nobody knows its licence"
                elif known[source]["licence"] == "unknown":
                    why = "nobody said what its licence is; `ingest jsonl --licence NAME` does"
                elif not known[source]["redistributable"]:
                    why = f"its licence ({known[source]['licence']}) does not let us pass it on"
                else:
                    continue
                faults.append(f"{name}/{split}: {rows} rows of {source}: {why}. Make the data without it.")
    return faults


def _report_faults(reports: Path) -> list[str]:
    faults = []
    for name in GATED_REPORTS:
        failed = reports / f"{name}.failed.json"
        if failed.is_file():
            faults.append(f"{failed}: the last run of this check failed.")
        elif not read_json(reports / f"{name}.json")["passed"]:
            faults.append(f"{reports / name}.json: this check did not pass.")
    return faults


def _stale_faults(data: Path) -> list[str]:
    """Reports that are about other rows than these."""
    stats, preflight = (read_json(data / "reports" / f"{name}.json") for name in ("stats", "preflight"))
    merged = hashes_of(data / "stage2" / side for side in SPLITS)
    asked = hashes_of(file.parent for file in sorted(data.glob(f"prompts/*/{ROWS_FILE}")))
    told = {
        "stats": (merged | asked, stats.get("outputs", {}) | stats.get("inputs", {})),
        "preflight": (merged, preflight.get("inputs", {})),
    }
    return [
        f"reports/{report}.json: does not tell of the rows that are in {name} now. Run the steps again, from merge on."
        for report, (found, hashes) in told.items()
        for name in found
        if hashes.get(name) != found[name]
    ]


def _stop(faults: list[str]) -> None:
    if faults:
        raise ReleaseError("no release: " + "\n  ".join(["", *faults][len(faults) == 1 :]))
