"""Write the report of an evaluation: `results.json`, plots, `report.md` and `report.html`."""

from collections.abc import Mapping
from pathlib import Path

from ..counts import listed
from ..evaluation.compare import BASE
from ..evaluation.metric_table import METRIC_LABELS
from ..evaluation.results import model_names, write_results
from ..files import in_one_move, write_text
from ..markdown import cell, code, markdown_table
from .attack_sections import attack_sections
from .live_section import live_runs, live_summary
from .page import write_page
from .plots import PLOT_CAPTIONS
from .plots.cosines import draw_diagnostics
from .plots.drawing import save_figure
from .plots.results import draw_results
from .plots.tampering import TAMPERING_PLOT, draw_tampering
from .plots.tradeoff import draw_tradeoff
from .published_figures import published_sections
from .section import Section
from .slices import slice_rows, slice_tables
from .strength_section import strength_runs, strength_sections
from .tables import (
    COHERENCE_HEADER,
    FEW_GROUPS_EXPLAINED,
    GATE_HEADER,
    KINDS_EXPLAINED,
    all_rows,
    coherence_rows,
    few_groups_rows,
    gate_rows,
    kind_header,
    kind_rows,
    metric_table_rows,
)
from .tampering_section import TAMPERING, tampered_models


def write_report(
    results: dict,
    folder: Path,
    diagnostics: dict | None = None,
    curves: Path | None = None,
    runs: Mapping[str, dict] | None = None,
    attack_results: Mapping[str, dict] | None = None,
) -> dict:
    """Write `results.json`, plots, `report.md` and `report.html`.

    Args:
        results (`dict`): The results of an evaluation.
        folder (`Path`): Folder of the report. Plots of an earlier report are deleted.
        diagnostics (`dict`, *optional*): Cosines that `trainers.diagnostics` wrote, to plot.
        curves (`Path`, *optional*): The trainer's plot of its training curves.
        runs (`Mapping[str, dict]`, *optional*): Results of several evaluations by name, to plot against each other.
        attack_results (`Mapping[str, dict]`, *optional*): Results of attacks and of the live benchmark by file name,
            see [`~attack_sections.read_attack_results`].

    Returns:
        `dict`: The results as written: with what live runs of the same models measured, if there were any.
    """
    # Read first: `curves` may be a plot of the earlier report, which is deleted.
    curves_png = curves.read_bytes() if curves else None
    for name in PLOT_CAPTIONS:
        (folder / name).unlink(missing_ok=True)
    draw_results(results, folder)
    if diagnostics is not None:
        draw_diagnostics(diagnostics, folder)
    if runs is not None:
        save_figure(draw_tradeoff(runs), folder / "tradeoff.png")
    attack_results, settings = attack_results or {}, results["settings"]
    if (tampering := attack_results.get(TAMPERING)) and (models := tampered_models(tampering, settings)[0]):
        save_figure(draw_tampering(tampering, models), folder / TAMPERING_PLOT)
    if "strength" in results and "asr" in results[BASE]:
        save_figure(draw_tradeoff(strength_runs(results)), folder / "strength.png")
    if curves_png is not None:
        with in_one_move(folder / "curves.png") as copy:
            copy.write_bytes(curves_png)
    plots = {name: caption for name, caption in PLOT_CAPTIONS.items() if (folder / name).is_file()}
    sections = [
        *strength_sections(results),
        *attack_sections(attack_results, settings),
        *published_sections(results, attack_results),
    ]
    live = live_summary(attack_results, settings)
    results = {**{key: value for key, value in results.items() if key != "live"}, **({"live": live} if live else {})}
    write_text(folder / "report.md", _markdown(results, plots, sections))
    write_page(results, live_runs(attack_results, settings), plots, folder, sections)
    write_results(results, folder / "results.json")
    return results


def _markdown(results: dict, plots: Mapping[str, str], sections: list[Section]) -> str:
    models = model_names(results)
    lines = ["# Base against breaker", ""]
    lines += [f"- {cell(key)}: {code(value)}" for key, value in results["settings"].items()]
    lines += ["", "Rates with 95 % Wilson intervals; greedy decoding on the same prompts for all models.", ""]
    lines += _table(["", *models], all_rows(results, models))
    if "sampled" in results:
        samples = results["settings"]["samples"]
        lines += [
            f"Sampled at temperature 1, {samples} samples per prompt; intervals are over prompts, not samples.",
            "",
        ]
        lines += _table(["", *models], metric_table_rows(results["sampled"], models))
    # Right after the metrics of fixed attacks, which they qualify.
    for section in sections:
        lines += [f"## {section.title}", "", *(line for text in section.paragraphs for line in (text, ""))]
        lines += _table(["", *section.models], section.rows) if section.rows else []
        for title, header, rows in section.details:
            lines += [f"### {cell(title)}", "", *_table(header, rows)]
    lines += ["## Gates", "", *_table(GATE_HEADER, gate_rows(results))]
    if kinds := kind_rows(results):
        lines += ["## Kinds of attack", "", KINDS_EXPLAINED, "", *_table(kind_header(results), kinds)]
    if few := few_groups_rows(results, models):
        lines += ["## Metrics of few groups", "", FEW_GROUPS_EXPLAINED, "", *_table(["", *models], few)]
    lines += [
        "## Changes",
        "",
        "Prompts that count for the breaker only (gained) and for the base model only (lost), by metric.",
        "",
    ]
    for name, changed in results["changed"].items():
        rows = [
            (METRIC_LABELS[metric], change["gained"], change["lost"], f"{change['p']:.2g}")
            for metric, change in changed.items()
        ]
        lines += _table([name, "gained", "lost", "McNemar p"], rows)
    lines += ["## Slices", "", f"Each cell: {' / '.join(map(cell, models))}, and the number of prompts.", ""]
    for table in slice_tables(results):
        lines += _table(*slice_rows(table, models))
    lines += ["## Coherence", "", *_table(COHERENCE_HEADER, coherence_rows(results))]
    lines += [f"Prompts without a completion (too long): {cell(listed(results['errors']))}.", ""]
    lines += [
        "The attacks in the evaluation prompts are fixed texts: their metrics say nothing about adaptive attackers.",
        "",
    ]
    for name, caption in plots.items():
        lines += [f"![{caption}]({name})", "", f"{caption}.", ""]
    return "\n".join(lines)


def _table(header: list[str], rows: list[tuple]) -> list[str]:
    """The lines of a Markdown table, and an empty line after it."""
    return [markdown_table(header, rows), ""]
