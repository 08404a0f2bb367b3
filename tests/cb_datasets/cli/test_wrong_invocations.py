"""Wrong invocations of every command: each ends in one error that names the flag, file or row, and writes nothing.

Each command has an invocation that goes through, up to the loading of weights. The wrong ones differ from it in one
option, and are made from the options that the command declares, so that a new option has them too.
"""

import inspect
import os
import re
import shutil
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import transformers
import typer

from cb_datasets.cli import app, paths
from cb_datasets.generation import transformers_backend
from tests.cb_datasets import command as in_process

from .test_paths import COMMANDS
from .wrong_inputs import KINDS, broken, broken_beside, write_broken, write_whole


class Loaded(BaseException):
    """Raised in the place of loading weights: whatever is wrong should have been found before."""


TRACES = "whole/data/traces/lookalike"
MODEL = {"model": "whole/tiny_agent"}
BREAKER = {**MODEL, "adapter": "whole/adapter"}
GENERATED = {"traces": TRACES, "output": "out", **MODEL}
ID = "retain/chat/6edbc171e4c093ba"  # of a sample in whole/data

# By command: the options of an invocation that goes through.
RIGHT: dict[str, dict[str, Any]] = {
    "ingest": {"source": "jsonl", "data_files": "whole/logs.jsonl", "output": "out"},
    "sources": {"traces": TRACES, "output": "out"},
    "collect": {"subset": "retain/jsonl_chat", "traces": "whole/logs", "output": "out", **MODEL},
    "tokenizer": {**MODEL, "output": "out"},
    "generate-eval": {"traces": TRACES, "output": "out"},
    "generate-ds": GENERATED,
    "generate-dr": {**GENERATED, "kinds": "chat"},
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
    "validate": {
        **{"folders": "whole/data/harmful/b4_flips", "quarantine": "out", "output": "out.json"},
        "min_valid": 1,
    },
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
    ("ingest", "model"): {"output_retain": "out/jsonl_chat"},
    ("ingest", "output_harmful"): {**MODEL},
    ("ingest", "output_retain"): {**MODEL},
    **{
        (command, "server_url"): {"backend": "server"}
        for command in ("generate-ds", "generate-dr", "generate-adversarial-safe", "regenerate", "evaluate")
    },
    ("generate", "retain_sources"): {"sets": "retain/chat", "dr_flags": "--model whole/tiny_agent"},
    ("evaluate", "refusal_judge"): {"server_url": "http://127.0.0.1:9"},
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
    ("push", "data"): "release",
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
    "path": "viewed",
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
    "ds_flags": ["--nose", "--model whole/tiny_agent nose", "'", "--model"],
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
    "refusal_judge": ["judge"],
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
    **{(command, "server_url"): "uses no server" for command in ("ability", "attack", "merge-adapter")},
}

# Commands that judge rows: a fault of one may be a verdict, and then the report is written.
JUDGES = ("validate", "quality-gates", "preflight", "merge")

# Commands that read nothing of a model but its tokenizer.
OF_TOKENIZER = (
    *("ingest", "sources", "collect", "tokenizer", "generate-eval", "quality-gates", "preflight", "explain", "merge"),
    *("import", "view"),
)

# The command that is tried with all faults of a kind. The others, which read it by the same functions, are tried with
# the first of them and some more, each with other ones.
ALL_FAULTS_IN = {
    "model": "merge-adapter",
    "tokenizer": "collect",
    "adapter": "evaluate",
    "samples": "export",
    "merged": "preflight",
    "prompts": "merge",
    "traces": "generate-ds",
    "schema": "import",
}
FIRST, MORE = 1, 2

# Faults that are none, by kind or command: an empty quarantine and no marks are what most data have, the gates of the
# sources in the data need no sheet, and an eval split may have no rows.
NO_FAULTS = [
    ("quarantine", "no rows"),
    ("viewed", "no rows"),
    ("marks", "no rows"),
    ("sheet", "an empty object"),
    ("export", "no rows"),
]


