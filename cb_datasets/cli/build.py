"""`cb-datasets <step>`: the pipeline by hand. Each command parses flags, calls one function and prints one summary.

The Makefile runs the same commands; `make -n demo` shows them with all their flags.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    FitOption,
    GenerationOptions,
    MaxEachOption,
    MaxLengthOption,
    ModelOption,
    NumSamplesOption,
    OutputOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    TracesOption,
    takes,
)
from .output import dropped, listed, table, tokenizer, yield_table


if TYPE_CHECKING:
    from datasets import Dataset

    from ..sets.sample_set import SampleSet


TargetOption = Annotated[int | None, typer.Option(min=1, help="Stop drawing when so many samples are there.")]

app = typer.Typer()


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="Name of the source, e.g. agentdojo, tau2, ultrachat, jsonl.")],
    output: OutputOption,
    config: Annotated[str | None, typer.Option(help="Configuration of the source, e.g. airline of tau2.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            "--input-dir",
            "--tau2-path",
            help="Folder with a local copy of the source's files; without it they are fetched where that is possible.",
        ),
    ] = None,
    data_files: Annotated[list[Path] | None, typer.Option(help="The files themselves; several times.")] = None,
    tools: Annotated[Path | None, typer.Option(help="agentdojo: file of tool schemas by suite.")] = None,
    retain: Annotated[
        bool, typer.Option(help="xstest: allow use in Dr, by group, instead of evaluation only.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(help="jsonl: what your files are under, e.g. cc-by-4.0, so that a release may have them."),
    ] = None,
    eval_fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of groups held out.")] = 0.2,
    held_out: Annotated[str, typer.Option(help="The source's own split to hold out, where it has one.")] = "test",
    target_n: Annotated[
        int | None,
        typer.Option("--target-n", "--n-samples", min=1, help="Most traces of each split, chosen by --seed."),
    ] = None,
    seed: SeedOption = 0,
    output_harmful: Annotated[Path | None, typer.Option(help="Also write the source's recorded Ds here.")] = None,
    output_retain: Annotated[Path | None, typer.Option(help="Also write the source's recorded Dr here.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose format recorded samples are written in.")] = None,
    max_each: MaxEachOption = None,
    max_length: MaxLengthOption = 8192,
    fit: FitOption = False,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes that read files.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Read and count everything, write nothing.")] = False,
) -> None:
    """Raw files -> traces, divided into train and eval by a hash of each row's group."""
    from builders import prepare_source

    from ..ingest import ingest as ingest_source
    from ..ingest import save_sides
    from ..sets.recorded import RECORDED_SETS, collect_recorded_set

    if (output_harmful or output_retain) and model is None:
        raise ValueError("--output-harmful and --output-retain write in the format of a model: name it with --model.")
    given = {"tools": tools, "retain": retain or None, "licence": licence}
    fields = _config_fields(source, **given, num_samples=target_n, seed=seed)
    builder = prepare_source(source, config, data_dir, data_files, num_proc, **fields)
    sides, report = ingest_source(builder, eval_fraction, held_out, target_n, seed)
    verdicts = listed(report["verdicts"])
    print(f"ingest {source}: {report['records']} records, {report['attacked']} attacked -> {verdicts}; ", end="")
    print(dropped(report["drops"]))
    written = "not written (--dry-run)" if dry_run else f"-> {output}"
    print(f"  train {report['sides']['train']}, eval {report['sides']['eval']} {written}")
    if not report["redistributable"]:
        print(f"  no release will have these rows: their licence is {report['licence']}")
    if not dry_run:
        save_sides(sides, output, report)
    for subset, (of_source, turns) in RECORDED_SETS.items():
        kind, name = subset.split("/")
        folder = output_harmful if kind == "harmful" else output_retain
        if of_source == source and turns.verdict in report["verdicts"] and folder and model:
            made = collect_recorded_set(subset, sides, tokenizer(model), max_length, fit, max_each)
            _save(made, None if dry_run else folder / name)


def _config_fields(source: str, **values: Any) -> dict[str, Any]:
    """The fields of a source's configuration that were given; `num_samples` and `seed` only where it has them."""
    from dataclasses import fields

    from builders import SOURCES

    known = {field.name for field in fields(SOURCES[source].BUILDER_CONFIG_CLASS)} if source in SOURCES else set()
    for name in ("tools", "retain", "licence"):
        if values[name] is not None and name not in known:
            raise ValueError(f"{source} takes no --{name}.")
    return {name: value for name, value in values.items() if name in known and value is not None}


