"""What commands read, whole and damaged: made once, and read by all wrong invocations.

whole/                       what every command goes through with
broken/samples/null ids/     a copy of one part of it, with the fault that it is named for
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from builders.trace import message
from cb_datasets.audit.marks import Marks
from cb_datasets.evaluation.results import write_results
from cb_datasets.export import export_jsonl
from cb_datasets.files import stream_rows, write_json
from cb_datasets.generation.backend import weights_revision
from cb_datasets.report.plots.drawing import new_figure, save_figure
from tests.cb_datasets.fake_results import small_adaptive, small_live, small_results, small_tampering
from tests.cb_datasets.release_data import run, write_data
from tools.small_models import save_adapter


Damage = Callable[[Path], Any]

CARD = "---\nlibrary_name: peft\n---\n\n# breaker\n\n## Evaluation\n\nNone yet.\n\n## Versions\n\ntorch 2\n"


def write_whole(folder: Path, tiny_agent: Path) -> None:
    """Write everything that the commands need."""
    shutil.copytree(tiny_agent, folder / "tiny_agent")
    save_adapter(folder / "tiny_agent", folder / "adapter")
    write_data(folder / "data")
    _write_traces(folder)
    _write_results(folder)
    export_jsonl(stream_rows([folder / "data" / "harmful" / "b4_flips"]), folder / "samples.jsonl")
    Marks(folder / "marks.parquet").put("a", "bad", "")
    save_figure(new_figure(2, 2), folder / "curves.png")
    shutil.copy(folder / "tiny_agent" / "chat_template.jinja", folder / "template.jinja")
    write_json(folder / "b4.json", {"system_prompt": "Answer.", "tools": []})


def _write_traces(folder: Path) -> None:
    talks = ([message("user", f"Hello {n}."), message("assistant", "Hello to you.")] for n in range(20))
    lines = [{"id": str(n), "verdict": "benign_success", "messages": talk} for n, talk in enumerate(talks)]
    (folder / "logs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("ingest", "jsonl", "--data-files", folder / "logs.jsonl", "--output", folder / "logs")
    run("ingest", "lookalike", "--n-samples", 40, "--output", folder / "data" / "traces" / "lookalike")


def _write_results(folder: Path) -> None:
    adapter, report = folder / "adapter", folder / "report"
    (adapter / "README.md").write_text(CARD)
    results = small_results(f"base+{weights_revision(adapter)}")
    write_results(results, report / "results.json")
    write_json(report / "adaptive.json", small_adaptive(1))
    write_json(report / "tampering.json", small_tampering())
    write_json(report / "agentdojo" / "agentdojo.json", small_live())
    cosines = {"by_layer": {"completion": {"mean": [1.0], "low": [1.0], "high": [1.0]}}, "by_token": [[1.0]]}
    kind = {"rows": 1, "rows_at": [1], "tool_name_at": None, "cosine": {"breaker": cosines}}
    diagnostics = {
        "schema_version": 1,
        "settings": {"adapters": results["settings"]["adapters"]},
        "layers": [1],
        "positions": [0],
        "classes": {"general_conversation": kind},
    }
    write_json(folder / "cosines.json", diagnostics)


# ---------------------------------------------------------------------------------------------------------- damage


def missing(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def as_folder(path: Path) -> None:
    missing(path)
    path.mkdir()


def as_file(path: Path) -> None:
    missing(path)
    path.write_text("text")


def cut(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def text(content: str | bytes) -> Damage:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def inside(file: str, damage: Damage) -> Damage:
    """Damage to a file of a folder."""
    return lambda folder: damage(folder / file)


def edited(**values: Any) -> Damage:
    """Damage to keys of a JSON object; `None` removes one."""

    def edit(path: Path) -> None:
        value = json.loads(path.read_text()) | values
        path.write_text(json.dumps({name: each for name, each in value.items() if each is not None}))

    return edit


def columns(**values: Any) -> Damage:
    """Damage to columns of the second row of a Parquet file."""

    def edit(path: Path) -> None:
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
        rows[1 if len(rows) > 1 else 0] |= values
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path)

    return edit


def first_message(**keys: Any) -> Damage:
    """Damage to the first message of the second row of a Parquet file."""

    def edit(path: Path) -> None:
        messages = pyarrow.parquet.read_table(path)["messages"].to_pylist()[1]
        columns(messages=[messages[0] | keys, *messages[1:]])(path)

    return edit


def no_rows(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path)


def other_columns(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)


def other_types(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    numbers = pyarrow.array(range(len(table)), pyarrow.int64())
    pyarrow.parquet.write_table(table.set_column(table.column_names.index("id"), "id", numbers), path)


JSON_FILE: dict[str, Damage] = {
    "a list": text("[1, 2]"),
    "a number": text("5"),
    "null": text("null"),
    "an empty object": text("{}"),
    "cut off": cut,
    "empty": text(""),
    "not UTF-8": text(b'{"a": "\xe9"}'),
    "deep": text('{"a": ' + "[" * 5000 + "]" * 5000 + "}"),
}
FILE = {"missing": missing, "a folder": as_folder}
FOLDER = {"missing": missing, "a file": as_file, "empty": as_folder}

LINES_FILE: dict[str, Damage] = {
    **FILE,
    "empty": text(""),
    "a list": text("[]\n"),
    "a number": text("{}\n5\n"),
    "null": text("null\n"),
    "an empty object": text("{}\n"),
    "not UTF-8": text(b'{"a": "\xe9"}\n'),
    "deep": text('{"a": ' + "[" * 5000 + "]" * 5000 + "}\n"),
    "cut off": cut,
}

PARQUET_FILE: dict[str, Damage] = {
    "a cut file": cut,
    "an empty file": text(b""),
    "words": text("garbage " * 99),
    "a folder as file": as_folder,
    "other columns": other_columns,
    "other types": other_types,
    "no rows": no_rows,
}
# Of traces, prompts and samples.
ROW: dict[str, Damage] = {
    "null id": columns(id=None),
    "null group": columns(group=None),
    "null messages": columns(messages=None),
    "no messages": columns(messages=[]),
    "a null message": columns(messages=[None]),
    "null role": first_message(role=None),
    "unknown role": first_message(role="wizard"),
    "null content": first_message(content=None),
    "tools in words": columns(tools="nose"),
    "tools of numbers": columns(tools="[1]"),
}
PROMPT_ROW: dict[str, Damage] = {
    **ROW,
    "null spans": columns(injection=None),
    "a null span": columns(injection=[None]),
    "a span outside": columns(injection=[{"message": 1, "start": 3, "end": 9999}]),
    "a span of no message": columns(injection=[{"message": 99, "start": 3, "end": 5}]),
    "a span without an end": columns(injection=[{"message": 1, "start": 3, "end": None}]),
    "null target": columns(target=None),
    "null provenance": columns(provenance=None),
}
SAMPLE_ROW: dict[str, Damage] = {
    **PROMPT_ROW,
    "null completion": columns(assistant_raw=None),
    "null class": columns(priority_class=None),
    "unknown class": columns(priority_class="nose"),
    "null set": columns(set=None),
    "null split": columns(split=None),
    "unknown split": columns(split="nose"),
    "null labels": columns(labels=None),
    "null calls": columns(tool_calls_structured=None),
}


def _template(content: str | bytes) -> Damage:
    return inside("chat_template.jinja", text(content))


def _pickle(folder: Path, name: str = "model.bin") -> None:
    [weights] = folder.glob("*.safetensors")
    weights.rename(folder / name)


TOKENIZER: dict[str, Damage] = {
    **FOLDER,
    "a cut vocabulary": inside("tokenizer.json", cut),
    "an empty vocabulary": inside("tokenizer.json", text("")),
    "a vocabulary of numbers": inside("tokenizer.json", text("[1]")),
    "a cut tokenizer config": inside("tokenizer_config.json", cut),
    "a list as tokenizer config": inside("tokenizer_config.json", text("[]")),
    "a deep tokenizer config": inside("tokenizer_config.json", JSON_FILE["deep"]),
    "no template": inside("chat_template.jinja", missing),
    "a template that raises": _template("<|python_tag|><|eom_id|>{{ raise_exception('no') }}"),
    "a template that fails": _template("<|python_tag|><|eom_id|>{{ messages[99].role.x }}"),
    "a template that divides by zero": _template("<|python_tag|><|eom_id|>{{ 1 // 0 }}"),
    "a template that calls a text": _template("<|python_tag|><|eom_id|>{{ 'a'() }}"),
    "a template that never ends": _template("<|python_tag|><|eom_id|>{% for a in range(10**12) %}x{% endfor %}"),
    "a cut template": inside("chat_template.jinja", cut),
    "a binary template": _template(b"\xff\xfe"),
}
MODEL: dict[str, Damage] = {
    **TOKENIZER,
    "no config": inside("config.json", missing),
    "a cut config": inside("config.json", cut),
    "a list as config": inside("config.json", text("[]")),
    "a binary config": inside("config.json", text(b"\xff\xfe\x00")),
    "a deep config": inside("config.json", JSON_FILE["deep"]),
    "an unknown type of model": inside("config.json", edited(model_type="nose")),
    "a word for a size": inside("config.json", edited(hidden_size="big")),
    "no weights": inside("model.safetensors", missing),
    "cut weights": inside("model.safetensors", cut),
    "empty weights": inside("model.safetensors", text(b"")),
    "only a pickle": _pickle,
}
ADAPTER: dict[str, Damage] = {
    **FOLDER,
    "no config": inside("adapter_config.json", missing),
    "a cut config": inside("adapter_config.json", cut),
    "a list as config": inside("adapter_config.json", text("[]")),
    "a binary config": inside("adapter_config.json", text(b"\xff\xfe\x00")),
    "a deep config": inside("adapter_config.json", JSON_FILE["deep"]),
    "no type": inside("adapter_config.json", edited(peft_type=None)),
    "an unknown type": inside("adapter_config.json", edited(peft_type="NOSE")),
    "a number as type": inside("adapter_config.json", edited(peft_type=7)),
    "another base": inside("adapter_config.json", edited(base_model_name_or_path="someone/else")),
    "a number as base": inside("adapter_config.json", edited(base_model_name_or_path=7)),
    "no weights": inside("adapter_model.safetensors", missing),
    "cut weights": inside("adapter_model.safetensors", cut),
    "empty weights": inside("adapter_model.safetensors", text(b"")),
    "only a pickle": lambda folder: _pickle(folder, "adapter_model.bin"),
}


def _rows(rows: dict[str, Damage], *files: str) -> dict[str, Damage]:
    """Faults of a folder of rows: the same in each of its files, since a command may read one of them only."""

    def in_all(damage: Damage) -> Damage:
        return lambda folder: [damage(folder / file) for file in files]

    return {**FOLDER, **{name: in_all(damage) for name, damage in (PARQUET_FILE | rows).items()}}


def _inside(file: str, faults: dict[str, Damage]) -> dict[str, Damage]:
    """Faults of a file of a folder, under its name."""
    return {f"{Path(file).stem} {name}": inside(file, damage) for name, damage in faults.items()}


RESULTS = {**FILE, **JSON_FILE, "another version": edited(schema_version=9)}

# By kind: what is copied from `whole/`, and the damage.
KINDS: dict[str, tuple[str, dict[str, Damage]]] = {
    "samples": ("data/retain/adversarial_safe", _rows(SAMPLE_ROW, "train.parquet", "eval.parquet")),
    "merged": ("data/stage2", _rows(SAMPLE_ROW, "train/data.parquet", "eval/data.parquet")),
    "held_out": ("data/stage2/eval", _rows(dict(list(SAMPLE_ROW.items())[::4]), "data.parquet")),
    "lines": ("samples.jsonl", LINES_FILE),
    "prompts": ("data/prompts", _rows(PROMPT_ROW, "tool_flip/eval.parquet", "capability/eval.parquet")),
    "traces": ("data/traces/lookalike", _rows(ROW, "train/data.parquet", "eval/data.parquet")),
    "recorded": ("logs", _rows(ROW, "train/data.parquet", "eval/data.parquet")),
    "report": ("logs", {**_inside("report.json", {**FILE, **JSON_FILE}), **FOLDER}),
    "quarantine": ("data/stage2/eval", _rows({}, "data.parquet")),
    "marks": ("marks.parquet", {**FILE, **PARQUET_FILE}),
    "results": ("report/results.json", RESULTS),
    "cosines": ("cosines.json", RESULTS),
    "sheet": ("data/reports/sources.json", {**FILE, **JSON_FILE}),
    "schema": ("b4.json", {**FILE, **JSON_FILE}),
    "logs": ("logs.jsonl", LINES_FILE),
    "folder": ("data", FOLDER),
    "release": (
        "data",
        {
            **FOLDER,
            **_inside("reports/stats.json", {**FILE, **JSON_FILE}),
            **_inside("reports/preflight.json", JSON_FILE),
            **_inside("reports/sources.json", {**FILE, **JSON_FILE}),
            **_inside("stage2/train/data.parquet", PARQUET_FILE),
        },
    ),
    "viewed": ("data/stage2/eval", _rows({}, "data.parquet")),
    "beside": (
        "report",
        {
            **_inside("adaptive.json", JSON_FILE),
            **_inside("tampering.json", JSON_FILE),
            **_inside("agentdojo/agentdojo.json", JSON_FILE),
        },
    ),
    "evaluation": ("report", {**_inside("results.json", RESULTS), **FOLDER}),
    "curves": ("curves.png", {**FILE, "empty": text(""), "words": text("words")}),
    "template": ("template.jinja", {**FILE, "empty": text(""), "words": text("words"), "not UTF-8": text(b"\xe9")}),
    "tokenizer": ("tiny_agent", TOKENIZER),
    "model": ("tiny_agent", MODEL),
    "adapter": ("adapter", ADAPTER),
}


def write_broken(folder: Path) -> None:
    """Write the damaged copies of what is in `folder / "whole"`."""
    for kind, (source, faults) in KINDS.items():
        for name, damage in faults.items():
            copy, whole = folder / "broken" / kind / name, folder / "whole" / source
            copy = copy / whole.name
            copy.parent.mkdir(parents=True)
            shutil.copytree(whole, copy) if whole.is_dir() else shutil.copy(whole, copy)
            damage(copy)


def broken(kind: str, name: str) -> str:
    """Path of a damaged copy, which keeps its name: some names have a meaning."""
    return f"broken/{kind}/{name}/{Path(KINDS[kind][0]).name}"


def broken_beside() -> list[str]:
    """Paths of the reports whose results of another command than `evaluate` are damaged."""
    return [broken("beside", name) for name in KINDS["beside"][1]]
