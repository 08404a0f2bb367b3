"""Wrong invocations of every command: each ends in one error that names the flag, file or row, and writes nothing.

Each command has an invocation that goes through, up to the loading of weights. The wrong ones differ from it in one
option, and are made from the options that the command declares, so that a new option has them too.
"""

import inspect
import re
import shutil
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest import mock

import pytest
import typer

from cb_datasets.cli import app, paths
from tests.cb_datasets import command as in_process

from .test_paths import COMMANDS
from .wrong_inputs import KINDS, broken, write_broken, write_whole


class Loaded(BaseException):
    """Raised in the place of loading weights: whatever is wrong should have been found before."""


TRACES = "whole/data/traces/lookalike"
MODEL = {"model": "whole/tiny_agent"}
BREAKER = {**MODEL, "adapter": "whole/adapter"}
GENERATED = {"traces": TRACES, "output": "out", **MODEL}
ID = "retain/chat/0"  # of a sample in whole/data

# By command: the options of an invocation that goes through.
RIGHT: dict[str, dict[str, Any]] = {
    "ingest": {"source": "jsonl", "data_files": "whole/logs.jsonl", "output": "out"},
    "sources": {"traces": TRACES, "output": "out"},
    "collect": {"subset": "retain/jsonl_chat", "traces": "whole/logs", "output": "out", **MODEL},
    "tokenizer": {**MODEL, "output": "out"},
    "generate-eval": {"traces": TRACES, "output": "out"},
    "generate-ds": GENERATED,
    "generate-dr": GENERATED,
    "generate-adversarial-safe": GENERATED,
    "regenerate": {
        **{"traces": TRACES, "output_harmful": "out/agentdojo_failures"},
        **{"output_retain": "out/agentdojo_resisted", **MODEL},
    },
    "generate": {
        **{"sets": "harmful/lookalike_flips", "data_dir": "whole/data", "rank": 0, "world": 1},
        **{"attacked_source": "lookalike", "retain_sources": "lookalike", "ds_flags": "--model whole/tiny_agent"},
    },
    "evaluate": {**BREAKER, "prompts": "whole/data/prompts", "output": "out"},
    "report": {"results": "whole/report/results.json", "output": "out"},
    "ability": {**BREAKER, "data": "whole/data/stage2/eval", "output": "out"},
    "validate": {"folders": "whole/data/harmful/b4_flips", "quarantine": "out", "output": "out.json"},
    "quality-gates": {
        **{"ds": "whole/data/harmful", "dr": "whole/data/retain", "output": "out.json", "min_adversarial_safe": 1},
        **{"min_categories": 1, "max_category_share": 1, "min_retain_tools": 1, "max_family_share": 1},
        **{"max_injection_task_share": 1, "max_goal_share": 1},
    },
    "preflight": {"train_data": "whole/data/stage2", "output": "out.json", **MODEL},
    "explain": {"id": ID, "data_dir": "whole/data"},
    "merge": {
        **{"harmful_dir": "whole/data/harmful", "retain_dir": "whole/data/retain", "min_adversarial_safe": 1},
        **{"output": "out/stage2"},
    },
    "export": {"folder": "whole/data/retain/adversarial_safe", "output": "out.jsonl"},
    "import": {"file": "whole/samples.jsonl", "output": "out"},
    "attack": {**BREAKER, "prompts": "whole/data/prompts", "output": "out"},
    "agentdojo": {**MODEL, "output": "out", "backend": "transformers"},
    "merge-adapter": {**BREAKER, "prompts": "whole/data/prompts", "output": "out"},
    "push": {"repo": "owner/name", "data": "whole/data", "output": "out", "dry_run": True},
    "publish-source": {
        **{"name": "jsonl", "repo": "owner/name", "data_files": "whole/logs.jsonl", "licence": "mit"},
        **{"output": "out", "dry_run": True},
    },
    "push-model": {
        **{"repo": "owner/name", "adapter": "whole/adapter", "report": "whole/report", "output": "out"},
        "dry_run": True,
    },
    "view": {"path": "whole/data", "marks": "out.parquet", "port": 0},
}

