"""The commands that measure: `evaluate` compares base and breakers, `report` writes its report again, `ability`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..checks.thresholds import EvaluationThresholds
from ..terminal import print_line
from .numbers import finite
from .options import (
    AdapterOption,
    BackendName,
    CurvesOption,
    DiagnosticsOption,
    Engine,
    ExtraAdaptersOption,
    SeedOption,
    takes,
)
from .output import dropped, stop_unless, table, tokenizer
from .paths import input_folder, output_path, result_file


if TYPE_CHECKING:
    from datasets import Dataset

    from ..generation.transformers_backend import TransformersBackend

app = typer.Typer()


@app.command()
@takes(Engine)
@takes(EvaluationThresholds)
def evaluate(
    adapter: AdapterOption,
    prompts: Annotated[
        Path, typer.Option(callback=input_folder, help="The prompts folder; every task in it is evaluated.")
    ],
    output: Annotated[Path, typer.Option(callback=output_path, help="Folder of the report.")],
    engine: Engine,
    limits: EvaluationThresholds,
    also: ExtraAdaptersOption = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Samples per prompt at temperature 1, in addition to greedy decoding.")
    ] = 0,
    scale: Annotated[
        list[float] | None,
        typer.Option(
            callback=finite,
            help="A strength of the breaker's adapter to measure too, e.g. 0.5; repeatable. 1 is as trained.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Require the gates of level `strict` too.")] = False,
    seed: SeedOption = 0,
    refusal_judge: Annotated[
        str | None, typer.Option(help="A model served at --server-url that judges refusals, in the place of patterns.")
    ] = None,
    diagnostics: DiagnosticsOption = None,
    curves: CurvesOption = None,
) -> None:
    """Complete held-out prompts with base and breakers and compare them. The report is written in any case."""
    from ..evaluation.evaluate import EvaluationOptions, evaluate_models
    from ..evaluation.gates import failed_gates
    from ..evaluation.results import named_adapters
    from ..report.attack_sections import read_attack_results
    from ..report.plots.cosines import check_evaluated, read_diagnostics
    from ..report.report import write_report

    adapters = named_adapters(adapter, also or [])
    rows = load_prompts(prompts, engine)
    scales = _checked_scales(scale, engine, adapter, rows) if scale else ()
    options = EvaluationOptions(engine.max_new_tokens, samples, seed, limits, scales)
    attack_results = read_attack_results(output)  # an unreadable file is an error before a model loads
    measured = read_diagnostics(diagnostics) if diagnostics else None
    judge = engine.serve(refusal_judge, refusal_judge) if refusal_judge else None
    loaded = engine.load_all(adapters)
    revisions = {name: loaded[name].revision for name in adapters}
    if diagnostics and measured:
        check_evaluated(diagnostics, measured, revisions)
    results = evaluate_models(rows, loaded, options, engine.work_dir, judge)
    _print_tables(write_report(results, output, measured, curves, attack_results=attack_results), attack_results)
    print_line(f"evaluate: {len(rows)} prompts; {output / 'report.html'}, {output / 'report.md'}")
    failed = failed_gates(results["gates"], strict)
    stop_unless(not failed, f"evaluate: a gate failed ({', '.join(failed)}); see {output / 'report.md'}")


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            callback=result_file,
            help="results.json of the evaluation; more of them, checkpoints in order, are plotted too.",
        ),
    ],
    output: Annotated[Path, typer.Option(callback=output_path, help="Folder of the report.")],
    diagnostics: DiagnosticsOption = None,
    curves: CurvesOption = None,
) -> None:
    """Write the report of an evaluation again, with more plots; no model runs.

    Results of `ability`, `attack`, `agentdojo` and `merge-adapter` beside it (ability.json, adaptive.json,
    agentdojo/agentdojo.json, merged_*.json) are included.
    """
    from ..evaluation.results import read_results, run_names
    from ..report.attack_sections import read_attack_results
    from ..report.plots.cosines import check_evaluated, read_diagnostics
    from ..report.report import write_report

    runs = dict(zip(run_names(results), map(read_results, results), strict=True))
    [first, *others] = runs.values()
    if "prompts" not in first:
        raise ValueError(f"{results[0]}: published results, without the prompts that a report shows.")
    cosines = read_diagnostics(diagnostics) if diagnostics else None
    if diagnostics and cosines:
        check_evaluated(diagnostics, cosines, first["settings"]["adapters"])
    attack_results = read_attack_results(results[0].parent)
    written = write_report(first, output, cosines, curves, runs if others else None, attack_results)
    _print_tables(written, attack_results)
    print_line(f"report: {len(first['prompts'])} prompts; {output / 'report.html'}, {output / 'report.md'}")


@app.command()
@takes(Engine)
def ability(
    adapter: AdapterOption,
    data: Annotated[
        list[Path],
        typer.Option(
            callback=input_folder, help="Held-out samples (stage2/eval) or traces (traces/ultrachat); repeatable."
        ),
    ],
    output: Annotated[Path, typer.Option(callback=output_path, help="Folder of the report; ability.json is written.")],
    engine: Engine,
    also: ExtraAdaptersOption = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Maximum number of held-out rows of each slice.")] = 200,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A task of lm-eval: mmlu, ifeval, or a YAML file; repeatable."),
    ] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of questions of each task of lm-eval, for trials.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """General ability of breakers against their base model, without a judge.

    Perplexity, agreement and KL divergence on held-out turns without an attack; multiple choice by log-likelihood; and
    tasks of lm-eval. A killed run loses at most 100 turns, or one model's questions of one task.
    """
    from ..evaluation.ability.ability import ABILITY_FILE, ability_table_rows, measure_ability
    from ..evaluation.ability.held_out import held_out_turns
    from ..evaluation.ability.lm_eval_tasks import load_tasks
    from ..evaluation.results import named_adapters
    from ..files import write_json
    from ..generation.backend import context_length

    if engine.backend != BackendName.TRANSFORMERS:
        raise ValueError("KL needs the logits of all tokens, which only --backend transformers has.")
    adapters = named_adapters(adapter, also or [])
    # First: what is missing is an error before the weights are loaded.
    turns, drops = held_out_turns(
        data, tokenizer(engine.tokenizer or engine.model), context_length(engine.model), max_rows, seed
    )
    tasks = load_tasks(lm_eval or [])
    models = cast("dict[str, TransformersBackend]", engine.load_all(adapters))
    result = measure_ability(turns, drops, models, engine.batch_size, seed, engine.work_dir, tasks, lm_eval_limit)
    write_json(output / ABILITY_FILE, result)
    table(["", *models], ability_table_rows(result, list(models)))
    for warning in result["warnings"]:
        print_line(f"  warning: {warning}")
    print_line(f"ability: {len(turns)} held-out turns, {dropped(drops)} -> {output / ABILITY_FILE}")


def load_prompts(folder: Path, engine: Engine) -> "Dataset":
    """The evaluation prompts of all tasks in a folder, made for the engine's model."""
    from datasets import concatenate_datasets

    rows = concatenate_datasets([load_task(each) for each in prompt_folders_in(folder)])
    if len(rows) == 0:
        raise ValueError(f"{folder}: no prompt in any task. Run `cb-datasets generate-eval` again.")
    check_prompts_of(folder, rows, engine)
    return rows