@app.command()
def sources(
    traces: Annotated[list[Path], typer.Argument(help="Folders of ingested sources.")],
    output: Annotated[Path, typer.Option(help="Folder of reports; sources.json and sources.md are written.")],
    model: Annotated[str | None, typer.Option(help="With whose tokenizer traces are measured.")] = None,
) -> None:
    """The data sheet: records, verdicts, groups, drops by name, token lengths, licence and revision of each source."""
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
@takes(GenerationOptions)
def generate_ds(
    traces: TracesOption,
    output: OutputOption,
    generation: GenerationOptions,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    num_samples: NumSamplesOption = 1,
    target_n: TargetOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over prompts without a flip, until --target-n.")] = 3,
    min_yield: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of prompts that must give a flip.")] = 0.0,
    max_category_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Largest share of one category.")] = 0.8,
    include_forced_calls: Annotated[
        bool, typer.Option(help="Ask what gave no flip again, with the head of the attacker's call as prefill.")
    ] = False,
    redact_harmful_prompt: Annotated[
        bool, typer.Option(help="Cut the injection from kept rows; for rr only.")
    ] = False,
) -> None:
    """Ask the model attacked prompts and keep the verified flips (Ds)."""
    from ..sets.harmful import FlipOptions, generate_flips

    sides = _sides(traces)
    if _only_counted(sides, {"tool_flip"}, generation):
        return
    options = FlipOptions(target_n, rounds, min_yield, max_category_share, include_forced_calls, redact_harmful_prompt)
    sampling = generation.sampling(temperature, top_p, num_samples)
    _save(generate_flips(sides, generation.target_model(), sampling, options), output, generation)


@app.command()
@takes(GenerationOptions)
def generate_dr(
    traces: Annotated[list[Path], typer.Option(help="Folder of one source's traces; may be given several times.")],
    output: Annotated[Path, typer.Option(help="The retain folder; each kind gets its own folder in it.")],
    kinds: Annotated[list[str], typer.Option(help="benign_twins, refusals, chat; may be given several times.")],
    generation: GenerationOptions,
    temperature: TemperatureOption = 0.3,
    top_p: TopPOption = 1.0,
    num_samples: NumSamplesOption = 1,
) -> None:
    """Ask the model prompts without an injection and keep its good answers (Dr)."""
    from ..sets.retain import RETAIN_TASKS, generate_retain_set

    for kind in kinds:
        if kind not in RETAIN_TASKS:
            raise ValueError(f"Unknown kind {kind!r}; known: {', '.join(RETAIN_TASKS)}.")
    sides = _sides(*traces)
    if _only_counted(sides, {task for kind in kinds for task in RETAIN_TASKS[kind][1]}, generation):
        return
    sampling, target_model = generation.sampling(temperature, top_p, num_samples), generation.target_model()
    for kind in kinds:
        made = generate_retain_set(kind, sides, target_model, sampling)
        _save(made, output / made.name.removeprefix("retain/"), generation)


@app.command()
@takes(GenerationOptions)
def generate_adversarial_safe(
    traces: TracesOption,
    output: OutputOption,
    generation: GenerationOptions,
    fill: Annotated[str | None, typer.Option(help="twin: fill up with the verified call of the clean twin.")] = None,
    twins: Annotated[Path | None, typer.Option(help="Folder retain/b4_benign_twins; needed by --fill twin.")] = None,
    temperature: TemperatureOption = 0.1,
    top_p: TopPOption = 1.0,
    num_samples: NumSamplesOption = 1,
    target_n: TargetOption = None,
    min_n: Annotated[int, typer.Option(min=0, help="Fewer samples in the end are an error.")] = 0,
    retry_temperatures: Annotated[
        list[float] | None, typer.Option(help="A further round over what is missing, until --target-n; several times.")
    ] = None,
    retry_samples: Annotated[int, typer.Option(min=1, help="Completions for each prompt in such a round.")] = 4,
) -> None:
    """Attacked prompts with the right call: sampled where the model manages, the rest filled (Dr)."""
    from ..files import load_rows
    from ..sample import SAMPLE_FEATURES
    from ..sets.retain import SafeOptions, generate_adversarial_safe

    if (fill, twins is None) not in ((None, True), ("twin", False)):
        raise ValueError("--fill twin and --twins FOLDER go together.")
    sides = _sides(traces)
    if _only_counted(sides, {"tool_flip"}, generation):
        return
    verified = load_rows(twins, SAMPLE_FEATURES) if twins else None
    options = SafeOptions(target_n, min_n, tuple(retry_temperatures or ()), retry_samples)
    sampling = generation.sampling(temperature, top_p, num_samples)
    _save(generate_adversarial_safe(sides, generation.target_model(), sampling, verified, options), output, generation)