# What an option needs beside it.
WITH = {
    ("generate-adversarial-safe", "twins"): {"fill": "twin"},
    ("attack", "data"): {"tamper": True},
}

# By option, or command and option: the kind of what it reads.
KIND_OF = {
    "model": "model",
    "tokenizer": "tokenizer",
    "adapter": "adapter",
    "also": "adapter",
    "traces": "traces",
    ("collect", "traces"): "recorded",
    ("sources", "traces"): "report",
    "prompts": "prompts",
    "folders": "samples",
    "folder": "samples",
    "ds": "samples",
    "dr": "samples",
    "harmful_dir": "samples",
    "retain_dir": "samples",
    "twins": "samples",
    "train_data": "merged",
    ("attack", "data"): "merged",
    ("ability", "data"): "held_out",
    "quarantine": "quarantine",
    "marks": "marks",
    "results": "results",
    "diagnostics": "cosines",
    "sources": "sheet",
    "tool_schema": "schema",
    "data_files": "logs",
    "curves": "curves",
    "chat_template": "template",
    "file": "lines",
    "data_dir": "folder",
    "path": "folder",
    ("push-model", "report"): "evaluation",
    ("ingest", "tools"): "schema",
}

# By option: texts that it cannot be. An empty text is another one for each.
WRONG_TEXTS: dict[str, list[str]] = {
    "source": ["nose", "LOOKALIKE"],
    "name": ["nose"],
    "config": ["nose"],
    "held_out": ["nose"],
    "licence": ["nose"],
    "layout": ["nose"],
    "verdict": ["nose"],
    "tasks": ["nose"],
    "task": ["nose", "../traces"],
    "kinds": ["nose"],
    "subset": ["nose", "harmful/nose", "jsonl_chat"],
    "tool_format": ["nose"],
    "template_setting": ["nose", "=1", "nose=1", "a b=1"],
    "chat_template": ["nose"],
    "fill": ["nose"],
    "sets": ["nose", "harmful/nose"],
    "attacked_source": ["nose"],
    "retain_sources": ["nose"],
    "ds_flags": ["--nose", "nose", "'", "--model"],
    "id": ["nose"],
    "quota": ["nose", "nose=1", "refusal", "refusal=", "refusal=many", "refusal=-1", "refusal=1.5"],
    "weight": ["nose", "nose=1", "refusal", "refusal=", "refusal=much", "refusal=-1", "refusal=nan"],
    "budget": ["nose", "nose.steps=1", "suffix", "suffix.nose=1", "suffix.steps=", "suffix.steps=many"],
    "repo": ["nose", "owner/", "/name", "a/b/c", "../x", "https://huggingface.co/owner/name"],
    "base_model": ["nose", "../x"],
    "dataset": ["nose", "a/b/c@main"],
    "revision": ["a b", "../x"],
    "tag": ["a b", "../x"],
    "server_url": ["nose", "ftp://127.0.0.1"],
    "refusal_judge": ["nose"],
    "lm_eval": ["nose", "nose.yaml"],
    "suite": ["nose"],
    "suite_module": ["nose", "nose.nose", "..", "cb_datasets/files.py"],
    "attack": ["nose"],
    "user_task": ["nose"],
    "injection_task": ["nose"],
    "defense": ["nose"],
    "also": ["nose", "=whole/adapter", "x=", "base=whole/adapter", "breaker=whole/adapter", "settings=whole/adapter"],
}
# Options that take any text, with the reason.
ANY_TEXT = {
    "own_agent": "a name in the traces",
    "system_modifier": "a paragraph",
    "warning": "a paragraph",
    "dr_flags": "read for sets of Dr only",
    "safe_flags": "likewise",
    "regenerate_flags": "likewise",
    "flags": "see ds_flags",
}


class Case(NamedTuple):
    """A wrong invocation: its command, what is wrong, the words of the command line, and what the error names."""

    command: str
    wrong: str
    words: list[str]
    named: str


def words_of(command: str, values: dict[str, Any]) -> list[str]:
    """The words of a command line. A list gives its option once for each value."""
    words: list[str] = []
    for name, value in values.items():
        option = PARAMETERS[command][name]
        for each in value if isinstance(value, list) else [value]:
            if option.param_type_name == "argument":
                words.append(str(each))
            else:
                words += [option.opts[0]] if each is True else [option.opts[0], str(each)]
    return words


