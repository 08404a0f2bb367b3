"""The commands that test a breaker: `attack` (the ladder of attacks), `agentdojo` (the live benchmark)."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..counts import listed
from ..terminal import print_line
from .evaluate import check_prompts_of, load_task
from .options import (
    AdapterOption,
    BackendName,
    Engine,
    ExtraAdaptersOption,
    ModelOption,
    SeedOption,
    TokenizerOption,
    takes,
)
from .output import table
from .paths import input_folder, model_path, output_path


if TYPE_CHECKING:
    from datasets import Dataset

    from ..generation.transformers_backend import TransformersBackend

app = typer.Typer()


class EngineName(StrEnum):
    VLLM = "vllm"
    TRANSFORMERS = "transformers"


@app.command()
@takes(Engine)
def attack(
    adapter: AdapterOption,
    prompts: Annotated[Path, typer.Option(callback=input_folder, help="The prompts folder.")],
    output: Annotated[
        Path,
        typer.Option(callback=output_path, help="Folder of the report; adaptive.json or tampering.json is written."),
    ],
    engine: Engine,
    also: ExtraAdaptersOption = None,
    task: Annotated[str, typer.Option(help="The task in the prompts folder to attack.")] = "tool_flip",
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="RUNG.LIMIT=VALUE", help="E.g. suffix.steps=100, universal.prompts=0; repeatable."),
    ] = None,
    tamper: Annotated[
        bool,
        typer.Option("--tamper", help="Instead of the ladder: fine-tune the models on --data, and measure them."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            callback=input_folder, help="Folder of the merged data (stage2), whose rows of train/ --tamper trains on."
        ),
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """The ladder of attacks against base and breakers, with the same budget for each.

    Fixed injections, random compositions without any knowledge of the model (black_box), token searches by greedy
    coordinate gradient (arXiv 2307.15043; suffix, prefix_suffix, universal, transfer), free vectors (embedding), and
    prefilled calls. Success is judged by the model's greedy completion.

    With --tamper, the attacker trains the weights instead, on benign and on harmful rows (tampering.json): limits are
    tamper.steps, rows, batch_size, learning_rate, lora_rank, prompts.
    """
    from ..attacks.attackable import select_attackable
    from ..evaluation.results import named_adapters

    if engine.backend != BackendName.TRANSFORMERS:
        raise ValueError("The attacks need gradients, which only --backend transformers has.")
    if tamper and data is None:
        raise typer.BadParameter("--tamper needs rows to train on: --data, the folder of the merged data (stage2).")
    if data is not None and not tamper:
        raise typer.BadParameter("--data is read with --tamper only.")
    rows = load_task(prompts / task)
    check_prompts_of(prompts / task, rows, engine)
    attackable, left_out = select_attackable(rows)
    if len(attackable) == 0:
        raise ValueError(f"{prompts / task}: no prompt can be attacked ({listed(left_out)}). Name another --task.")
    adapters = named_adapters(adapter, also or [])
    if data is not None:
        _tamper(attackable, task, prompts, data, budget or [], seed, engine, adapters, output)
    else:
        _climb_ladder(attackable, left_out, task, budget or [], seed, engine, adapters, output)


def _climb_ladder(
    attackable: "Dataset",
    left_out: dict[str, int],
    task: str,
    limits: list[str],
    seed: int,
    engine: Engine,
    adapters: dict[str, str],
    output: Path,
) -> None:
    """Run the ladder, write `adaptive.json` and print its table."""
    from ..attacks.adaptive_results import ADAPTIVE_FILE, adaptive_table_rows
    from ..attacks.ladder import Budgets, run_ladder
    from ..files import write_json

    budgets = Budgets.of_text(limits, engine.max_new_tokens, seed)
    budgets.check(len(attackable))
    models = cast("dict[str, TransformersBackend]", engine.load_all(adapters))
    result = run_ladder(attackable, models, budgets, engine.batch_size, engine.work_dir)
    write_json(output / ADAPTIVE_FILE, {**result, "task": task, "available": len(attackable), "left_out": left_out})
    table(["", *models], list(adaptive_table_rows(result, list(models))))
    print_line(f"attack: {len(attackable)} prompts of {task} -> {output / ADAPTIVE_FILE}")


# Tasks beside the attacked one, where the prompts have them: what a breaker must keep.
_KEPT_TASKS = ("capability", "refusal", "chat")


def _tamper(
    attackable: "Dataset",
    task: str,
    prompts: Path,
    data: Path,
    limits: list[str],
    seed: int,
    engine: Engine,
    adapters: dict[str, str],
    output: Path,
) -> None:
    """Fine-tune the models, write `tampering.json` and its plot, and print its tables."""
    from datasets import concatenate_datasets

    from ..attacks.budget_limits import with_limits
    from ..attacks.search_budget import TamperBudget
    from ..attacks.tamper_rows import select_tamper_rows
    from ..attacks.tampering import run_tampering
    from ..attacks.tampering_results import (
        KINDS,
        TAMPERING_FILE,
        asr_metric,
        steps_of,
        tampering_rows,
        tampering_summary,
    )
    from ..files import hashes_of, load_rows, write_json
    from ..report.plots.drawing import save_figure
    from ..report.plots.tampering import TAMPERING_PLOT, draw_tampering
    from ..sample import SAMPLE_FEATURES
    from ..splits import choose
    from ..text_faults import check_rows

    if engine.load_in_8bit:
        raise ValueError("--tamper trains and merges adapters, which 8-bit weights distort: omit --load-in-8bit.")
    asr_metric(task)  # before anything is trained
    defaults = {"tamper": TamperBudget()}
    budget = with_limits(defaults, limits, engine.max_new_tokens, seed, may_be_zero=False)["tamper"]
    samples = load_rows(data / "train", SAMPLE_FEATURES)
    check_rows(samples, data / "train")
    if len(samples) == 0:
        raise ValueError(f"{data / 'train'}: no rows to train on. Name the folder of the merged data (stage2).")
    rows = select_tamper_rows(samples)
    kept = [load_task(prompts / other) for other in _KEPT_TASKS if (prompts / other).is_dir()]
    chosen = [choose(each, budget.prompts, seed) for each in (attackable, *kept)]
    models = cast("dict[str, TransformersBackend]", engine.load_all(adapters))
    result = run_tampering(concatenate_datasets(chosen), models, rows, budget, engine.batch_size, engine.work_dir)
    result |= {"task": task, "data": hashes_of([data / "train"])}
    write_json(output / TAMPERING_FILE, result)
    save_figure(draw_tampering(result, list(models)), output / TAMPERING_PLOT)
    for kind in KINDS:
        header = [f"{kind} rows: steps", *map(str, steps_of(result))]
        table(header, list(tampering_rows(result, kind, list(models))))
        for line in tampering_summary(result, kind, list(models)):
            print_line(f"  {line}")
    print_line(f"attack: {sum(map(len, chosen))} prompts -> {output / TAMPERING_FILE}, {output / TAMPERING_PLOT}")


@app.command()
def agentdojo(
    model: ModelOption,
    output: Annotated[
        Path, typer.Option(callback=output_path, help="Folder of the runs; runs found in it are not repeated.")
    ],
    adapter: Annotated[
        str | None,
        typer.Option(callback=model_path, help="Folder of the breaker's adapter; the base model alone if left out."),
    ] = None,
    also: ExtraAdaptersOption = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="banking, slack, travel, workspace, or one of --suite-module; repeatable, patterns too."),
    ] = None,
    suite_module: Annotated[
        str | None, typer.Option(help="Module that registers suites of your own, e.g. demo.office.")
    ] = None,
    attack: Annotated[
        str, typer.Option(help="Name of AgentDojo's attack; black_box for random compositions of wordings.")
    ] = "important_instructions",
    draws: Annotated[int, typer.Option(min=1, help="Compositions for each pair of tasks (black_box).")] = 8,
    user_task: Annotated[list[str] | None, typer.Option(help="E.g. user_task_0; repeatable; all by default.")] = (
        None
    ),
    injection_task: Annotated[
        list[str] | None, typer.Option(help="E.g. injection_task_0; repeatable; all by default.")
    ] = None,
    defense: Annotated[
        list[str] | None, typer.Option(help="A defence of AgentDojo, beside which breakers are shown; repeatable.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of runs in flight.")] = 16,
    max_steps: Annotated[int, typer.Option(min=1, help="Maximum number of turns with calls in a run.")] = 15,
    backend: Annotated[
        EngineName | None, typer.Option(help="By default vllm where it is installed, else transformers.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share the model (vllm).")] = 1,
    max_length: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens of a run, if the model takes them.")
    ] = 32768,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of a turn.")] = 512,
    tokenizer: TokenizerOption = None,
) -> None:
    """AgentDojo's own benchmark against base and breaker, which are served while it runs.

    Every run is saved when it ends, and all runs in the folder are read back as traces. A run that the context limit
    or the server cut off is reported as a failure, and counts in no rate.
    """
    from ..agentdojo.live_runs import defended_name
    from ..agentdojo.results import (
        AGENTDOJO_FILE,
        AGENTDOJO_METRICS,
        SETTINGS_FILE,
        BenchmarkSelection,
        read_agentdojo_runs,
    )
    from ..agentdojo.run_benchmark import ServedModels, run_agentdojo
    from ..evaluation.results import named_adapters
    from ..files import read_json, write_json
    from ..report.tables import metric_table_rows

    selection = BenchmarkSelection(
        suites=tuple(suite or ()),
        attack=attack,
        draws=draws,
        user_tasks=tuple(user_task or ()),
        injection_tasks=tuple(injection_task or ()),
        suite_module=suite_module,
        max_steps=max_steps,
        concurrency=concurrency,
        defenses=tuple(defense or ()),
    )
    served = ServedModels(
        model, named_adapters(adapter, also or []), backend, max_length, max_new_tokens, tensor_parallel, tokenizer
    )
    run_agentdojo(served, selection, output)
    models = [*served.names, *map(defended_name, selection.defenses)]
    result = read_agentdojo_runs(output, models, served.tokenizer)
    write_json(output / AGENTDOJO_FILE, {"settings": read_json(output / SETTINGS_FILE), **result})
    table(["", *models], metric_table_rows(result, models, AGENTDOJO_METRICS))
    for name in models:
        failures = Counter(failure["reason"] for failure in result["failures"][name])
        print_line(f"  {name}: {listed(result['verdicts'][name]) or 'no run'}; failures: {listed(failures) or 'none'}")
    print_line(f"agentdojo: runs and results -> {output}")