@app.command()
@takes(GenerationOptions)
def regenerate(
    traces: TracesOption,
    output_harmful: Annotated[
        Path, typer.Option(help="Folder for what the attack got, e.g. harmful/agentdojo_failures.")
    ],
    output_retain: Annotated[Path, typer.Option(help="Folder for what withstood, e.g. retain/agentdojo_resisted.")],
    generation: GenerationOptions,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    num_samples: NumSamplesOption = 1,
    max_length: MaxLengthOption = 8192,
    fit: FitOption = False,
) -> None:
    """Put the model before the decisions of recorded agents: on-policy Ds and Dr."""
    from ..sets.on_policy import regenerate_decisions

    sides = _sides(traces)
    if _only_counted(sides, {"agentdojo"}, generation):
        return
    sampling = generation.sampling(temperature, top_p, num_samples)
    failures, resisted = regenerate_decisions(sides, generation.target_model(), sampling, fit, max_length)
    _save(failures, output_harmful, generation)
    _save(resisted, output_retain, generation)


def _only_counted(sides: "dict[str, Dataset]", tasks: set[str], generation: GenerationOptions) -> bool:
    """Whether this is a dry run; if so, say what would be asked."""
    from ..sets.target_model import choose_prompts

    if generation.dry_run:
        for task in sorted(tasks):
            chosen = choose_prompts(sides, task, generation.limits, generation.seed, generation.per_tool)
            print(
                f"{task}: {listed({side: len(rows) for side, rows in chosen.items()})} prompts; not asked (--dry-run)"
            )
    return generation.dry_run


@app.command()
def collect(
    subset: Annotated[str, typer.Argument(help="The set, e.g. harmful/agentdojo_failures or retain/tau2_traces.")],
    traces: TracesOption,
    model: ModelOption,
    output: OutputOption,
    max_each: MaxEachOption = None,
    max_length: MaxLengthOption = 8192,
    fit: FitOption = False,
) -> None:
    """Recorded turns of other models -> samples in the target's format (off-policy). Only the tokenizer is loaded."""
    from ..sets.recorded import RECORDED_SETS, collect_recorded_set

    if subset not in RECORDED_SETS:
        raise ValueError(f"Unknown set {subset!r}; known: {', '.join(RECORDED_SETS)}.")
    _save(collect_recorded_set(subset, _sides(traces), tokenizer(model), max_length, fit, max_each), output)


@app.command()
def generate_eval(
    traces: Annotated[list[Path], typer.Argument(help="Folders of ingested sources; their eval side is used.")],
    output: Annotated[Path, typer.Option(help="The prompts folder; each task gets its own folder in it.")],
    tasks: Annotated[list[str], typer.Option(help="tool_flip, capability, agentdojo, forced_call, multi_turn, ...")],
    prompt_format: Annotated[str, typer.Option(help="How the target writes calls.")] = "llama3_json",
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Prompts for each task; all if left out.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Evaluation prompts from the held-out side, a folder for each task."""
    from datasets import concatenate_datasets

    from ..files import load_rows, save_rows
    from ..formats import get_format
    from ..sets.eval_prompts import EVALUATION_TASKS, evaluation_prompts
    from ..splits import choose

    for task in tasks:
        if task not in EVALUATION_TASKS:
            raise ValueError(f"Unknown task {task!r}; known: {', '.join(EVALUATION_TASKS)}.")
    held_out = [load_rows(folder / "eval") for folder in traces]
    for task in tasks:
        rows = concatenate_datasets([evaluation_prompts(side, task, get_format(prompt_format)) for side in held_out])
        if len(rows) == 0:
            raise ValueError(f"The held-out side of {_names(traces)} has no prompts for {task}.")
        chosen = choose(rows, max_prompts, seed)
        save_rows(chosen, output / task, {"task": task, "rows": len(chosen), "available": len(rows)})
        print(f"generate-eval {task}: {len(chosen)} prompts of {len(rows)} held out -> {output / task}")


def _sides(*traces: Path) -> "dict[str, Dataset]":
    """The traces of one or more sources by side."""
    from datasets import concatenate_datasets

    from ..files import load_rows

    return {side: concatenate_datasets([load_rows(folder / side) for folder in traces]) for side in ("train", "eval")}


def _save(made: "SampleSet", output: Path | None, generation: GenerationOptions | None = None) -> None:
    """Write a set and print its summary; without a folder, print only. One rank of several has no set to write."""
    from ..files import save_rows

    report = made.report()
    yield_table(report["by_category"])
    if generation is not None and generation.rank is not None:
        shards = f"{generation.rank}, {generation.rank + generation.world}, ..."
        print(f"{made.name}: shards {shards} are done; no set is written")
        return
    if not made.samples:
        raise ValueError(f"{made.name}: no sample was kept; {dropped(report['drops'])}.")
    if output is not None:
        save_rows(made.dataset(), output, report)
    print(f"{made.name}: {report['kept']} samples of {report['candidates']} ({listed(report['splits'])}; ", end="")
    print(f"{listed(report['completions'])}); {dropped(report['drops'])} -> {output or 'not written'}")


def _names(folders: list[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


def _source_row(name: str, report: dict) -> tuple:
    lists = (listed(report.get(key, {})) or "-" for key in ("verdicts", "drops", "tokens"))
    return name, report["records"], report["attacked"], report["groups"], *lists
