"""The commands that test a breaker: `attack` (the ladder of attacks), `agentdojo` (the live benchmark)."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..counts import listed
from ..terminal import print_line
from .options import BackendName, Engine, ExtraAdaptersOption, ModelOption, SeedOption, TokenizerOption, takes
from .output import table


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend

AdapterOption = Annotated[str, typer.Option(help="Folder of the breaker's adapter.")]

app = typer.Typer()


class EngineName(StrEnum):
    VLLM = "vllm"
    TRANSFORMERS = "transformers"


@app.command()
@takes(Engine)
def attack(
    adapter: AdapterOption,
    prompts: Annotated[Path, typer.Option(help="The prompts folder.")],
    output: Annotated[Path, typer.Option(help="Folder of the report; adaptive.json is written.")],
    engine: Engine,
    also: ExtraAdaptersOption = None,
    task: Annotated[str, typer.Option(help="The task in the prompts folder to attack.")] = "tool_flip",
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="RUNG.LIMIT=VALUE", help="E.g. suffix.steps=100, universal.prompts=0; repeatable."),
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """The ladder of attacks against base and breakers, with the same budget for each.

    Fixed injections, random compositions without any knowledge of the model (black_box), token searches by greedy
    coordinate gradient (arXiv 2307.15043; suffix, prefix_suffix, universal, transfer), free vectors (embedding), and
    prefilled calls. Success is judged by the model's greedy completion.
    """
    from ..attacks.adaptive_results import ADAPTIVE_FILE, adaptive_table_rows
    from ..attacks.attackable import select_attackable
    from ..attacks.ladder import Budgets, run_ladder
    from ..evaluation.results import named_adapters
    from ..files import load_rows, write_json
    from ..sample import PROMPT_FEATURES

    if engine.backend != BackendName.TRANSFORMERS:
        raise ValueError("The searches need gradients, which only --backend transformers has.")
    budgets = Budgets.of_text(budget or [], engine.max_new_tokens, seed)
    attackable, left_out = select_attackable(load_rows(prompts / task, PROMPT_FEATURES))
    if len(attackable) == 0:
        raise ValueError(f"{prompts / task}: no prompt can be attacked ({listed(left_out)}). Name another --task.")
    models = cast("dict[str, TransformersBackend]", engine.load_all(named_adapters(adapter, also or [])))
    result = run_ladder(attackable, models, budgets, engine.batch_size, engine.work_dir)
    write_json(output / ADAPTIVE_FILE, {**result, "task": task, "available": len(attackable), "left_out": left_out})
    table(["", *models], list(adaptive_table_rows(result, list(models))))
    print_line(f"attack: {len(attackable)} prompts of {task} -> {output / ADAPTIVE_FILE}")


@app.command()
def agentdojo(
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Folder of the runs; runs found in it are not repeated.")],
    adapter: Annotated[
        str | None, typer.Option(help="Folder of the breaker's adapter; the base model alone if left out.")
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
