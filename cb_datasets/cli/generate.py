"""The commands in which the target model generates: Ds, Dr, and on-policy completions at recorded decisions.

`generate` runs those that a list of sets needs, for one task of several that share the work.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer.core import TyperGroup

from ..counts import listed
from ..terminal import print_line
from .numbers import finite
from .options import (
    FitOption,
    GenerationOptions,
    MaxLengthOption,
    NumSamplesOption,
    OutputOption,
    TemperatureOption,
    TopPOption,
    TracesOption,
    takes,
)
from .output import save_set
from .paths import data_folder, input_path, output_path


if TYPE_CHECKING:
    from datasets import Dataset

    from ..sets.plan import Pass


TargetOption = Annotated[
    int | None, typer.Option(min=1, help="Ask prompts in rounds until there are this many samples; by default, all.")
]

app = typer.Typer()


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
    rounds: Annotated[
        int, typer.Option(min=1, help="Passes over prompts without a flip, the first included, until --target-n.")
    ] = 3,
    min_yield: Annotated[
        float, typer.Option(min=0.0, max=1.0, callback=finite, help="Minimum fraction of prompts that give a flip.")
    ] = 0.0,
    max_category_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, callback=finite, help="Maximum fraction of flips in one attack category."),
    ] = 0.8,
    include_forced_calls: Annotated[
        bool, typer.Option(help="Complete prompts without a flip again, the head of the attacker's call prefilled.")
    ] = False,
    redact_harmful_prompt: Annotated[
        bool, typer.Option(help="Cut the injection from kept rows; only rerouting terms may use them.")
    ] = False,
) -> None:
    """Complete attacked prompts and keep the verified flips (Ds)."""
    from ..ingest import load_traces
    from ..sets.harmful import FlipOptions, generate_flips
    from ..sets.jsonl_sets import name_of
    from ..sets.prompts import FLIP_TASKS

    by_split = load_traces([traces])
    options = FlipOptions(target_n, rounds, min_yield, max_category_share, include_forced_calls, redact_harmful_prompt)
    sampling = generation.sampling(temperature, top_p, num_samples)
    if _is_dry_run([(task, by_split) for task in FLIP_TASKS], generation, options.passes(sampling), target_n):
        return
    _require_prompts(by_split, FLIP_TASKS, [traces])
    name = f"harmful/{name_of(output)}"
    flips = generate_flips(by_split, generation.target_model(), sampling, options, name)
    save_set(flips, output, generation.shards)


@app.command()
@takes(GenerationOptions)
def generate_dr(
    traces: Annotated[
        list[Path],
        typer.Option(
            "--traces",
            "--b4-data",
            callback=input_path,
            help="Folder of one source's traces, or B4's own file; repeatable.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            callback=output_path,
            help="The retain folder, in which each set gets its own; or a .jsonl file for all of them.",
        ),
    ],
    generation: GenerationOptions,
    kinds: Annotated[
        list[str] | None,
        typer.Option(help="benign_twins, tool_capability, refusals, chat; repeatable. By default all with prompts."),
    ] = None,
    temperature: TemperatureOption = 0.3,
    top_p: TopPOption = 1.0,
    num_samples: NumSamplesOption = 1,
) -> None:
    """Complete prompts without an injection and keep the good answers (Dr).

    Benign twins are named for the first of the sources, e.g. b4_benign_twins.
    """
    from ..ingest import load_traces, source_of
    from ..sets.jsonl_sets import is_jsonl, name_of
    from ..sets.plan import Pass
    from ..sets.retain import RETAIN_TASKS, generate_retain_set, traces_for
    from ..sets.sample_set import SampleSet
    from ..sets.set_names import BENIGN_TWINS, set_name

    for subset in kinds or []:
        if subset not in RETAIN_TASKS:
            raise ValueError(f"Unknown kind {subset!r}; known: {', '.join(RETAIN_TASKS)}.")
    by_split = load_traces(traces)
    sources = {subset: traces_for(subset, by_split) for subset in kinds or RETAIN_TASKS}
    kinds = kinds or [subset for subset, rows in sources.items() if _have_prompts(rows, RETAIN_TASKS[subset][1])]
    sampling = generation.sampling(temperature, top_p, num_samples)
    asked = [(task, sources[subset]) for subset in kinds for task in RETAIN_TASKS[subset][1]]
    if _is_dry_run(asked, generation, [Pass(f"T = {temperature}", num_samples)]):
        return
    for subset in kinds:
        _require_prompts(sources[subset], RETAIN_TASKS[subset][1], traces)
    target_model = generation.target_model()
    together = SampleSet(f"retain/{name_of(output)}")
    for subset in kinds:
        name = set_name(source_of(traces[0]), BENIGN_TWINS) if subset == BENIGN_TWINS else subset
        samples = generate_retain_set(subset, by_split, target_model, sampling, f"retain/{name}")
        if is_jsonl(output):
            together.add_round(samples)
        else:
            save_set(samples, output / name, generation.shards)
    if is_jsonl(output):
        save_set(together, output, generation.shards)


def _have_prompts(by_split: "dict[str, Dataset]", tasks: tuple[str, ...]) -> bool:
    from ..sets.prompts import prompts_for_task

    return any(len(prompts_for_task(rows, task)) for rows in by_split.values() for task in tasks)


def _require_prompts(by_split: "dict[str, Dataset]", tasks: tuple[str, ...], traces: list[Path]) -> None:
    """Refuse traces without a prompt of these tasks, before a model is loaded for nothing."""
    if not _have_prompts(by_split, tasks):
        raise ValueError(
            f"{', '.join(map(str, traces))}: no prompts for {' or '.join(tasks)}. Name traces with some, or leave "
            "the set out of the recipe."
        )


@app.command()
@takes(GenerationOptions)
def generate_adversarial_safe(
    traces: TracesOption,
    output: OutputOption,
    generation: GenerationOptions,
    fill: Annotated[str | None, typer.Option(help="twin: fill up with the verified call of the clean twin.")] = None,
    twins: Annotated[
        Path | None, typer.Option(callback=input_path, help="Benign twins; needed by --fill twin.")
    ] = None,
    temperature: TemperatureOption = 0.1,
    top_p: TopPOption = 1.0,
    num_samples: NumSamplesOption = 1,
    target_n: TargetOption = None,
    min_n: Annotated[int, typer.Option(min=0, help="Minimum number of samples, filled ones included.")] = 0,
    retry_temperatures: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            callback=finite,
            help="One further pass over prompts without a sample, until --target-n; repeatable.",
        ),
    ] = None,
    warned_temperatures: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            callback=finite,
            help="One further pass under a system prompt that warns of the attack, kept out of the rows.",
        ),
    ] = None,
    retry_samples: Annotated[
        int, typer.Option(min=1, help="Completions per prompt in such a pass; the most frequent right one is kept.")
    ] = 4,
    warning: Annotated[str | None, typer.Option(help="Another text for the warning.")] = None,
) -> None:
    """Attacked prompts with the right call: sampled where the model makes it, the rest filled (Dr)."""
    from ..files import load_rows
    from ..ingest import load_traces
    from ..sample import SAMPLE_FEATURES
    from ..sets import retain
    from ..sets.jsonl_sets import as_folder
    from ..sets.prompts import FLIP_TASKS
    from ..sets.set_names import check_former_name
    from ..text_faults import check_rows

    if (fill, twins is None) not in ((None, True), ("twin", False)):
        raise ValueError("--fill twin and --twins FOLDER go together.")
    by_split = load_traces([traces])
    options = retain.SafeOptions(
        target_n,
        min_n,
        tuple(retry_temperatures or ()),
        tuple(warned_temperatures or ()),
        retry_samples,
        warning or retain.WARNING,
    )
    sampling = generation.sampling(temperature, top_p, num_samples)
    if _is_dry_run([(task, by_split) for task in FLIP_TASKS], generation, options.passes(sampling), target_n):
        return
    _require_prompts(by_split, FLIP_TASKS, [traces])
    verified = None
    if twins is not None:
        check_former_name(twins)
        verified = load_rows(as_folder(twins), SAMPLE_FEATURES)
        check_rows(verified, twins)
    target_model = generation.target_model()
    samples = retain.generate_adversarial_safe(by_split, target_model, sampling, verified, options)
    save_set(samples, output, generation.shards)


@app.command()
@takes(GenerationOptions)
def regenerate(
    traces: TracesOption,
    output_harmful: Annotated[
        Path,
        typer.Option(
            callback=output_path,
            help="Successful attacks: a folder or .jsonl file, e.g. harmful/agentdojo_failures.",
        ),
    ],
    output_retain: Annotated[
        Path,
        typer.Option(
            callback=output_path, help="Resisted ones: a folder or .jsonl file, e.g. retain/agentdojo_resisted."
        ),
    ],
    generation: GenerationOptions,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    num_samples: NumSamplesOption = 1,
    max_length: MaxLengthOption = 8192,
    fit: FitOption = False,
) -> None:
    """Complete the contexts in which recorded agents decided: on-policy Ds and Dr."""
    from ..ingest import load_traces
    from ..sets.on_policy import regenerate_decisions
    from ..sets.plan import Pass

    by_split = load_traces([traces])
    sampling = generation.sampling(temperature, top_p, num_samples)
    if _is_dry_run([("agentdojo", by_split)], generation, [Pass(f"T = {temperature}", num_samples)]):
        return
    failures, resisted = regenerate_decisions(by_split, generation.target_model(), sampling, fit, max_length)
    save_set(failures, output_harmful, generation.shards)
    save_set(resisted, output_retain, generation.shards)


def _is_dry_run(
    asked: "list[tuple[str, dict[str, Dataset]]]",
    generation: GenerationOptions,
    passes: "list[Pass]",
    target_n: int | None = None,
) -> bool:
    """Whether this is a dry run; if so, print the prompts of each task in its traces, the plan and its cost."""
    from ..sets.plan import mean_tokens, plan_lines
    from ..sets.target_model import choose_prompts

    if not generation.dry_run:
        return False
    chosen: list[Dataset] = []
    for task, by_split in asked:
        prompts = choose_prompts(by_split, task, generation.limits, generation.seed, generation.per_tool)
        counts = listed({split: len(rows) for split, rows in prompts.items()})
        print_line(f"{task}: {counts} prompts; not completed (--dry-run)")
        chosen += prompts.values()
    tokens = mean_tokens(chosen, generation.model, generation.system_modifier)
    num_prompts = sum(len(rows) for rows in chosen)
    for line in plan_lines(num_prompts, passes, target_n, tokens, generation.max_new_tokens):
        print_line(f"  {line}")
    return True


@app.command()
def generate(
    sets: Annotated[str, typer.Option(help='The sets, e.g. "harmful/b4_flips retain/refusals".')],
    data_dir: Annotated[Path, typer.Option(callback=data_folder, help="The data folder, with traces/ in it.")],
    rank: Annotated[int, typer.Option(min=0, help="Do shards RANK, RANK + WORLD, ... of every set.")],
    world: Annotated[int, typer.Option(min=1, help="Number of ranks.")],
    attacked_source: Annotated[str, typer.Option(help="Source of the attacked prompts.")] = "",
    retain_sources: Annotated[str, typer.Option(help="Sources of benign twins, refusals and chat.")] = "",
    ds_flags: Annotated[str, typer.Option(help="Flags for generate-ds.")] = "",
    dr_flags: Annotated[str, typer.Option(help="Flags for generate-dr.")] = "",
    safe_flags: Annotated[str, typer.Option(help="Flags for generate-adversarial-safe.")] = "",
    regenerate_flags: Annotated[str, typer.Option(help="Flags for regenerate.")] = "",
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="Flags for all of them, e.g. -- --model PATH.")
    ] = None,
) -> None:
    """Complete one rank's part of all prompts that some sets need; the commands of the sets then find it finished.

    Recorded sets need no completions.
    """
    own_flags = {"ds": ds_flags, "dr": dr_flags, "safe": safe_flags, "regenerate": regenerate_flags}
    commands = generating_commands(sets.split(), data_dir, attacked_source, retain_sources.split(), own_flags)
    group = cast(TyperGroup, typer.main.get_command(app))
    for name, *arguments in commands:
        arguments += [*(flags or []), "--rank", str(rank), "--world", str(world)]
        group.commands[name].main(arguments, prog_name=f"cb-datasets {name}", standalone_mode=False)


# Options of `generate` that a recipe may have nothing for.
MAY_BE_EMPTY = (
    *("--sets", "--attacked-source", "--retain-sources"),
    *("--ds-flags", "--dr-flags", "--safe-flags", "--regenerate-flags"),
)

# The sets that `regenerate` makes, and its flags for their folders.
_REGENERATED = {"harmful/agentdojo_failures": "--output-harmful", "retain/agentdojo_resisted": "--output-retain"}


def generating_commands(
    sets: list[str], data_dir: Path, attacked_source: str, retain_sources: list[str], flags: dict[str, str]
) -> list[list[str]]:
    """The commands that make these sets, as words.

    Args:
        sets (`list[str]`): Folders of sets below the data folder. Recorded sets need no command.
        data_dir (`Path`): The data folder.
        attacked_source (`str`): Source of flips and adversarial-safe rows.
        retain_sources (`list[str]`): Sources of benign twins, refusals and chat.
        flags (`dict[str, str]`): Flags of the commands, by `ds`, `dr`, `safe` and `regenerate`.

    Raises:
        ValueError: If there is no such set, or its name says another source.
    """
    from ..sets.recorded import RECORDED_SETS
    from ..sets.set_names import BENIGN_TWINS, FLIPS, set_name

    flips, twins = set_name(attacked_source, FLIPS), set_name((retain_sources or [""])[0], BENIGN_TWINS)
    own = ("tool_capability", "refusals", "chat")  # named for what they are, whatever their sources
    kinds = {f"retain/{twins}": BENIGN_TWINS} | {f"retain/{name}": name for name in own}
    known = [f"harmful/{flips}", *kinds, "retain/adversarial_safe", *RECORDED_SETS]
    if unknown := [name for name in sets if name not in known]:
        raise ValueError(f"No such set: {', '.join(unknown)}. With these sources there are {', '.join(known)}.")

    def words(flag: str, *values: Path | str) -> list[str]:
        return [word for value in values for word in (flag, str(value))]

    def command(name: str, sources: list[str], kind: str, *more: str) -> list[str]:
        folders = [data_dir / "traces" / source for source in sources]
        try:
            own = shlex.split(flags[kind])
        except ValueError as error:
            raise ValueError(f"--{kind}-flags: {flags[kind]!r} are no words of a command ({error}).") from None
        return [name, *words("--traces", *folders), *more, *own]

    commands = []
    if f"harmful/{flips}" in sets:
        output = words("--output", data_dir / "harmful" / flips)
        commands.append(command("generate-ds", [attacked_source], "ds", *output))
    if chosen := [kinds[name] for name in sets if name in kinds]:
        output = words("--output", data_dir / "retain")
        commands.append(command("generate-dr", retain_sources, "dr", *output, *words("--kinds", *chosen)))
    if "retain/adversarial_safe" in sets:
        output = words("--output", data_dir / "retain" / "adversarial_safe")
        commands.append(command("generate-adversarial-safe", [attacked_source], "safe", *output))
    if not set(sets).isdisjoint(_REGENERATED):
        # One command makes both, from the same completions.
        outputs = (word for name, flag in _REGENERATED.items() for word in words(flag, data_dir / name))
        commands.append(command("regenerate", ["agentdojo"], "regenerate", *outputs))
    return commands