def load_task(folder: Path) -> "Dataset":
    """The evaluation prompts of one task, each checked for what every command reads of it.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are of another version, or one has a fault; the message names the folder and the row.
    """
    from ..files import load_rows
    from ..sample import PROMPT_FEATURES
    from ..text_faults import checked, evaluation_faults

    rows = load_rows(folder, PROMPT_FEATURES)
    for _ in checked(rows, folder, evaluation_faults, "`cb-datasets generate-eval` makes it again."):
        pass
    return rows


def prompt_folders_in(folder: Path) -> list[Path]:
    """The folders of evaluation prompts in a folder, or the folder itself if it is one; hidden ones are left out.

    One without rows is left to their reader, whose error says what is missing.

    Raises:
        FileNotFoundError: If there is no such folder, or none in it; the message names it.
    """
    from ..files import holds_rows

    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: name the one with evaluation prompts.")
    if holds_rows(folder):
        return [folder]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not inside:
        raise FileNotFoundError(f"No evaluation prompts in {folder}: run the step that makes them.")
    return inside


def check_prompts_of(folder: Path, rows: "Dataset", engine: Engine) -> None:
    """Raise if prompts were made for another model than the engine's; before that is loaded."""
    from ..template_probe import check_prompts

    if any(origin["prompt_format"] for origin in rows["provenance"]):
        check_prompts(rows, tokenizer(engine.tokenizer or engine.model), folder)


def _checked_scales(scales: list[float], engine: Engine, adapter: str, rows: "Dataset") -> tuple[float, ...]:
    """The scales to measure. Whatever cannot be scaled is an error before a model loads."""
    from ..evaluation.strength import check_halves, check_scales
    from ..generation.adapter_scale import check_scalable
    from ..generation.backend import adapter_revision

    checked = check_scales(scales)
    if engine.backend == BackendName.SERVER:
        raise ValueError("--scale: a served adapter has one strength. Use --backend transformers or vllm.")
    adapter_revision(adapter)  # only for its check of the path
    check_scalable(adapter)
    check_halves(rows["group"])
    return tuple(checked)


def _print_tables(results: dict, attack_results: dict[str, dict]) -> None:
    """Print the metrics of all models, live runs included, published figures beside them, and the gates."""
    from ..evaluation.results import model_names
    from ..report.published_figures import published_sections
    from ..report.strength_section import recommendation, strength_rows
    from ..report.tables import GATE_HEADER, all_rows, gate_rows, metric_table_rows

    models = model_names(results)
    table(["", *models], all_rows(results, models))
    if "sampled" in results:
        samples = results["settings"]["samples"]
        table([f"{samples} draws, T = 1", *models], metric_table_rows(results["sampled"], models))
    if "strength" in results:
        # Intervals of many scales do not fit a terminal; the report has them.
        short = strength_rows(results["strength"], lambda rate: f"{rate['value']:.1%}" if rate else "-")
        table(*short)
        print_line(recommendation(results["strength"]))
    for section in published_sections(results, attack_results):
        table([section.title, *section.models], section.rows)
    table(GATE_HEADER, gate_rows(results))
