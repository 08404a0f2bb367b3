"""The commands that build traces, recorded sets and evaluation prompts; no model runs."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..counts import listed
from ..terminal import print_line
from .numbers import finite
from .options import (
    FitOption,
    MaxEachOption,
    MaxLengthOption,
    ModelOption,
    OutputOption,
    SeedOption,
)
from .output import dropped, save_set, table, tokenizer
from .paths import input_file, input_folder, input_path, model_path, output_path, own_or_file


app = typer.Typer()


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="Name of the source, e.g. agentdojo, tau2, ultrachat, jsonl.")],
    output: Annotated[
        Path | None,
        typer.Option(
            callback=output_path,
            help="Folder of traces to write. A .jsonl file: the recorded Dr instead, as --output-retain.",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the source, e.g. airline of tau2.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            "--input-dir",
            "--tau2-path",
            callback=input_folder,
            help="Local copy of the source's files; by default they are downloaded where possible.",
        ),
    ] = None,
    data_files: Annotated[
        list[Path] | None, typer.Option(callback=input_file, help="The files themselves; repeatable.")
    ] = None,
    tools: Annotated[
        Path | None, typer.Option(callback=input_file, help="agentdojo: JSON file of tool schemas by suite.")
    ] = None,
    retain: Annotated[
        bool, typer.Option(help="xstest, injecagent: allow training on them, by group, instead of evaluation only.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(help="jsonl: licence of your files, e.g. cc-by-4.0; releases need one."),
    ] = None,
    skip_bad_lines: Annotated[
        bool,
        typer.Option(
            "--skip-bad-lines", help="jsonl: drop and count lines and samples that would stop the build (bad_line)."
        ),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            "--format", help="jsonl: auto (the default), openai, anthropic, sharegpt, xlam, inspect or langsmith."
        ),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(help="jsonl: verdict of logs that state none, benign_success or benign_failure."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="lookalike: make these tasks only, e.g. refusal; repeatable. By default, all."),
    ] = None,
    eval_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, callback=finite, help="Fraction of groups in the eval split.")
    ] = 0.2,
    held_out: Annotated[str, typer.Option(help="The source's own split that joins eval, where it has one.")] = "test",
    target_n: Annotated[
        int | None,
        typer.Option("--target-n", "--n-samples", min=1, help="Maximum number of traces per split, chosen by --seed."),
    ] = None,
    seed: SeedOption = 0,
    output_harmful: Annotated[
        Path | None,
        typer.Option(
            callback=output_path,
            help="A recorded set of Ds, a folder or .jsonl file named for it: harmful/agentdojo_failures.",
        ),
    ] = None,
    output_retain: Annotated[
        Path | None,
        typer.Option(callback=output_path, help="A recorded set of Dr, likewise: retain/agentdojo_resisted."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(callback=model_path, help="Model in whose format recorded samples are written.")
    ] = None,
    max_each: MaxEachOption = None,
    max_length: MaxLengthOption = 8192,
    fit: FitOption = False,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes that read files.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Read and count everything; write nothing.")] = False,
) -> None:
    """Raw files -> traces, split into train and eval by each row's group: a hash of it, or the source's own split."""
    from builders import prepare_source

    from ..ingest import ingest as ingest_source
    from ..ingest import save_traces
    from ..sets.jsonl_sets import is_jsonl
    from ..sets.recorded import collect_recorded_set, recorded_set_named

    if output is not None and is_jsonl(output) and output_retain is None:
        output, output_retain = None, output
    folders = {"harmful": output_harmful, "retain": output_retain}
    recorded = {recorded_set_named(source, half, path): path for half, path in folders.items() if path is not None}
    if not recorded and output is None and not dry_run:
        raise ValueError("No output: pass --output FOLDER for traces, or --output-harmful and --output-retain.")
    if recorded and model is None:
        raise ValueError(f"Samples are written in the format of a model: add --model MODEL ({', '.join(recorded)}).")
    flags = {
        "tools": tools,
        "retain": retain or None,
        "licence": licence,
        "skip_bad_lines": skip_bad_lines or None,
        "layout": layout,
        "verdict": verdict,
        "tasks": tuple(tasks) if tasks else None,
    }
    fields = config_fields(source, flags, num_samples=target_n, seed=seed)
    target = tokenizer(str(model)) if recorded else None  # before the traces are written: it may not load
    builder = prepare_source(source, config, data_dir, data_files, num_proc, **fields)
    splits, report = ingest_source(builder, eval_fraction, held_out, target_n, seed)
    print_line(f"ingest {source}: {report['records']} records, {report['attacked']} attacked -> ", end="")
    print_line(f"{listed(report['verdicts'])}; {dropped(report['drops'])}")
    if report.get("repaired"):
        print_line(f"  repaired: {listed(report['repaired'])}")
    destination = "not written (--dry-run)" if dry_run else f"-> {output}" if output else "not written (no --output)"
    unused = f" (unused: {listed(report['other_splits'])})" if report["other_splits"] else ""
    print_line(f"  train {report['sides']['train']}, eval {report['sides']['eval']}{unused} {destination}")
    if not report["redistributable"]:
        print_line(f"  not redistributable: releases leave these rows out, their licence is {report['licence']}")
    if output is not None and not dry_run:
        save_traces(splits, output, report)
    if target is not None:
        for subset, path in recorded.items():
            samples = collect_recorded_set(subset, splits, target, max_length, fit, max_each)
            save_set(samples, None if dry_run else path)


def config_fields(source: str, flags: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The fields of a source's configuration that are set: those of `flags`, and of `defaults` where it has them.

    Raises:
        ValueError: If a flag is given that the source does not have.
    """
    from dataclasses import fields

    from builders import SOURCES

    known = {field.name for field in fields(SOURCES[source].BUILDER_CONFIG_CLASS)} if source in SOURCES else set()
    for name, value in flags.items():
        if value is not None and name not in known:
            raise ValueError(f"{source} takes no --{'format' if name == 'layout' else name.replace('_', '-')}.")
    return {name: value for name, value in (flags | defaults).items() if name in known and value is not None}


