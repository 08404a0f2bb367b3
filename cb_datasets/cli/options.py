"""Options shared by several commands, and a decorator with which a command takes a group of them.

    @app.command()
    @takes(GenerationOptions)
    def generate_ds(traces: TracesOption, generation: GenerationOptions) -> None: ...

`generation` is one argument to the function, and one option for each of its fields to the command line.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .numbers import finite
from .paths import cache_folder, curves_file, input_path, model_path, output_path, own_or_file, result_file


if TYPE_CHECKING:
    from ..generation import Backend, Sampling
    from ..generation.server_backend import ServerBackend
    from ..generation.transformers_backend import TransformersBackend
    from ..generation.vllm_backend import VllmBackend
    from ..sets.target_model import TargetModel

TracesOption = Annotated[
    Path,
    typer.Option(
        "--traces",
        "--b4-data",
        callback=input_path,
        help="Folder of a source's traces, with train/ and eval/, or B4's own file.",
    ),
]
ModelOption = Annotated[str, typer.Option(callback=model_path, help="Folder of the target model, or its Hub id.")]
AdapterOption = Annotated[str, typer.Option(callback=model_path, help="Folder of the breaker's adapter.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        callback=model_path, help="Folder that `cb-datasets tokenizer` wrote; by default the model's own tokenizer."
    ),
]
OutputOption = Annotated[
    Path, typer.Option(callback=output_path, help="Folder of the set to write, or a .jsonl file.")
]
# As large as all libraries take.
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all sampling in this step.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, callback=finite, help="Sampling temperature; 0 is greedy.")]
TopPOption = Annotated[float, typer.Option(min=0.0, max=1.0, callback=finite, help="Nucleus sampling.")]
NumSamplesOption = Annotated[int, typer.Option(min=1, help="Completions per prompt.")]
MaxEachOption = Annotated[int | None, typer.Option(min=1, help="Maximum number of samples per set.")]
MaxLengthOption = Annotated[int, typer.Option(min=1, help="Maximum number of tokens of a row.")]
NumProcOption = Annotated[int | None, typer.Option(min=1, help="Number of processes; by default one for each core.")]
FitOption = Annotated[
    bool, typer.Option(help="Prune unused tools and older tool results from contexts that are too long.")
]
ExtraAdaptersOption = Annotated[
    list[str] | None,
    typer.Option(callback=model_path, metavar="NAME=PATH", help="An additional adapter to compare; repeatable."),
]
DiagnosticsOption = Annotated[
    Path | None,
    typer.Option(callback=result_file, help="Cosines written by `python -m trainers.diagnostics`, to be plotted."),
]
CurvesOption = Annotated[
    Path | None, typer.Option(callback=curves_file, help="The trainer's plot of its run, curves.png.")
]
ToolSchemaOption = Annotated[
    Path | None,
    typer.Option(
        callback=own_or_file,
        help="System prompt and tools that B4 prompts must carry: a file, or the package's b4_standard_v1.",
    ),
]


class BackendName(StrEnum):
    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    SERVER = "server"


@dataclass
class Engine:
    """Options of the engine that runs the model."""

    model: ModelOption
    tokenizer: TokenizerOption = None
    work_dir: Annotated[
        Path,
        typer.Option(callback=cache_folder, help="Folder of finished shards; a rerun completes only missing ones."),
    ] = Path("data/completions")
    backend: Annotated[BackendName, typer.Option(help="vllm on GPUs; server: a model served by `vllm serve`.")] = (
        BackendName.TRANSFORMERS
    )
    server_url: Annotated[str, typer.Option(help="Address of --backend server.")] = "http://127.0.0.1:8000"
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share the model (vllm).")] = 1
    load_in_8bit: Annotated[bool, typer.Option(help="Load the weights in 8 bits; needs a GPU.")] = False
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences per forward pass, prompts times samples (transformers).")
    ] = 64
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum length of a completion. A longer one is cut: dropped from training sets, counted as it is "
            "in evaluations.",
        ),
    ] = 256

    def load(self) -> "Backend":
        """The model, loaded."""
        return self.serve(self.model, self._tokenizer) if self.backend == BackendName.SERVER else self._load(None, [])

    def load_all(self, adapters: dict[str, str]) -> "dict[str, Backend]":
        """The base model and breakers by name, on weights that are loaded once.

        Args:
            adapters (`dict[str, str]`): Folder of each breaker's adapter; with `--backend server`, the name it is
                served under.

        Raises:
            FileNotFoundError: If one is no folder of an adapter; before the model is loaded.
        """
        from ..generation.backend import BASE, check_adapters, load_models

        if self.backend == BackendName.SERVER:
            models = {BASE: self.model} | adapters
            return {name: self.serve(served, self._tokenizer) for name, served in models.items()}
        check_adapters(adapters.values(), self.model)
        return cast("dict[str, Backend]", load_models(self._load, adapters))

    @property
    def _tokenizer(self) -> str:
        return self.tokenizer or self.model

    def serve(self, name: str, tokenizer: str) -> "ServerBackend":
        """A model that is served at `--server-url` under this name."""
        from ..generation.server_backend import ServerBackend

        if not self.server_url.startswith(("http://", "https://")):
            raise ValueError(
                f"--server-url: {self.server_url!r} is no address of a server, such as http://127.0.0.1:8000."
            )
        return ServerBackend(self.server_url, name, tokenizer)

    def _load(self, adapter: str | None, others: list[str]) -> "TransformersBackend | VllmBackend":
        """The model with an adapter, and room for others."""
        if self.backend == BackendName.VLLM:
            from ..generation.vllm_backend import VllmBackend

            return VllmBackend(
                self.model,
                adapter,
                self.tensor_parallel,
                self.load_in_8bit,
                extra_adapters=others,
                tokenizer=self.tokenizer,
            )
        from ..generation.transformers_backend import TransformersBackend

        return TransformersBackend(self.model, adapter, self.batch_size, self.load_in_8bit, self.tokenizer)


@dataclass
class GenerationOptions(Engine):
    """Options of the engine, and of the prompts to complete."""

    max_prompts: Annotated[int | None, typer.Option(min=1, help="Maximum number of train prompts.")] = None
    max_eval_prompts: Annotated[int | None, typer.Option(min=1, help="Maximum number of eval prompts.")] = None
    per_tool: Annotated[
        int, typer.Option(min=0, help="Minimum number of prompts per expected tool, where available.")
    ] = 0
    system_modifier: Annotated[str | None, typer.Option(help="A paragraph added to every system prompt.")] = None
    tool_schema: ToolSchemaOption = None
    rank: Annotated[
        int | None, typer.Option(min=0, help="Do only shards RANK, RANK + WORLD, ...; no set is written.")
    ] = None
    world: Annotated[int, typer.Option(min=1, help="Number of ranks.")] = 1
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished shards; always on.")] = True
    dry_run: Annotated[bool, typer.Option(help="Show the plan and its cost; load no model and write nothing.")] = False
    seed: SeedOption = 0

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank >= self.world:
            raise ValueError(f"--rank {self.rank}: ranks count from 0 and end below --world {self.world}.")

    def sampling(self, temperature: float, top_p: float, num_samples: int) -> "Sampling":
        """Sampling parameters."""
        from ..generation import Sampling

        return Sampling(temperature, top_p, self.max_new_tokens, num_samples, self.seed)

    @property
    def shards(self) -> str | None:
        """The shards of this rank; `None` where there is only one."""
        return None if self.rank is None else f"{self.rank}, {self.rank + self.world}, ..."

    @property
    def limits(self) -> dict[str, int | None]:
        return {"train": self.max_prompts, "eval": self.max_eval_prompts}

    def target_model(self) -> "TargetModel":
        """The model, loaded, with these options."""
        from ..sets.target_model import TargetModel

        # Read first: a wrong path is an error before a model loads.
        asset = read_tool_schema(self.tool_schema) if self.tool_schema else None
        return TargetModel(
            self.load(),
            self.work_dir,
            self.limits,
            self.per_tool,
            self.rank,
            self.world,
            self.system_modifier,
            asset,
        )


def read_tool_schema(path: Path) -> dict:
    """The asset that `--tool-schema` names: a file, or one of the package's by its name.

    Raises:
        FileNotFoundError: If there is no such file; the message names the package's own.
        ValueError: If it is no object with a system prompt and tools.
    """
    import builders

    from ..files import read_json

    assets = {asset.stem: asset for asset in Path(builders.__file__).parent.glob("assets/b4_*.json")}
    if path.is_file():
        asset = read_json(path)
        if not isinstance(asset.get("system_prompt"), str) or not isinstance(asset.get("tools"), list):
            raise ValueError(f"--tool-schema: {path} needs a text `system_prompt` and a list `tools`. Add them.")
        return asset
    if str(path) not in assets:
        own = ", ".join(f"--tool-schema {name}" for name in assets)
        raise FileNotFoundError(f"There is no file {path}. The package's own: {own}.")
    return read_json(assets[str(path)])


def takes(options: type) -> Callable[[Callable], Callable]:
    """Decorator: the command takes all fields of a dataclass of options as one argument."""

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command)
        [name] = [own.name for own in signature.parameters.values() if own.annotation is options]
        parts = [_flag(own) for own in fields(options)]
        others = [own for own in signature.parameters.values() if own.name != name]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = options(**{part.name: values.pop(part.name) for part in parts})
            command(**values, **{name: given})

        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*others, *parts)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _flag(option: Field) -> inspect.Parameter:
    """A field as a parameter that Typer understands: annotated already, or with `help` and bounds in its metadata."""
    default = inspect.Parameter.empty if option.default is MISSING else option.default
    annotation = option.type
    if option.metadata:
        check = finite if option.type is float else None
        annotation = Annotated[option.type, typer.Option(**option.metadata, callback=check)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
