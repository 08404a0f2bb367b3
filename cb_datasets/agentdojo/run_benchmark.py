"""Serve a base model and breakers, run AgentDojo's benchmark against them, stop the server."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

from builders.agentdojo.suites import BENCHMARK_VERSION, agentdojo_yaml

from ..chat import DATE_STRING, template_hash
from ..formats import format_of
from ..generation.backend import (
    BASE,
    adapter_revision,
    context_length,
    end_token_ids,
    load_models,
    load_tokenizer,
    revision_of,
)
from .results import Selection, claim_folder
from .vllm_server import has_vllm, vllm_server


if TYPE_CHECKING:
    from ..generation import Backend

LOG_FILE = "server.log"


@dataclass(frozen=True)
class ServedModels:
    """What is served, and how.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        adapters (`dict[str, str]`): Folders of the breakers' adapters, by name.
        engine (`str`, *optional*): `vllm` or `transformers`; vLLM where it is installed if left out.
        max_length (`int`, *optional*, defaults to `32768`): Most tokens of a prompt and its completion, if the model
            takes so many.
        max_new_tokens (`int`, *optional*, defaults to `512`): Most tokens of a turn.
        tensor_parallel (`int`, *optional*, defaults to `1`): GPUs that share the weights (vLLM).
    """

    model: str
    adapters: dict[str, str]
    engine: str | None = None
    max_length: int = 32768
    max_new_tokens: int = 512
    tensor_parallel: int = 1

    @property
    def names(self) -> list[str]:
        """The models: the base and the breakers."""
        return [BASE, *self.adapters]


def run_agentdojo(served: ServedModels, selection: Selection, folder: Path) -> None:
    """Run what is selected of the benchmark against base and breakers; finished runs are not run again.

    Args:
        served ([`ServedModels`]): The models.
        selection ([`Selection`]): What is run.
        folder (`Path`): Where the runs go, and the server's log.

    Raises:
        FileNotFoundError: If there is no such model or adapter.
        ValueError: If AgentDojo is not installed, or has no such suite, attack or task; if the folder holds runs of
            other settings.
        ConnectionError: If the server dies or fails. The runs that are over are kept.
    """
    try:
        with agentdojo_yaml():
            from .agent import ServedModel
            from .benchmark import planned_runs, run_benchmark

            runs = planned_runs(selection)
            end_ids = end_token_ids(load_tokenizer(served.model))
            claim_folder(folder, _settings(served))
            with _stopped_by_signals(), _server(served, folder / LOG_FILE) as url:
                models = {name: ServedModel(url, name, served.max_new_tokens, end_ids) for name in served.names}
                run_benchmark(runs, selection.attack, models, folder)
    except ImportError as error:
        raise ValueError(f"AgentDojo cannot be loaded ({error}): pip install 'cb-datasets[sources]'.") from error


def _settings(served: ServedModels) -> dict:
    """What decides how a run goes."""
    return {
        "model": served.model,
        "revision": revision_of(served.model),
        "adapters": {name: adapter_revision(folder) for name, folder in served.adapters.items()},
        "engine": _engine(served),
        "max_length": _max_length(served),
        "max_new_tokens": served.max_new_tokens,
        "template_hash": template_hash(load_tokenizer(served.model)),
        "date_string": DATE_STRING,
        "benchmark": BENCHMARK_VERSION,
        "agentdojo": version("agentdojo"),
    }


def _engine(served: ServedModels) -> str:
    return served.engine or ("vllm" if has_vllm() else "transformers")


def _max_length(served: ServedModels) -> int:
    return min(served.max_length, context_length(served.model))


@contextmanager
def _server(served: ServedModels, log: Path) -> Iterator[str]:
    """Address of a chat server with the models."""
    with ExitStack() as stack:
        if _engine(served) == "vllm":
            tool_format = format_of(load_tokenizer(served.model).chat_template)
            lengths = _max_length(served)
            yield stack.enter_context(
                vllm_server(served.model, served.adapters, tool_format.name, lengths, log, served.tensor_parallel)
            )
        else:
            from ..generation.transformers_backend import TransformersBackend
            from .chat_server import chat_server

            models = load_models(lambda adapter, _: TransformersBackend(served.model, adapter), served.adapters)
            yield stack.enter_context(chat_server(cast("dict[str, Backend]", models), _max_length(served)))


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """A termination ends the block as Ctrl-C does, so that the server in it is stopped too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