_SAMPLING = [
    ({"temperature": 0, "num_samples": 2}, "Greedy"),
    ({"rank": 2, "world": 2}, "--rank"),
    ({"top_p": 0}, "top_p"),
]
_ENGINE = [
    ({"load_in_8bit": True}, "GPU"),
    ({"backend": "vllm"}, "vllm"),
    ({"backend": "server", "server_url": "http://127.0.0.1:9"}, "127.0.0.1:9"),
]
# By command: options that clash with each other or lack one another, and what the error names.
CLASHES: dict[str, list[tuple]] = {
    "ingest": [
        ({"output": None}, "--output"),
        ({"data_files": None}, "data_dir"),
        ({"data_dir": "whole"}, "--data-dir"),
        ({"output_retain": "out/jsonl_chat"}, "--model"),
        ({"output_retain": "out/nose", **MODEL}, "jsonl_chat"),
        ({"retain": True}, "--retain"),
        ({"tasks": "chat"}, "--tasks"),
        ({"data_files": ["whole/logs.jsonl", "whole/logs.jsonl"]}, "logs.jsonl"),
        ({"source": "agentdojo", "data_files": None, "data_dir": "whole/report"}, "report"),
    ],
    "tokenizer": [({"template_setting": ["tools=1", "tools=2"]}, "--template-setting")],
    "generate-eval": [
        ({"tasks": "agentharm"}, "agentharm"),
        ({"model": "whole/tiny_agent", "tool_format": "hermes"}, "--tool-format"),
        ({"traces": [TRACES, TRACES]}, "lookalike"),
    ],
    "generate-ds": [*_SAMPLING, *_ENGINE],
    "generate-dr": [*_SAMPLING, *_ENGINE],
    "generate-adversarial-safe": [
        *_SAMPLING,
        *_ENGINE,
        ({"fill": "twin"}, "--twins"),
        ({"twins": "whole/data/retain/b4_benign_twins"}, "--fill"),
    ],
    "regenerate": [*_SAMPLING, *_ENGINE],
    "generate": [
        ({"rank": 1}, "--rank"),
        ({"sets": "harmful/lookalike_flips harmful/nose"}, "harmful/nose"),
    ],
    "evaluate": [
        *_ENGINE,
        ({"scale": "-1"}, "--scale"),
        ({"scale": "0.5", "backend": "server"}, "--scale"),
        ({"also": ["a=whole/adapter", "a=whole/adapter"]}, "a=whole/adapter"),
    ],
    "report": [
        ({"results": ["whole/report/results.json"] * 2}, "whole/report/results.json"),
        ({"results": ["whole/report/results.json", "whole/cosines.json"]}, "whole/cosines.json"),
        *(({"results": f"{report}/results.json"}, report) for report in broken_beside()),
    ],
    "ability": [({"backend": "vllm"}, "--backend"), ({"backend": "server"}, "--backend")],
    "attack": [
        ({"backend": "vllm"}, "--backend"),
        ({"tamper": True}, "--data"),
        ({"data": "whole/data/stage2"}, "--tamper"),
        ({"tamper": True, "data": "whole/data/stage2", "budget": "tamper.nose=1"}, "--budget"),
        ({"tamper": True, "data": "whole/data/stage2", "load_in_8bit": True}, "--load-in-8bit"),
    ],
    "agentdojo": [({"also": "x=nowhere"}, "nowhere")],
    "merge-adapter": [({"backend": "server"}, "--backend"), ({"load_in_8bit": True}, "--load-in-8bit")],
    "validate": [
        ({"quarantine": None}, "--quarantine"),
        ({"folders": None}, "pass folders, or --data-dir."),
        ({"folders": ["whole/data/harmful/b4_flips"] * 2}, "harmful/b4_flips"),
        ({"split": "retain"}, "retain"),
    ],
    "quality-gates": [({"ds": None, "dr": None}, "pass folders, or --harmful-dir and --retain-dir.")],
    "preflight": [({"model": None}, "--model")],
    "merge": [
        ({"harmful_dir": None, "retain_dir": None}, "pass folders, or --harmful-dir and --retain-dir."),
        ({"dr_ratio": 1}, "--dr-ratio"),
        ({"quota": ["refusal=1", "refusal=2"]}, "refusal=2"),
        ({"weight": ["refusal=1", "refusal=2"]}, "refusal=2"),
    ],
    "export": [({"folder": "whole/data", "output": "out", "layout": "sft"}, "--format")],
    "push": [({"output": "whole/report"}, "whole/report")],
    "push-model": [({"output": "whole/data"}, "whole/data")],
    "view": [
        ({"path": "whole/report"}, "whole/report"),
        ({"path": "owner/name"}, "owner/name"),
        ({"path": "whole/samples.jsonl"}, "`cb-datasets import whole/samples.jsonl --output FOLDER`"),
    ],
}