@app.command()
def sources(
    traces: Annotated[list[Path], typer.Argument(callback=input_folder, help="Folders of ingested sources.")],
    output: Annotated[
        Path, typer.Option(callback=output_path, help="Folder of reports; sources.json and sources.md are written.")
    ],
    model: Annotated[
        str | None, typer.Option(callback=model_path, help="Model whose tokenizer measures traces.")
    ] = None,
) -> None:
    """The data sheet: records, verdicts, groups, drops, token lengths, licence and revision of each source."""
    from ..datasheet import sheet_markdown, source_sheets
    from ..files import write_json, write_text

    sheets = source_sheets(traces, tokenizer(model) if model else None)
    write_json(output / "sources.json", sheets)
    write_text(output / "sources.md", sheet_markdown(sheets))
    table(
        ["source", "records", "attacked", "groups", "verdicts", "drops", "tokens"],
        [_source_row(name, sheet) for name, sheet in sheets.items()],
    )


@app.command()
def collect(
    subset: Annotated[str, typer.Argument(help="The set, e.g. harmful/agentdojo_failures or retain/tau2_traces.")],
    traces: Annotated[
        Path,
        typer.Option(
            callback=input_folder,
            help="Folder of ingested sources, in which the set's own is looked up; or that source's.",
        ),
    ],
    model: ModelOption,
    output: OutputOption,
    max_each: MaxEachOption = None,
    max_length: MaxLengthOption = 8192,
    fit: FitOption = False,
    own_agent: Annotated[
        str | None, typer.Option(help="Agent of the runs that was the target itself, e.g. local-base.")
    ] = None,
) -> None:
    """Recorded turns -> samples in the target's format. Only the tokenizer is loaded.

    Turns of other models are off-policy; those of --own-agent, whose runs the target made greedily, are not.
    """
    from ..ingest import load_traces
    from ..sets.recorded import check_own_runs, collect_recorded_set, source_of_set

    source = source_of_set(subset)
    folder = traces / source if (traces / source).is_dir() else traces
    by_split = load_traces([folder])
    if not any(map(len, by_split.values())):
        raise ValueError(f"--traces: {folder} has no trace. Ingest the source again, or name another folder.")
    target = tokenizer(model)
    if own_agent is not None:
        check_own_runs(folder, target)
    samples = collect_recorded_set(subset, by_split, target, max_length, fit, max_each, own_agent)
    save_set(samples, output)


@app.command("tokenizer")
def decide_tokenizer(
    model: Annotated[str, typer.Argument(callback=model_path, help="Folder of the target model, or its Hub id.")],
    output: Annotated[
        Path, typer.Option(callback=output_path, help="Folder to write, for --tokenizer of other commands.")
    ],
    tool_format: Annotated[
        str | None, typer.Option(help="How the model writes tool calls, where its chat template does not tell.")
    ] = None,
    template_setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable of the chat template: enable_thinking=false; repeatable."),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            callback=own_or_file, help="A file with another chat template, or one of the package's by its name."
        ),
    ] = None,
) -> None:
    """Decide once, for all commands, how prompts are written for a model; its chat template is checked.

    A format or settings that the template leaves open are written into it, so that a server and the trainer have them.
    A short prompt is shown.
    """
    from ..formats import format_of
    from ..generation.tokenizer import decided_tokenizer, save_tokenizer
    from ..template_probe import probe_template, template_hash

    settings = dict(map(_setting, template_setting or []))
    if len(settings) < len(template_setting or []):
        raise ValueError(f"--template-setting: one of {', '.join(settings)} is given twice. Give each once.")
    decided = decided_tokenizer(model, tool_format, settings, chat_template)
    save_tokenizer(decided, output)
    for line in probe_template(decided).prompts[-1].splitlines():
        print_line(line)
    print_line(f"tokenizer: {format_of(decided).name}, template {template_hash(decided)} -> {output}")


