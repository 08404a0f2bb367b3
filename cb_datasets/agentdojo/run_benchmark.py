"""Serve the base model and breakers, run AgentDojo's benchmark against them, and stop the server."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from builders.agentdojo.suites import BENCHMARK_VERSION, agentdojo_yaml

from ..chat import DATE_STRING
from ..control_tokens import ControlTokens, control_tokens
from ..file_locks import locked
from ..formats import format_of
from ..generation.backend import (
    BASE,
    adapter_revision,
    check_adapters,
    context_length,
    end_token_ids,
    load_models,
    revision_of,
)
from ..generation.tokenizer import check_model, load_tokenizer
from ..public_name import model_label, public_name
from ..stop_signals import stop_signals
from ..template_probe import template_hash
from .live_runs import defended_name
from .results import SETTINGS_FILE, BenchmarkSelection, check_defenses, claim_folder
from .vllm_server import has_vllm, vllm_server


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..generation import Backend
    from .agent import ServedModel
    from .benchmark import Contestant

LOG_FILE = "server.log"

# How the text of a run that spells a control token reaches the model, see `control_tokens.py`. vLLM's chat API takes
# text only; the server over the Transformers backend encodes prompts with our renderer.
_SPELLED_CONTROL_TOKENS = {"vllm": "broken by U+200B", "transformers": "encoded as plain text"}


@dataclass(frozen=True)
class ServedModels:
    """The models to serve, and the options of the server.

    Args:
        model (`str`): Folder of the base model, or its Hub id.
        adapters (`dict[str, str]`): Folders of the breakers' adapters, by name.
        engine (`str`, *optional*): `vllm` or `transformers`. Defaults to vLLM if it is installed.
        max_length (`int`, *optional*, defaults to `32768`): Maximum number of tokens of a prompt and its completion,
            lowered to the model's own limit.
        max_new_tokens (`int`, *optional*, defaults to `512`): Maximum number of tokens of a turn.
        tensor_parallel (`int`, *optional*, defaults to `1`): Number of GPUs to split the weights over (vLLM only).
        tokenizer_folder (`str`, *optional*): Folder of the tokenizer, where it is not the model's own.
    """

    model: str
    adapters: dict[str, str]
    engine: str | None = None
    max_length: int = 32768
    max_new_tokens: int = 512
    tensor_parallel: int = 1
    tokenizer_folder: str | None = None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The models' tokenizer."""
        return load_tokenizer(self.tokenizer_folder or self.model)

    @property
    def names(self) -> list[str]:
        """Names of the models: the base and the breakers."""
        return [BASE, *self.adapters]


def run_agentdojo(served: ServedModels, selection: BenchmarkSelection, folder: Path) -> None:
    """Run the selected part of the benchmark against base and breakers; finished runs are skipped.

    Args:
        served ([`ServedModels`]): The models.
        selection ([`BenchmarkSelection`]): The part of the benchmark to run.
        folder (`Path`): Output folder of the runs and of the server's log.

    Raises:
        FileNotFoundError: If there is no such model or adapter.
        ValueError: If AgentDojo is not installed, or has no such suite, attack or task; if the folder holds runs of
            other settings.
        BlockingIOError: If another process runs the benchmark in that folder.
        ConnectionError: If the server dies or fails. Finished runs are kept.
    """
    try:
        with agentdojo_yaml():
            from .benchmark import planned_runs, run_benchmark
            from .own_suites import REFERENCE, import_suites, write_reference

            # Names and paths are checked before the folder is written or a server is started.
            own_suites = import_suites(selection.suite_module) if selection.suite_module else []
            if not selection.suites:
                selection = replace(selection, suites=tuple(own_suites) or ("banking",))
            runs = planned_runs(selection)
            check_defenses(selection.defenses)
            check_model(served.model)
            check_adapters(served.adapters.values(), served.model)
            check_engine(served)
            settings = _settings(served, selection)
            # Two processes would make the same runs, and each remove the other's unfinished ones.
            with stop_signals(), locked(folder / SETTINGS_FILE, wait=False):
                claim_folder(folder, settings)
                used = {run.suite.name: run.suite for run in runs}
                write_reference([used[name] for name in own_suites if name in used], folder / REFERENCE)
                with serve_models(served, folder / LOG_FILE) as url:
                    run_benchmark(runs, selection, _contestants(served, selection, url), folder)
    except ImportError as error:
        raise ValueError(f"AgentDojo cannot be loaded ({error}): pip install 'cb-datasets[agentdojo]'.") from error