class Case(NamedTuple):
    """A wrong invocation.

    Args:
        command (`str`): The command.
        wrong (`str`): What is wrong.
        words (`list[str]`): The words behind the command.
        names (`tuple[str, ...]`): What the error names, one of these.
    """

    command: str
    wrong: str
    words: list[str]
    names: tuple[str, ...]


GROUP = typer.main.get_command(app)
OPTIONS = {name: {option.name: option for option in command.params} for name, command in GROUP.commands.items()}


def words_of(command: str, values: dict[str, Any]) -> list[str]:
    """The words of a command line: an option is given once for each value of a list, and not at all for `None`."""
    words: list[str] = []
    for name, value in values.items():
        option = OPTIONS[command][name]
        flag = [option.opts[0]] if option.param_type_name == "option" else []
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            words += flag if each is True else [*flag, str(each)]
    return words


@cache
def cases_of(command: str) -> list[Case]:
    """All wrong invocations of a command."""
    one_option = [case for name in OPTIONS[command] for case in _cases_of_option(command, name)]
    several = [
        Case(command, f"{values}", words_of(command, RIGHT[command] | values), (name,))
        for values, name in CLASHES.get(command, ())
    ]
    return one_option + several


def _cases_of_option(command: str, name: str) -> Iterator[Case]:
    if name not in inspect.signature(COMMANDS[command]).parameters:
        return
    option, right = OPTIONS[command][name], RIGHT[command]
    is_option = option.param_type_name == "option"
    flag = option.opts[0] if is_option else name.upper()
    if option.required:
        others = {other: value for other, value in right.items() if other != name}
        yield Case(command, f"without {flag}", words_of(command, others), (flag, name))
    if is_option and _is_first(command, name):
        yield Case(command, f"{flag}x", [*words_of(command, right), f"{flag}x", "1"], (f"{flag}x",))
    if is_option and not option.is_flag:
        yield Case(command, f"{flag} without a value", [*words_of(command, right), flag], (flag,))
    near = right | WITH.get((command, name), {})
    wrong_values = _wrong_values(command, name)
    if not (_is_first(command, name) or {_declared(command, name)[1].callback} & {*INPUTS, *OUTPUTS}):
        wrong_values = islice(wrong_values, 1)
    for wrong, value, names in wrong_values:
        if is_option and option.is_flag:
            words = [*words_of(command, near), f"{flag}={value}"]
        else:
            words = words_of(command, near | {name: value})
        yield Case(command, f"{flag}: {wrong}", words, (flag, f"argument {name}", *names))


def _is_first(command: str, name: str) -> bool:
    """Whether no command before this one has the same option, as those have that run a model."""
    declared = [inspect.signature(COMMANDS[each]).parameters.get(name) for each in RIGHT]
    own = inspect.signature(COMMANDS[command]).parameters[name].annotation
    return [each is not None and each.annotation is own for each in declared].index(True) == list(RIGHT).index(command)