def _setting(text: str) -> tuple[str, object]:
    """`enable_thinking=false` as a name and a value: of JSON where it is that, else text."""
    name, separator, value = text.partition("=")
    if not (separator and name.isidentifier()):
        raise ValueError(f"--template-setting {text!r}: write NAME=VALUE, e.g. enable_thinking=false.")
    with suppress(ValueError):
        return name, json.loads(value)
    return name, value


@app.command()
def generate_eval(
    traces: Annotated[
        list[Path],
        typer.Argument(
            callback=input_path, help="Folders of ingested sources, or B4's own file; their eval split is used."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            callback=output_path,
            help="The prompts folder, in which each task gets its own; or a .jsonl file for all, for other programs.",
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="tool_flip, capability, agentdojo, ...; by default all that have prompts but forced_call."),
    ] = None,
    include_forced_calls: Annotated[
        bool, typer.Option("--include-forced-calls", help="Also forced_call: the attacker's call is begun already.")
    ] = False,
    tool_format: Annotated[
        str | None,
        typer.Option("--tool-format", "--prompt-format", help="How the target writes calls; by default Llama 3.1's."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(callback=model_path, help="The target, in place of --tool-format.")
    ] = None,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Maximum number of prompts per task.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Evaluation prompts from the eval split, a folder for each task."""
    from datasets import concatenate_datasets

    from ..export import export_prompts
    from ..files import SPLIT_FILES, save_rows
    from ..formats import CANONICAL, format_of, get_format
    from ..ingest import load_traces
    from ..sets.eval_prompts import (
        EVALUATION_TASKS,
        FORCED_CALL,
        evaluation_prompts,
        in_format,
        limits_of,
        made_for,
        other_tasks,
        prompts_report,
    )
    from ..sets.jsonl_sets import is_jsonl
    from ..splits import choose
    from ..template_probe import template_hash

    for task in tasks or []:
        if task not in EVALUATION_TASKS:
            raise ValueError(f"Unknown task {task!r}; known: {', '.join(EVALUATION_TASKS)}.")
    if model is not None and tool_format is not None:
        raise ValueError("--tool-format: the format of --model is its own. Leave one of the two out.")
    wanted = dict.fromkeys(tasks or (task for task in EVALUATION_TASKS if task != FORCED_CALL))
    wanted |= {FORCED_CALL: None} if include_forced_calls else {}
    target = tokenizer(model) if model else None
    target_format = format_of(target) if target else get_format(tool_format or CANONICAL)
    template = template_hash(target) if target else None
    held_out = [load_traces([path], ("eval",))["eval"] for path in traces]
    chosen = {}
    for task in wanted:
        prompts = concatenate_datasets([evaluation_prompts(source, task, target_format) for source in held_out])
        rows = in_format(prompts, target_format)
        if len(rows) == 0 and tasks is None and task != FORCED_CALL:
            continue
        if len(rows) == 0:
            raise ValueError(f"The eval split of {_names(traces)} has no prompts for {task}.")
        chosen[task] = made_for(choose(rows, max_prompts, seed), target_format, template)
        limits = limits_of(chosen[task], held_out, task)
        if left_out := len(prompts) - len(rows):
            limits["left_out_parallel_calls"] = left_out  # the target's format has none
        place = output if is_jsonl(output) else output / task
        if not is_jsonl(output):
            save_rows(chosen[task], place, prompts_report(chosen[task], task, len(rows), limits), SPLIT_FILES["eval"])
        print_line(f"generate-eval {task}: {len(chosen[task])} prompts of {len(rows)} held out -> {place}")
        if limits:
            print_line(f"  {listed(limits)}")
    if not chosen:
        raise ValueError(f"The eval split of {_names(traces)} has no evaluation prompts.")
    if is_jsonl(output):
        export_prompts(concatenate_datasets(list(chosen.values())), output)
    elif others := other_tasks(output, chosen):
        print_line(
            f"  also in {output}, of an earlier run: {', '.join(others)}. `evaluate` and `merge` read them, too: "
            "remove what is out of date."
        )


def _names(folders: list[Path]) -> str:
    return ", ".join(map(str, folders))


def _source_row(name: str, report: dict) -> tuple:
    lists = (listed(report.get(key, {})) or "-" for key in ("verdicts", "drops", "tokens"))
    return name, report["records"], report["attacked"], report["groups"], *lists
