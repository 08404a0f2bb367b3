"""A breaker as a pipeline for AgentDojo, for code that runs the benchmark by itself.

    from cb_datasets.agentdojo.pipeline import breaker_pipeline

    with breaker_pipeline("path/to/model", adapter="path/to/adapter") as pipeline:
        benchmark_suite_with_injections(pipeline, suite, load_attack("direct", suite, pipeline), logdir, False)

The model is served while the block lasts. The module imports AgentDojo.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentdojo.agent_pipeline import AgentPipeline

from ..generation.backend import BASE
from .agent import make_agent
from .live_runs import agent_name
from .run_benchmark import LOG_FILE, ServedModels, check_engine, pipeline_elements, serve_models


@contextmanager
def breaker_pipeline(
    model: str,
    adapter: str | None = None,
    engine: str | None = None,
    system_message: str | None = None,
    max_steps: int = 15,
    max_new_tokens: int = 512,
) -> Iterator[AgentPipeline]:
    """Serve a model, and yield AgentDojo's default pipeline around it.

    Args:
        model (`str`): Folder of the base model or of merged weights, or a Hub id.
        adapter (`str`, *optional*): Folder of the breaker's adapter.
        engine (`str`, *optional*): `vllm` or `transformers`. Defaults to vLLM if it is installed.
        system_message (`str`, *optional*): Instead of AgentDojo's own.
        max_steps (`int`, *optional*, defaults to `15`): Maximum number of turns with calls; then a run ends.
        max_new_tokens (`int`, *optional*, defaults to `512`): Maximum number of tokens of a turn.

    Raises:
        FileNotFoundError: If there is no such model or adapter.
        ValueError: If vLLM is asked for and is not installed.
        ConnectionError: If the server does not come up.
    """
    name = BASE if adapter is None else "breaker"
    served = ServedModels(model, {} if adapter is None else {name: adapter}, engine, max_new_tokens=max_new_tokens)
    check_engine(served)
    with tempfile.TemporaryDirectory() as folder, serve_models(served, Path(folder) / LOG_FILE) as url:
        yield make_agent(agent_name(name), pipeline_elements(served, url)[name], system_message, max_steps)