PARAMETERS = {
    name: {option.name: option for option in command.params}
    for name, command in typer.main.get_command(app).commands.items()
}


def cases_of(command: str) -> Iterator[Case]:
    """All wrong invocations of a command."""
    right = RIGHT[command]
    for option in inspect.signature(COMMANDS[command]).parameters.values():
        name, (kind, info) = option.name, _declared(option.annotation)
        parameter = PARAMETERS[command][name]
        flag = parameter.opts[0] if parameter.param_type_name == "option" else name
        near = right | WITH.get((command, name), {})

        def case(wrong: str, value: Any, named: str = flag, name: str = name, near: dict = near) -> Case:
            return Case(command, f"{flag}: {wrong}", words_of(command, near | {name: value}), named)

        if parameter.required and parameter.param_type_name == "option":
            others = {other: value for other, value in right.items() if other != name}
            yield Case(command, f"without {flag}", words_of(command, others), flag)
        if parameter.param_type_name == "option":
            if not parameter.is_flag:
                yield Case(command, f"{flag} without a value", [*words_of(command, right), flag], flag)
            misspelt = f"{flag}x"
            yield Case(command, f"{misspelt}", [*words_of(command, right), misspelt, "1"], misspelt)
        yield from _wrong_values(command, name, kind, info, case)


def _declared(annotation: Any) -> tuple[type, Any]:
    """The type of one value of an option, and what Typer knows of it."""
    declared, info = get_args(annotation)
    for part in get_args(declared):
        if part is not type(None):
            declared = part
    return (get_args(declared) or [declared])[0], info


def _wrong_values(command: str, name: str, kind: type, info: Any, case: Any) -> Iterator[Case]:
    if info.callback in (paths.output_path, paths.cache_folder):
        yield case("empty", "")
        yield case("below a file", "whole/b4.json/out")
        suffix = Path(str(RIGHT[command].get(name, "out"))).suffix
        yield case("of another kind", "whole/data" if suffix else "whole/b4.json")
        return
    if info.callback in READING:
        yield case("empty", "")
        kind_of = KIND_OF.get((command, name)) or KIND_OF[name]
        for fault in KINDS[kind_of][1]:
            path = broken(kind_of, fault)
            value = f"also={path}" if name == "also" else path
            if (command, kind_of, fault) not in ACCEPTED and (kind_of, fault) not in ACCEPTED:
                yield case(fault, value, f"broken/{kind_of}/{fault}")
    elif kind is bool:
        yield Case(command, f"{name}: a value", [*words_of(command, RIGHT[command]), f"--{name.replace('_', '-')}=3"], "")
    elif kind is int:
        wrong = ["", "many", "1.5", "nan", "0x10"]
        wrong += [str(info.min - 1)] if info.min is not None else []
        wrong += [str(info.max + 1)] if info.max is not None else []
        wrong += ["-1", str(10**30)] if name == "seed" else []
        yield from (case(repr(value), value) for value in dict.fromkeys(wrong))
    elif kind is float:
        wrong = ["", "much", "nan", "inf", "-inf", "1,5"]
        wrong += [str(info.min - 0.1)] if info.min is not None else []
        wrong += [str(info.max + 0.1)] if info.max is not None else []
        yield from (case(repr(value), value) for value in dict.fromkeys(wrong))
    elif issubclass(kind, StrEnum):
        yield from (case(repr(value), value) for value in ("", "nose", next(iter(kind)).upper()))
    if kind is str and name not in ANY_TEXT:
        yield from (case(repr(value), value) for value in ["", *WRONG_TEXTS.get(name, [])])
        assert name in WRONG_TEXTS or info.callback in READING, f"{command} {name}"


READING = [
    paths.input_file,
    paths.input_folder,
    paths.input_path,
    paths.data_folder,
    paths.result_file,
    paths.curves_file,
    paths.model_path,
    paths.own_or_file,
]
ACCEPTED: set = set()
