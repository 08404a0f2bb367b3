"""The commands that put a breaker to the test: `attack` (an adaptive attacker), `agentdojo` (the live benchmark)."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import ModelOption, OutputOption, SeedOption
from .cli_output import listed, table


app = typer.Typer()


@app.command()
def attack(
    model: ModelOption,
    adapter: Annotated[str, typer.Option(help="Folder of the breaker's adapter.")],
    prompts: Annotated[Path, typer.Option(help="The prompts folder.")],
    output: OutputOption,
    task: Annotated[str, typer.Option(help="The task in the prompts folder to attack.")] = "tool_flip",
    n_prompts: Annotated[int, typer.Option(min=1, help="Prompts to attack, chosen by --seed.")] = 20,
    steps: Annotated[int, typer.Option(min=0, help="Most steps of the search on a prompt.")] = 50,
    width: Annotated[int, typer.Option(min=1, help="Suffixes tried in a step.")] = 64,
    suffix_tokens: Annotated[int, typer.Option(min=1, help="Length of the suffix.")] = 10,
    top_k: Annotated[int, typer.Option(min=1, help="Tokens that a position may change to in a step.")] = 64,
    best_of: Annotated[int, typer.Option(min=1, help="Draws of each prompt at T = 1.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts of one forward pass.")] = 64,
    work_dir: Annotated[Path, typer.Option(help="Folder of what is done; a rerun does only what is missing.")] = (
        Path("data/completions")
    ),
    seed: SeedOption = 0,
) -> None:
    """A white-box suffix search and best-of-N sampling, against base and breaker with the same budget.

    The search is greedy coordinate gradient (arXiv 2307.15043) on the opening of the attacker's call; whether it
    succeeded is judged by what the model then does. It needs gradients, so the model runs in Transformers.
    """
    from .evaluation.adaptive import RESULT_FILE, AttackBudget, attackable, table_rows
    from .evaluation.adaptive import attack as attack_models
    from .files import load_rows, write_json
    from .generation.transformers_backend import TransformersBackend
    from .sample import PROMPT_FEATURES
    from .sets.prompts import choose

    kept, left_out = attackable(load_rows(prompts / task, PROMPT_FEATURES))
    if len(kept) == 0:
        raise ValueError(f"{prompts / task}: no prompt can be attacked ({listed(left_out)}). Name another --task.")
    chosen = choose(kept, n_prompts, seed)
    budget = AttackBudget(steps, width, suffix_tokens, top_k, best_of, max_new_tokens, seed)
    breaker = TransformersBackend(model, adapter, batch_size)
    models = {"base": breaker.without_adapter(), "breaker": breaker}
    result = attack_models(chosen, models, budget, batch_size, work_dir)
    result = {**result, "task": task, "available": len(kept), "left_out": left_out}
    write_json(output / RESULT_FILE, result)
    table(["", *models], list(table_rows(result, list(models))))
    for name in models:
        print(f"  {name} under the search: {listed(result['outcomes'][name])}")
    print(f"attack: {len(chosen)} prompts of {task} -> {output / RESULT_FILE}")
