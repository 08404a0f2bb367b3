"""The commands that measure: `evaluate` asks base and breakers the same prompts, `report` writes its report again."""

from pathlib import Path
from typing import Annotated

import typer

from ..checks.thresholds import EvaluationThresholds
from .options import CurvesOption, DiagnosticsOption, Engine, ExtraAdaptersOption, SeedOption, takes
from .output import stop_unless, table


app = typer.Typer()


@app.command()
@takes(Engine)
@takes(EvaluationThresholds)
def evaluate(
    adapter: Annotated[str, typer.Option(help="Folder of the breaker's adapter.")],
    prompts: Annotated[Path, typer.Option(help="The prompts folder; every task in it is asked.")],
    output: Annotated[Path, typer.Option(help="Folder of the report.")],
    engine: Engine,
    limits: EvaluationThresholds,
    also: ExtraAdaptersOption = None,
    samples: Annotated[int, typer.Option(min=0, help="Draws of each prompt at temperature 1, besides.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="The gates of level `strict` must pass too.")] = False,
    seed: SeedOption = 0,
    diagnostics: DiagnosticsOption = None,
    curves: CurvesOption = None,
) -> None:
    """Ask base and breakers the same held-out prompts, greedily, and compare. The report is written in any case."""
    from datasets import concatenate_datasets

    from ..evaluation.evaluate import EvaluationOptions, evaluate_models
    from ..evaluation.gates import failed_gates
    from ..evaluation.results import model_names, named_adapters
    from ..files import load_rows
    from ..report.attack_sections import read_attack_results
    from ..report.plots.cosines import read_diagnostics
    from ..report.report import write_report
    from ..report.tables import GATE_HEADER, gate_rows, table_rows
    from ..sample import PROMPT_FEATURES

    adapters = named_adapters(adapter, also or [])
    rows = concatenate_datasets([load_rows(folder, PROMPT_FEATURES) for folder in sorted(prompts.iterdir())])
    options = EvaluationOptions(engine.max_new_tokens, samples, seed, limits)
    further = read_attack_results(output)  # a file that cannot be read is told before a model loads
    loaded = engine.load_all(adapters)
    revisions = {name: loaded[name].revision for name in adapters}
    cosines = read_diagnostics(diagnostics, revisions) if diagnostics else None
    found = evaluate_models(rows, loaded, options, engine.work_dir)
    write_report(found, output, cosines, curves, further=further)
    models = model_names(found)
    table(["", *models], table_rows(found, models))
    if samples:
        table([f"{samples} draws, T = 1", *models], table_rows(found["sampled"], models))
    table(GATE_HEADER, gate_rows(found))
    print(f"evaluate: {len(rows)} prompts; {output / 'report.html'}, {output / 'report.md'}")
    failed = failed_gates(found["gates"], strict)
    stop_unless(not failed, f"evaluate: a gate failed ({', '.join(failed)}); see {output / 'report.md'}")


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="results.json of the evaluation; further ones, checkpoints in their order, are drawn too."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the report.")],
    diagnostics: DiagnosticsOption = None,
    curves: CurvesOption = None,
) -> None:
    """Write the report of an evaluation again, with more pictures; no model runs.

    What `attack` and `agentdojo` wrote beside the results, adaptive.json and agentdojo/agentdojo.json, is shown too.
    """
    from ..evaluation.results import read_results, run_names
    from ..report.attack_sections import read_attack_results
    from ..report.plots.cosines import read_diagnostics
    from ..report.report import write_report

    runs = dict(zip(run_names(results), map(read_results, results), strict=True))
    [found, *others] = runs.values()
    if "prompts" not in found:
        raise ValueError(f"{results[0]}: published results, without the prompts that a report shows.")
    cosines = read_diagnostics(diagnostics, found["settings"]["adapters"]) if diagnostics else None
    further = read_attack_results(results[0].parent)
    write_report(found, output, cosines, curves, runs if others else None, further)
    print(f"report: {len(found['prompts'])} prompts; {output / 'report.html'}, {output / 'report.md'}")
