"""Study of the ladder of attacks over several seeds of the training, behind docs/robustness.md.

    cb-datasets attack --adapter seed-1/adapter --output data/robustness/seed-1 ...      once per seed of the training
    python benchmarks/robustness.py data/robustness --json benchmarks/robustness.json --page docs/robustness.md
    python benchmarks/robustness.py --json benchmarks/robustness.json --page docs/robustness.md        the page again

    cb-datasets attack --tamper --data seed-42/stage2 --output data/tampering ...          fine-tuned breakers, one run
    python benchmarks/robustness.py --json benchmarks/robustness.json --page docs/robustness.md \\
        --tampering data/tampering/tampering.json

The study is a folder with an `adaptive.json` per seed, anywhere below it; the name of its folder is the name of the
run. All runs must have the same models and budgets: the page states each budget once. For every rate it gives the mean
and the worst run, which is the highest for an ASR and the lowest for right calls.
"""

import argparse
from pathlib import Path
from typing import Any


TEMPLATE = Path(__file__).with_suffix(".md.jinja")
# Figures of the tampering, one run of `cb-datasets attack --tamper`.
TAMPERING = Path(__file__).with_name("tampering.json")

# Fields of the black box's draws that the page has a table of.
SLICES = ("place", "repetition", "turn", "family")


def gathered(study: Path) -> dict[str, Any]:
    """Results of all runs by name, without prompts.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If two runs differ in their models, their prompts or the budget of a rung.
    """
    from cb_datasets.attacks.adaptive_results import ADAPTIVE_FILE
    from cb_datasets.files import read_json

    paths = sorted(study.rglob(ADAPTIVE_FILE))
    if not paths:
        raise FileNotFoundError(f"{study}: there is no {ADAPTIVE_FILE} in it. Run `cb-datasets attack` for each seed.")
    runs = {str(path.parent.relative_to(study)): _without_prompts(read_json(path)) for path in paths}
    (first, expected), *others = ((name, _conditions(run)) for name, run in runs.items())
    for name, conditions in others:
        if differences := sorted(key for key in expected if conditions[key] != expected[key]):
            raise ValueError(
                f"{study / name / ADAPTIVE_FILE}: another {', '.join(differences)} than {study / first}. Runs of one "
                "study have the same models, prompts and budgets: repeat one of them."
            )
    return runs


def _without_prompts(run: dict) -> dict:
    rungs = {
        rung: {key: value for key, value in each.items() if key in ("budget", "models", "pairs")}
        for rung, each in run["rungs"].items()
    }
    return {**run, "rungs": rungs}


def _conditions(run: dict) -> dict[str, Any]:
    return {
        "models": list(run["settings"]["models"]),
        "template_hash": run["settings"]["template_hash"],
        "task": run["task"],
        "available": run["available"],
        "budgets": {rung: each["budget"] for rung, each in run["rungs"].items()},
    }


def mean_and_worst(values: list[float], higher_is_worse: bool = True) -> str:
    """`40.0 (55.0)`: mean and worst of the runs' rates, in per cent."""
    worst = max(values) if higher_is_worse else min(values)
    return f"{100 * sum(values) / len(values):.1f} ({100 * worst:.1f})"


def summarised(rates: list[dict | None], higher_is_worse: bool = True) -> str:
    """`40.0 (55.0) n=20`: mean and worst run, and the n of a run; `-` where no run has the rate."""
    known = [rate for rate in rates if rate is not None]
    if not known:
        return "-"
    least, most = min(rate["n"] for rate in known), max(rate["n"] for rate in known)
    n = str(most) if least == most else f"{least}-{most}"
    return f"{mean_and_worst([rate['value'] for rate in known], higher_is_worse)} n={n}"


