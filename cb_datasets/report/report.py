"""The results for people: a table on the screen, the same as Markdown, pictures, and a page to look through."""

from collections.abc import Mapping
from pathlib import Path

from ..evaluation.compare import BASE
from ..evaluation.metric_table import METRIC_LABELS
from ..evaluation.results import model_names, write_results
from ..files import in_one_move, write_text
from ..markdown import markdown_table
from .attack_sections import Section, attack_sections
from .page import write_page
from .plots import PICTURES
from .plots.cosines import draw_diagnostics
from .plots.drawing import save_figure
from .plots.results import draw_results
from .plots.tradeoff import draw_tradeoff
from .tables import COHERENCE_HEADER, GATE_HEADER, coherence_rows, gate_rows, table_rows


def write_report(
    found: dict,
    folder: Path,
    diagnostics: dict | None = None,
    curves: Path | None = None,
    runs: Mapping[str, dict] | None = None,
    further: Mapping[str, dict] | None = None,
) -> None:
    """Write `results.json`, its pictures, `report.md` and `report.html`.

    Args:
        found (`dict`): The results of an evaluation.
        folder (`Path`): Where to write. Pictures of an earlier report go.
        diagnostics (`dict`, *optional*): Cosines that `trainers.diagnostics` wrote, to be drawn.
        curves (`Path`, *optional*): The trainer's picture of its run.
        runs (`Mapping[str, dict]`, *optional*): Results of several evaluations by name, to be compared.
        further (`Mapping[str, dict]`, *optional*): Results of attacks and of the live benchmark, by
            file, as [`~attack_sections.read_attack_results`] reads them.
    """
    curve = curves.read_bytes() if curves else None  # it may be one of those that go
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    draw_results(found, folder)
    if diagnostics is not None:
        draw_diagnostics(diagnostics, folder)
    if runs is not None:
        save_figure(draw_tradeoff(runs), folder / "tradeoff.png")
    if curve is not None:
        with in_one_move(folder / "curves.png") as copy:
            copy.write_bytes(curve)
    there = {name: title for name, title in PICTURES.items() if (folder / name).is_file()}
    sections = attack_sections(further or {}, found["settings"])
    write_text(folder / "report.md", _markdown(found, there, sections))
    write_page(found, there, folder, sections)
    write_results(found, folder / "results.json")


def _markdown(found: dict, pictures: Mapping[str, str], sections: list[Section]) -> str:
    models = model_names(found)
    lines = ["# Base against breaker", ""]
    lines += [f"- {key}: `{value}`" for key, value in found["settings"].items()]
    lines += ["", "Rates with 95 % Wilson intervals; greedy decoding, the same prompts for all.", ""]
    lines += _table(["", *models], table_rows(found, models))
    if "sampled" in found:
        draws = found["settings"]["samples"]
        lines += [f"Drawn at temperature 1, {draws} times each; intervals count prompts, not draws.", ""]
        lines += _table(["", *models], table_rows(found["sampled"], models))
    for section in sections:
        lines += [f"## {section.title}", "", *(part for text in section.paragraphs for part in (text, ""))]
        lines += _table(["", *section.models], section.rows) if section.rows else []
    lines += ["## Gates", "", *_table(GATE_HEADER, gate_rows(found))]
    lines += ["## What changed", "", "Prompts that came to count and that ceased to, against the base model.", ""]
    for name, changed in found["changed"].items():
        rows = [
            (METRIC_LABELS[key], part["gained"], part["lost"], f"{part['p']:.2g}") for key, part in changed.items()
        ]
        lines += _table([name, "gained", "lost", "McNemar p"], rows)
    lines += ["## Attack families", "", *_families(found, models)]
    lines += ["## Coherence", "", *_table(COHERENCE_HEADER, coherence_rows(found))]
    failures = ", ".join(f"{name} {count}" for name, count in found["errors"].items())
    lines += [f"Engine failures: {failures}.", ""]
    lines += [
        "The attacks are fixed texts: these figures say nothing about an attacker who adapts to the breaker.",
        "",
    ]
    for name, title in pictures.items():
        lines += [f"![{title}]({name})", "", f"{title}.", ""]
    return "\n".join(lines)


def _families(found: dict, models: list[str]) -> list[str]:
    header = ["family", "n", *(f"{name} {what}" for name in models for what in ("ASR", "correct"))]
    rows = []
    for family, part in found["slices"]["family"].items():
        if "asr" in part[BASE]:
            # A model may have failed on all prompts of a family.
            shown = [part[name].get(key) for name in models for key in ("asr", "correct_under_attack")]
            cells = ("-" if figure is None else f"{figure['value']:.1%}" for figure in shown)
            rows.append((family, part[BASE]["asr"]["n"], *cells))
    return _table(header, rows)


def _table(header: list[str], rows: list[tuple]) -> list[str]:
    """A table and the empty line after it."""
    return [markdown_table(header, rows), ""]
