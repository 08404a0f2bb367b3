"""Serve base and breakers, run AgentDojo's benchmark against them, stop the server."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

from builders.agentdojo.suites import BENCHMARK_VERSION, agentdojo_yaml

from ..chat import DATE_STRING, template_hash
from ..generation.backend import context_length, end_token_ids, load_tokenizer, revision_of, weights_revision
from ..tool_calls import format_of
from .results import Selection, claim_folder
from .vllm_server import has_vllm, vllm_server


LOG_FILE = "server.log"


@dataclass(frozen=True)
class Served:
    """What is served, and how.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        adapters (`dict[str, str]`): Folders of the breakers' adapters, by name.
        engine (`str`, *optional*): `vllm` or `transformers`; vLLM where it is installed if left out.
        max_length (`int`, *optional*, defaults to `32768`): Most tokens of a prompt and its completion, if the model
            takes them.
        max_new_tokens (`int`, *optional*, defaults to `512`): Most tokens of a turn.
        tensor_parallel (`int`, *optional*, defaults to `1`): GPUs that share the weights (vLLM).
    """

    model: str
    adapters: dict[str, str]
    engine: str | None = None
    max_length: int = 32768
    max_new_tokens: int = 512
    tensor_parallel: int = 1


def run_agentdojo(served: Served, selection: Selection, folder: Path) -> None:
    """Run what is selected of the benchmark against base and breakers; finished runs are not run again.

    Args:
        served ([`Served`]): The models.
        selection ([`Selection`]): What is run.
        folder (`Path`): Where the runs go, and the server's log.

    Raises:
        ValueError: If AgentDojo is not installed, or has no such suite, attack or task; if the folder holds runs of
            other settings.
        RuntimeError: If the server dies.
    """
    engine = served.engine or ("vllm" if has_vllm() else "transformers")
    max_length = min(served.max_length, context_length(served.model))
    tokenizer = load_tokenizer(served.model)
    try:
        with agentdojo_yaml():
            from .agent import ServedModel
            from .benchmark import check_selection, run_benchmark

            check_selection(selection)
            ...
    except ImportError as error:
        raise ValueError(f"AgentDojo cannot be loaded ({error}): pip install 'cb-datasets[sources]'.") from error