def _wrong_values(command: str, name: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What is wrong, the value, and what the error may name in the place of the option."""
    kind, info = _declared(command, name)
    if info.callback in OUTPUTS:
        yield from (("no text", "", ("argument",)), ("below a file", "whole/b4.json/out", ()))
        is_file = Path(str(RIGHT[command].get(name, ""))).suffix
        yield "of another kind", "whole/data" if is_file else "whole/b4.json", ()
    elif info.callback in INPUTS:
        yield "no text", "", ("argument",)
        yield from _broken_inputs(command, name)
    elif kind is str and not {name, (command, name)} & ANY_TEXT.keys():
        empty = [] if command == "generate" else [""]
        yield from ((repr(text), text, (_quoted(text), "argument")) for text in [*empty, *WRONG_TEXTS[name]])
    elif kind is bool:
        yield "a value", "3", ()
    elif issubclass(kind, StrEnum):
        yield from ((repr(text), text, ()) for text in ("", "nose", next(iter(kind)).upper()))
    elif kind in (int, float):
        yield from ((repr(text), text, ()) for text in _wrong_numbers(kind, info))


def _quoted(text: str) -> str:
    """What an error quotes of a wrong text."""
    return "127.0.0.1:9" if text == "judge" else "nose" if "nose" in text else text or "''"


def _declared(command: str, name: str) -> tuple[type, Any]:
    """The type of one value of an option, and what Typer is told of it."""
    declared, info = get_args(inspect.signature(COMMANDS[command]).parameters[name].annotation)
    while inner := [part for part in get_args(declared) if part is not type(None)]:
        declared = inner[0]
    return declared, info


def _wrong_numbers(kind: type, info: Any) -> list[str]:
    wrong = ["", "many", "1,5"] + (["1.5", "0x10"] if kind is int else ["nan", "inf", "-inf"])
    step = 1 if kind is int else 0.1
    wrong += [str(info.min - step)] if info.min is not None else []
    wrong += [str(info.max + step), str(10**30)] if info.max is not None else []
    return wrong


def _broken_inputs(command: str, name: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    kind = KIND_OF.get((command, name)) or KIND_OF[name]
    if kind == "model" and command in OF_TOKENIZER:
        kind = "tokenizer"
    faults = [fault for fault in KINDS[kind][1] if not {(kind, fault), (command, fault)} & {*NO_FAULTS}]
    home = ALL_FAULTS_IN.get(kind)
    if home not in (None, command):
        first, others = faults[:FIRST], faults[FIRST:]
        start = (list(RIGHT).index(command) + list(OPTIONS[command]).index(name)) * MORE % len(others)
        faults = first + list(islice([*others, *others], start, start + MORE))
    for fault in faults:
        path = broken(kind, fault)
        names = (f"broken/{kind}/{fault}", *(("stage2/train", "reports/sources.json") if command == "push" else ()))
        if Path(path).suffix or fault == "a file":  # errors about lines have the name of the file
            names += (f"{Path(path).name}:", f"{Path(path).name}.")
        if command in JUDGES:
            names += ("; see out", "of the sets")
        yield fault, f"other={path}" if name == "also" else path, names


INPUTS = (
    *(paths.input_file, paths.input_folder, paths.input_path, paths.data_folder, paths.result_file),
    *(paths.curves_file, paths.own_or_file, paths.model_path),
)
OUTPUTS = (paths.output_path, paths.cache_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_agent_path: Path) -> Path:
    """The working directory of all invocations."""
    made = tmp_path_factory.mktemp("wrong")
    write_whole(made / "whole", tiny_agent_path)
    write_broken(made)
    return made


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That directory, with [`Loaded`] in the place of weights and of a served page; the command line is made once."""

    def loaded(model: str, **_: Any) -> None:
        transformers.AutoConfig.from_pretrained(model)
        raise Loaded

    def served(*_: Any) -> None:
        raise Loaded

    monkeypatch.setattr(in_process, "ROOT", folder)
    monkeypatch.setattr(transformers_backend.AutoModelForCausalLM, "from_pretrained", loaded)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between two attempts to reach a server
    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", served)
    monkeypatch.setattr("typer.main.get_command", lambda _: GROUP)
    return folder


def state_of(folder: Path) -> dict[str, tuple]:
    """Size and time of all files below a folder."""
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return {file: (os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files}


def fault_of(case: Case, here: Path) -> str | None:
    """What is wrong with the answer to a wrong invocation; `None` if it is as it should be."""
    try:
        done = in_process.run(case.command, *case.words)
    except Loaded:
        return "it goes on to load weights"
    said = _without_boxes(done.stderr)
    made = sorted(here.glob("[!bw]*"))
    written = [path for top in made for path in (top, *top.rglob("*")) if path.is_file()]
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if done.returncode not in (1, 2):
        return "it is accepted"
    if "Traceback" in said:
        return f"it ends in a traceback: {said[-300:]}"
    if not any(_without_boxes(name) in said for name in case.names):
        return f"the error names none of {case.names}: {done.stderr[-500:]}"
    if written and ";seeout" not in said:
        return f"it wrote {written[0]}"
    return None


def _without_boxes(text: str) -> str:
    """A text without what Typer draws around an error, which also breaks its lines."""
    return re.sub(r"[\s╭╮╰╯─│]", "", text)


@pytest.mark.parametrize("command", RIGHT)
def test_each_wrong_invocation_is_one_error_that_names_it(command, here):
    before = state_of(here)
    faults = {f"{command} {case.wrong}": fault_of(case, here) for case in cases_of(command)}
    assert {name: fault for name, fault in faults.items() if fault is not None} == {}
    assert state_of(here) == before


def test_they_are_many_and_of_every_command():
    assert RIGHT.keys() == COMMANDS.keys()
    assert sum(len(cases_of(command)) for command in RIGHT) >= 1000
