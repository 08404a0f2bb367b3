"""The commands that measure: `evaluate` compares base and breakers, `report` writes its report again."""

from pathlib import Path
from typing import Annotated

import typer

from ..checks.thresholds import EvaluationThresholds
from ..terminal import print_line
from .options import CurvesOption, DiagnosticsOption, Engine, ExtraAdaptersOption, SeedOption, takes
from .output import stop_unless, table


app = typer.Typer()


@app.command()
@takes(Engine)
@takes(EvaluationThresholds)
def evaluate(
    adapter: Annotated[str, typer.Option(help="Folder of the breaker's adapter.")],
    prompts: Annotated[Path, typer.Option(help="The prompts folder; every task in it is evaluated.")],
    output: Annotated[Path, typer.Option(help="Folder of the report.")],
    engine: Engine,
    limits: EvaluationThresholds,
    also: ExtraAdaptersOption = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Samples per prompt at temperature 1, in addition to greedy decoding.")
    ] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Require the gates of level `strict` too.")] = False,
    seed: SeedOption = 0,
    refusal_judge: Annotated[
        str | None, typer.Option(help="A model served at --server-url that judges refusals, in the place of patterns.")
    ] = None,
    diagnostics: DiagnosticsOption = None,
    curves: CurvesOption = None,
) -> None:
    """Complete held-out prompts with base and breakers and compare them. The report is written in any case."""
    from datasets import concatenate_datasets

    from ..evaluation.evaluate import EvaluationOptions, evaluate_models
    from ..evaluation.gates import failed_gates
    from ..evaluation.results import named_adapters
    from ..files import folders_in, load_rows
    from ..report.attack_sections import read_attack_results
    from ..report.plots.cosines import read_diagnostics
    from ..report.report import write_report
    from ..sample import PROMPT_FEATURES

    adapters = named_adapters(adapter, also or [])
    folders = folders_in(prompts, "evaluation prompts")
    rows = concatenate_datasets([load_rows(folder, PROMPT_FEATURES) for folder in folders])
    if len(rows) == 0:
        raise ValueError(f"{prompts}: no prompt in any task. Run `cb-datasets generate-eval` again.")
    options = EvaluationOptions(engine.max_new_tokens, samples, seed, limits)
    attack_results = read_attack_results(output)  # an unreadable file is an error before a model loads
    judge = engine.serve(refusal_judge, refusal_judge) if refusal_judge else None
    loaded = engine.load_all(adapters)
    revisions = {name: loaded[name].revision for name in adapters}
    cosines = read_diagnostics(diagnostics, revisions) if diagnostics else None
    results = evaluate_models(rows, loaded, options, engine.work_dir, judge)
    _print_tables(write_report(results, output, cosines, curves, attack_results=attack_results))
    print_line(f"evaluate: {len(rows)} prompts; {output / 'report.html'}, {output / 'report.md'}")
    failed = failed_gates(results["gates"], strict)
    stop_unless(not failed, f"evaluate: a gate failed ({', '.join(failed)}); see {output / 'report.md'}")


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="results.json of the evaluation; more of them, checkpoints in order, are plotted too."),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the report.")],
    diagnostics: DiagnosticsOption = None,
    curves: CurvesOption = None,
) -> None:
    """Write the report of an evaluation again, with more plots; no model runs.

    Results of `attack` and `agentdojo` beside it, adaptive.json and agentdojo/agentdojo.json, are included.
    """
    from ..evaluation.results import read_results, run_names
    from ..report.attack_sections import read_attack_results
    from ..report.plots.cosines import read_diagnostics
    from ..report.report import write_report

    runs = dict(zip(run_names(results), map(read_results, results), strict=True))
    [first, *others] = runs.values()
    if "prompts" not in first:
        raise ValueError(f"{results[0]}: published results, without the prompts that a report shows.")
    cosines = read_diagnostics(diagnostics, first["settings"]["adapters"]) if diagnostics else None
    attack_results = read_attack_results(results[0].parent)
    _print_tables(write_report(first, output, cosines, curves, runs if others else None, attack_results))
    print_line(f"report: {len(first['prompts'])} prompts; {output / 'report.html'}, {output / 'report.md'}")


def _print_tables(results: dict) -> None:
    """Print the metrics of all models, live runs included, and the gates."""
    from ..evaluation.results import model_names
    from ..report.tables import GATE_HEADER, all_rows, gate_rows, metric_table_rows

    models = model_names(results)
    table(["", *models], all_rows(results, models))
    if "sampled" in results:
        samples = results["settings"]["samples"]
        table([f"{samples} draws, T = 1", *models], metric_table_rows(results["sampled"], models))
    table(GATE_HEADER, gate_rows(results))