def ladder_rows(runs: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows `(rung with its budget, metric, cell of each model, ...)`; the last cell is the ratio to the base.

    The ratio is the mean ASR of the first breaker divided by that of the base.
    """
    from cb_datasets.attacks.adaptive_results import RUNGS, rung_label, rung_rates

    first = next(iter(runs.values()))
    rows = []
    for rung in (rung for rung in RUNGS if rung in first["rungs"]):
        for rate, label in rung_rates(rung).items():
            found = {
                name: [(run["rungs"][rung]["models"][name] or {}).get(rate) for run in runs.values()]
                for name in first["settings"]["models"]
            }
            cells = [summarised(each, label.endswith("↓")) for each in found.values()]
            name = rung_label(rung, first["rungs"][rung]["budget"]) if rate == "asr" else ""
            rows.append((name, label, *cells, _ratio(list(found.values()))))
    return rows


def _ratio(found: list[list[dict | None]]) -> str:
    base, *breakers = ([rate["value"] for rate in each if rate is not None] for each in found)
    if not breakers or not breakers[0] or not sum(base):
        return "-"
    return f"{(sum(breakers[0]) / len(breakers[0])) / (sum(base) / len(base)):.2f}"


def curve_rows(runs: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows `(N, cell of each model, ...)`: expected ASR of the black box's best of N, mean and worst run."""
    from cb_datasets.attacks.adaptive_results import curve_points

    curves = _black_box(runs, "curve")
    length = min(len(curve) for each in curves.values() for curve in each)
    return [
        (str(n), *(mean_and_worst([curve[n - 1] for curve in each]) for each in curves.values()))
        for n in curve_points(length)
    ]


def slice_rows(runs: dict[str, Any], field: str) -> list[tuple[str, ...]]:
    """Rows `(value, ASR and right calls of each model, ...)` of the black box's draws, mean over the runs."""
    slices = _black_box(runs, "slices")
    values = sorted({value for each in slices.values() for one in each for value in one[field]})
    return [
        (value.replace("_", " "), *(_slice_cell(each, field, value) for each in slices.values())) for value in values
    ]


def _slice_cell(slices: list[dict], field: str, value: str) -> str:
    found = [one[field][value] for one in slices if value in one[field]]
    if not found:
        return "-"
    rates = ([one[rate]["value"] for one in found] for rate in ("draw_asr", "draw_correct"))
    return " · ".join(f"{100 * sum(each) / len(each):.1f}" for each in rates)


def _black_box(runs: dict[str, Any], key: str) -> dict[str, list[Any]]:
    """A field of the black box's metrics by model, one of each run."""
    models = next(iter(runs.values()))["settings"]["models"]
    return {name: [run["rungs"]["black_box"]["models"][name][key] for run in runs.values()] for name in models}


def transfer_rows(runs: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows `(source, ASR on each target, ...)`."""
    models = list(next(iter(runs.values()))["settings"]["models"])
    return [
        (
            source,
            *(
                ""
                if source == target
                else summarised([run["rungs"]["transfer"]["pairs"][source][target] for run in runs.values()])
                for target in models
            ),
        )
        for source in models
    ]


def markdown(header: list[str], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def tables(runs: dict[str, Any]) -> dict[str, str]:
    """The page's tables by name; those of rungs that were not run are missing."""
    first = next(iter(runs.values()))
    models = list(first["settings"]["models"])
    found = {"ladder": markdown(["rung and budget", "metric", *models, "breaker / base"], ladder_rows(runs))}
    if "black_box" in first["rungs"]:
        found["curve"] = markdown(["N", *models], curve_rows(runs))
        found |= {field: markdown([field, *models], slice_rows(runs, field)) for field in SLICES}
    if "transfer" in first["rungs"]:
        found["transfer"] = markdown(["found on, tried on", *models], transfer_rows(runs))
    return found


def tampering_parts(results: dict[str, Any]) -> dict[str, Any]:
    """The budget of the tampering, and what was trained on, summary and table for each kind of rows."""
    from cb_datasets.attacks.tampering_results import KINDS, steps_of, tampering_rows, tampering_summary
    from cb_datasets.report.tampering_section import budget_in_words

    models = list(results["settings"]["models"])
    header = ["steps", *map(str, steps_of(results))]
    parts = [
        {
            "kind": kind,
            "budget": budget_in_words(results["settings"], kind),
            "summary": tampering_summary(results, kind, models),
            "table": markdown(header, list(tampering_rows(results, kind, models))),
        }
        for kind in KINDS
    ]
    return {"budget": results["settings"]["budget"], "parts": parts}


def write_page(runs: dict[str, Any], page: Path) -> None:
    """The page from its template; without runs it has the explanations only."""
    from jinja2 import Environment, StrictUndefined

    from cb_datasets.files import read_json, write_text

    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    first = next(iter(runs.values()), None)
    tampering = tampering_parts(read_json(TAMPERING)) if TAMPERING.is_file() else None
    write_text(page, template.render(runs=runs, first=first, tables=tables(runs) if runs else {}, tampering=tampering))


def main() -> None:
    from cb_datasets.files import read_json, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", help="folder with an adaptive.json per seed of the training")
    parser.add_argument("--json", type=Path, help="file of the figures: written from the study, or read without one")
    parser.add_argument("--tampering", type=Path, help=f"a tampering.json, kept as {TAMPERING.name} for the page")
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    arguments = parser.parse_args()
    if arguments.study is None and arguments.json is None:
        parser.error("name a study, or the --json FILE of an earlier one.")
    runs = read_json(arguments.json) if arguments.study is None else gathered(arguments.study)
    if arguments.study and arguments.json:
        write_json(arguments.json, runs)
    if arguments.tampering:
        write_json(TAMPERING, read_json(arguments.tampering))
    print(tables(runs)["ladder"])
    if arguments.page:
        write_page(runs, arguments.page)


if __name__ == "__main__":
    main()