def _contestants(served: ServedModels, selection: BenchmarkSelection, url: str) -> "dict[str, Contestant]":
    """The served models, and the base model with each defence."""
    from .benchmark import Contestant

    models = pipeline_elements(served, url)
    return {
        **{name: Contestant(model) for name, model in models.items()},
        **{defended_name(defense): Contestant(models[BASE], defense) for defense in selection.defenses},
    }


def pipeline_elements(served: ServedModels, url: str) -> "dict[str, ServedModel]":
    """Pipeline elements of AgentDojo for the models of a server, by name.

    Args:
        served ([`ServedModels`]): The models.
        url (`str`): Base URL of the server's API.
    """
    from .agent import ServedModel

    tokenizer = served.tokenizer
    control = control_tokens_to_break(served)
    options = (served.max_new_tokens, end_token_ids(tokenizer), format_of(tokenizer), control)
    return {name: ServedModel(url, name, *options) for name in served.names}


def _settings(served: ServedModels, selection: BenchmarkSelection) -> dict:
    """Everything the outcome of a run depends on, apart from its tasks and attack."""
    revision = revision_of(served.model)
    return {
        "max_steps": selection.max_steps,
        "model": model_label(public_name(served.model), revision),
        "revision": revision,
        "adapters": {name: adapter_revision(folder) for name, folder in served.adapters.items()},
        "engine": _engine(served),
        "max_length": _max_length(served),
        "max_new_tokens": served.max_new_tokens,
        "template_hash": template_hash(served.tokenizer),
        "spelled_control_tokens": _SPELLED_CONTROL_TOKENS[_engine(served)],
        "date_string": DATE_STRING,
        "benchmark": BENCHMARK_VERSION,
        "agentdojo": version("agentdojo"),
    }


def check_engine(served: ServedModels) -> None:
    """Check the engine before a server starts.

    Raises:
        ValueError: If vLLM is not installed, or if the chat template can join text to a control token.
    """
    if _engine(served) == "vllm" and not has_vllm():
        raise ValueError("vLLM is not installed: pip install 'cb-datasets[vllm]', or use --backend transformers.")
    control_tokens_to_break(served)


def control_tokens_to_break(served: ServedModels) -> ControlTokens | None:
    """The control tokens of vLLM's tokenizer, which also reads those that a tool result spells.

    Raises:
        ValueError: If the chat template can join text to a control token.
    """
    if _engine(served) != "vllm":
        return None
    control = control_tokens(served.tokenizer)
    control.break_in([])  # before a server starts
    return control


def _engine(served: ServedModels) -> str:
    return served.engine or ("vllm" if has_vllm() else "transformers")


def _max_length(served: ServedModels) -> int:
    return min(served.max_length, context_length(served.model))


@contextmanager
def serve_models(served: ServedModels, log: Path) -> Iterator[str]:
    """Serve the models, and yield the base URL of the API.

    Args:
        served ([`ServedModels`]): The models.
        log (`Path`): File for the output of vLLM's server.
    """
    with ExitStack() as stack:
        if _engine(served) == "vllm":
            tokenizer, max_length = served.tokenizer, _max_length(served)
            yield stack.enter_context(
                vllm_server(served.model, served.adapters, tokenizer, max_length, log, served.tensor_parallel)
            )
        else:
            from ..generation.transformers_backend import TransformersBackend
            from .chat_server import chat_server

            models = load_models(
                lambda adapter, _: TransformersBackend(served.model, adapter, tokenizer=served.tokenizer_folder),
                served.adapters,
            )
            yield stack.enter_context(chat_server(cast("dict[str, Backend]", models), _max_length(served)))
