"""Sources: raw files in, traces out. One module per source, each a `datasets` builder.

    >>> from builders import load_source
    >>> load_source("agentdojo", data_dir="raw/agentdojo")["train"]["verdict"]
    ['benign_success', 'compromised', 'resisted', ...]

Every source yields the same row, a trace (`builders/trace.py`), and gives every record that does not become one a
named reason. What a trace is good for is decided elsewhere.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from .agentdojo import AgentDojo
from .base import TraceBuilder, find_inputs, source_hash
from .fujitsu import FujitsuB4
from .lookalike import Lookalike
from .xstest import XSTest


SOURCES: dict[str, type[TraceBuilder]] = {
    "agentdojo": AgentDojo,
    "fujitsu_b4": FujitsuB4,
    "xstest": XSTest,
    "lookalike": Lookalike,
}


def load_source(
    name: str,
    config: str | None = None,
    data_dir: str | Path | None = None,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
    **config_fields: Any,
) -> datasets.DatasetDict:
    """The traces of a source, by split. The arguments are those of [`prepare_source`]."""
    return prepare_source(name, config, data_dir, num_proc, cache_dir, **config_fields).as_dataset()


def prepare_source(
    name: str,
    config: str | None = None,
    data_dir: str | Path | None = None,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
    **config_fields: Any,
) -> TraceBuilder:
    """A source's builder with its traces built or found in the cache.

    `.as_dataset()` gives the traces, `.dropped()` the records that did not become one.

    Args:
        name (`str`): Name of the source, a key of `SOURCES`.
        config (`str`, *optional*): Name of one of the source's configurations, if it has several.
        data_dir (`str` or `Path`, *optional*): Folder of the source's files.
        num_proc (`int`, *optional*): Number of processes, at most one per input file.
        cache_dir (`str` or `Path`, *optional*): Where built traces are kept; defaults to the cache of `datasets`.
        config_fields: Fields of the source's configuration, such as `attack_succeeded_when` of AgentDojo.

    Raises:
        ValueError: If there is no such source, an input is malformed, no record became a trace, or two have one id.
        FileNotFoundError: If an input is missing.
    """
    if name not in SOURCES:
        raise ValueError(f"Unknown source {name!r}; known: {', '.join(SOURCES)}.")
    inputs = find_inputs(SOURCES[name], None if data_dir is None else Path(data_dir))
    builder = SOURCES[name](
        config_name=config,
        data_dir=None if data_dir is None else str(data_dir),
        dataset_name=name,  # the library would take the module's name, which configurations of one module share
        hash=source_hash(inputs),
        cache_dir=None if cache_dir is None else str(cache_dir),
        **config_fields,
    )
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except DatasetGenerationError as error:
        # The library's message says nothing; its cause names file and line, from another process only as a traceback.
        cause = error.__cause__
        reported = re.search(r"^ValueError: (.+)$", str(cause), re.MULTILINE)
        if isinstance(cause, ValueError):
            raise cause from None
        if reported:
            raise ValueError(reported[1]) from None
        raise
    _check_traces(name, builder)
    return builder


def _check_traces(name: str, builder: TraceBuilder) -> None:
    if not all(split.num_examples for split in builder.info.splits.values()):
        drops = dict(Counter(drop.reason for drop in builder.dropped()))
        raise ValueError(f"{name}: no record became a trace. Dropped: {drops}. Check the input files.")
    # `datasets` accepts repeated keys without a word.
    ids = Counter(id for split in builder.as_dataset().values() for id in split["id"])
    [(id, count)] = ids.most_common(1)
    if count > 1:
        raise ValueError(f"{name}: {count} traces have the id {id!r}. Remove the repeated records from the inputs.")
