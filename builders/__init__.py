"""Data sources: one `datasets` builder per source, from raw files to traces.

    >>> from builders import load_source
    >>> load_source("agentdojo", data_dir="raw/agentdojo")["train"]["verdict"]
    ['benign_success', 'compromised', 'resisted', ...]

Every source yields the same row type, a trace (`builders/trace.py`). A record that does not become a trace is dropped
with a named reason. Which training or evaluation set a trace goes into is decided in `cb_datasets`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from .agentdojo import AgentDojo
from .agentharm import AgentHarm
from .base import TraceBuilder, content_hash, count_facts, source_hash
from .bfcl import BFCL
from .fujitsu import FujitsuB1, FujitsuB3, FujitsuB4
from .injecagent import InjecAgent
from .jsonl import JsonLines
from .llmail import LLMail
from .lookalike import Lookalike
from .tau2 import Tau2
from .ultrachat import UltraChat
from .xstest import XSTest, XSTestCompletions


SOURCES: dict[str, type[TraceBuilder]] = {
    "agentdojo": AgentDojo,
    "fujitsu_b1": FujitsuB1,
    "fujitsu_b3": FujitsuB3,
    "fujitsu_b4": FujitsuB4,
    "tau2": Tau2,
    "bfcl": BFCL,
    "ultrachat": UltraChat,
    "xstest": XSTest,
    "xstest_completions": XSTestCompletions,
    "agentharm": AgentHarm,
    "llmail": LLMail,
    "injecagent": InjecAgent,
    "jsonl": JsonLines,
    "lookalike": Lookalike,
}


def load_source(
    name: str,
    config: str | None = None,
    data_dir: str | Path | None = None,
    data_files: Sequence[str | Path] | None = None,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
    streaming: bool = False,
    split: Any = None,
    **config_fields: Any,
) -> datasets.DatasetDict | datasets.IterableDatasetDict | datasets.Dataset | datasets.IterableDataset:
    """Load the traces of a source, as `datasets.load_dataset` does: one dataset per split, or the split asked for.

    Args:
        name, config, data_dir, data_files, num_proc, cache_dir, config_fields: As for [`prepare_source`].
        streaming (`bool`, *optional*, defaults to `False`): Yield traces while the files are read, and cache nothing.
            Drops are logged and the verdicts are checked once all splits have been read to their end in one process.
        split (`str`, `datasets.Split` or `datasets.ReadInstruction`, *optional*): As for `datasets.load_dataset`:
            `"train"`, or, unless `streaming`, a part such as `"train[:10%]"` or a union, `"train+test"`.

    Returns:
        `DatasetDict` (`IterableDatasetDict` if `streaming`), or with a split `Dataset` (`IterableDataset`).
    """
    if streaming:
        return _make_builder(name, config, data_dir, data_files, cache_dir, config_fields).as_streaming_dataset(split)
    return prepare_source(name, config, data_dir, data_files, num_proc, cache_dir, **config_fields).as_dataset(split)


def prepare_source(
    name: str,
    config: str | None = None,
    data_dir: str | Path | None = None,
    data_files: Sequence[str | Path] | None = None,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
    **config_fields: Any,
) -> TraceBuilder:
    """Return a source's builder, with its traces built or loaded from the cache.

    `.as_dataset()` gives the traces, `.dropped()` the records that did not become one.

    Args:
        name (`str`): Name of the source, a key of `SOURCES`.
        config (`str`, *optional*): Name of one of the source's configurations, if it has several.
        data_dir (`str` or `Path`, *optional*): Folder with a local copy of the source's files. Without it, the
            source's `DOWNLOADS`, if it has any, are fetched into the cache.
        data_files (`Sequence[str | Path]`, *optional*): Paths of the input files, instead of `data_dir`.
        num_proc (`int`, *optional*): Number of processes, at most one per input file.
        cache_dir (`str` or `Path`, *optional*): Folder for the built traces; defaults to the cache of `datasets`.
        config_fields: Fields of the source's configuration, such as `attack_succeeded_when` of AgentDojo. Pass a field
            that names a file as a `Path`: its content then counts as input and is part of the cache key.

    Raises:
        ValueError: If there is no such source or configuration, an input is malformed or differs from the published
            file, no record became a trace, or two traces have the same id.
        FileNotFoundError: If an input is missing and cannot be fetched.
    """
    builder = _make_builder(name, config, data_dir, data_files, cache_dir, config_fields)
    try:
        builder.download_and_prepare(num_proc=num_proc)
    except DatasetGenerationError as error:
        # The message of `datasets` has no details; its cause names file and line. If the error was raised in another
        # process, all that is left of it is the text of the traceback.
        cause = error.__cause__
        in_traceback = re.search(r"^ValueError: (.+)$", str(cause), re.MULTILINE)
        if isinstance(cause, ValueError):
            raise cause from None
        if in_traceback:
            raise ValueError(in_traceback[1]) from None
        raise
    _check_traces(name, builder)
    return builder


def _make_builder(
    name: str,
    config: str | None,
    data_dir: str | Path | None,
    data_files: Sequence[str | Path] | None,
    cache_dir: str | Path | None,
    config_fields: dict[str, Any],
) -> TraceBuilder:
    if name not in SOURCES:
        raise ValueError(f"Unknown source {name!r}; known: {', '.join(SOURCES)}.")
    source = SOURCES[name]
    if config is not None:
        _check_config(name, source, config)
    inputs = _find_inputs(source, data_dir, data_files)
    is_local = data_dir is not None or data_files is not None
    revision = None if is_local else source.published_revision()
    config_files = [value for value in config_fields.values() if isinstance(value, Path)]
    digest = source_hash([*inputs, *config_files], source.PACKAGES)
    return source(
        config_name=config,
        data_dir=None if data_dir is None else str(data_dir),
        dataset_name=name,  # by default the module's name, which two sources of one module share
        hash=digest,
        cache_dir=None if cache_dir is None else str(cache_dir),
        inputs=tuple(map(str, inputs)),
        source_revision=revision or (f"local:{content_hash(inputs)}" if inputs else f"code:{digest}"),
        **config_fields,
    )


def _check_config(name: str, source: type[TraceBuilder], config: str) -> None:
    for pattern, reason in source.REFUSED_CONFIGS.items():
        if fnmatchcase(config, pattern):
            raise ValueError(f"{name} does not build {config!r}: {reason}.")
    configs = [known.name for known in source.BUILDER_CONFIGS]
    if config not in configs:
        raise ValueError(f"{name} has no configuration {config!r}; known: {', '.join(configs) or 'none'}.")


def _find_inputs(
    source: type[TraceBuilder], data_dir: str | Path | None, data_files: Sequence[str | Path] | None
) -> list[Path]:
    if data_files is not None:
        if data_dir is not None:
            raise ValueError("data_dir and data_files (--data-dir, --data-files) both name the input: leave one out.")
        files = sorted(Path(file) for file in data_files)
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{source.__name__}: {file} is not a file.")
        return files
    if not source.INPUTS:
        return []
    return source.find_inputs(source.default_data_dir() if data_dir is None else Path(data_dir))


def _check_traces(name: str, builder: TraceBuilder) -> None:
    if not all(split.num_examples for split in builder.info.splits.values()):
        drops = dict(Counter(drop.reason for drop in builder.dropped()))
        remedies = " ".join(["", *(builder.REMEDIES[reason] for reason in drops if reason in builder.REMEDIES)])
        files = _list_files(builder.inputs)
        raise ValueError(f"{name}: no record became a trace. Dropped: {drops}. Check {files}.{remedies}")
    traces = builder.as_dataset()
    # `datasets` does not check that keys are unique.
    for id, count in _repeated_ids(traces).items():
        files = _list_files(builder.inputs)
        raise ValueError(f"{name}: {count} traces have the id '{id}'. Remove the repeated records from {files}.")
    builder.check_facts(count_facts(builder, traces))


def _repeated_ids(traces: datasets.DatasetDict) -> Counter[str]:
    """Ids that occur more than once, with their counts."""
    # Eight bytes per id are kept in memory, not the strings. Equal hashes may be a coincidence, so the candidates are
    # counted by their full text.
    chunks = [chunk for split in traces.values() for chunk in split.data["id"].chunks]
    hashes = np.sort(np.fromiter((hash(id) for chunk in chunks for id in chunk.to_pylist()), dtype=np.int64))
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    counts = Counter(id for chunk in chunks if repeated for id in chunk.to_pylist() if hash(id) in repeated)
    return Counter({id: count for id, count in counts.items() if count > 1})


def _list_files(files: list[Path]) -> str:
    """Names of the first three files, and the total number if there are more."""
    names = [file.name for file in files[:3]]
    return ", ".join(names) + (f", ... ({len(files)} files)" if len(files) > len(names) else "")
