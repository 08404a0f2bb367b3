"""The command `merge-adapter`: a breaker merged into its base, checked against the adapter."""

import sys
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..counts import listed
from ..terminal import print_line
from .evaluate import load_prompts
from .options import AdapterOption, BackendName, Engine, SeedOption, takes
from .output import table
from .paths import input_folder, output_path


if TYPE_CHECKING:
    from ..generation import Backend

app = typer.Typer()


class Dtype(StrEnum):
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@app.command()
@takes(Engine)
def merge_adapter(
    adapter: AdapterOption,
    prompts: Annotated[
        Path, typer.Option(callback=input_folder, help="The prompts folder; every task in it is checked.")
    ],
    output: Annotated[Path, typer.Option(callback=output_path, help="Folder of the merged model to write.")],
    engine: Engine,
    dtype: Annotated[Dtype, typer.Option(help="Type of the merged weights.")] = Dtype.BFLOAT16,
    report: Annotated[
        Path | None,
        typer.Option(
            callback=output_path, help="Folder of the evaluation's report, for a file with differing answers."
        ),
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Merge a breaker into its base model, and check that the merged weights judge the prompts as the adapter does.

    Weights loaded in 8 or 4 bits are another model: evaluate them on their own.
    """
    from ..evaluation.merged_check import check_merged
    from ..files import write_json
    from ..generation import Sampling
    from ..publish import merged_weights
    from ..report.merged_section import merged_checks_file

    if engine.backend == BackendName.SERVER:
        raise ValueError("merge-adapter loads the merged weights itself: use --backend transformers or vllm.")
    if engine.load_in_8bit:
        raise ValueError(
            "--load-in-8bit: merged weights in 8 bits are another model than those written here. Merge without it, "
            "and evaluate the folder with `cb-datasets evaluate --model`."
        )
    target = merged_weights.tokenizer_for(engine.model, adapter, engine.tokenizer)
    rows = load_prompts(prompts, replace(engine, tokenizer=target))
    origin = merged_weights.merge_adapter(engine.model, adapter, engine.tokenizer, dtype, output)
    print_line(f"merge-adapter: {origin['adapter']} in {origin['model']}, {dtype} -> {output}")
    load = partial(_load_for_check, engine, adapter, str(output))
    check = check_merged(rows, load, Sampling(max_new_tokens=engine.max_new_tokens, seed=seed), engine.work_dir)
    merged_weights.save_check(output, origin, check)
    if report is not None:
        write_json(report / merged_checks_file(dtype, engine.backend), {"dtype": dtype, **check})
    _print_check(check, dtype)


def _load_for_check(engine: Engine, adapter: str, merged: str, name: str) -> "Backend":
    """The adapter on its base, or the merged weights: both with the merged folder's tokenizer."""
    from ..evaluation.merged_check import MERGED

    if name == MERGED:
        return replace(engine, model=merged, tokenizer=merged).load()
    return replace(engine, tokenizer=merged).load_all({name: adapter})[name]


def _print_check(check: dict, dtype: str) -> None:
    """Print how far merged weights agree with their adapter; with a warning and examples if it is not far enough."""
    from ..evaluation.merged_check import ADAPTER, MERGED
    from ..evaluation.statistics import format_rate

    rows = [
        ("equal outcomes", format_rate(check["equal_outcomes"])),
        ("equal texts", format_rate(check["equal_texts"])),
    ]
    rows += [(f"equal outcomes: {task}", format_rate(rate)) for task, rate in check["by_task"].items()]
    table(["", f"{MERGED} ({dtype}) against {ADAPTER}"], rows)
    print_line(
        f"  prompts without a completion: {check['errors']}; differing outcomes: {listed(check['changes']) or 'none'}"
    )
    print_line("  Weights loaded in 8 or 4 bits are another model, which was not judged.")
    if not check["agrees"]:
        print_line(
            f"warning: fewer than {check['required']:.0%} of the outcomes are equal. Serve the adapter, or merge with "
            "--dtype float32.",
            file=sys.stderr,
        )
        for example in check["examples"][:5]:
            print_line(f"  {example['id']}", file=sys.stderr)
            for name in (ADAPTER, MERGED):
                one = example[name]
                print_line(f"    {name}: {one['outcome']}: {one['text'][:100]!r}", file=sys.stderr)
