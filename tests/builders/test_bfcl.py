"""BFCL: prompts with tools, the calls that its answers accept, groups, and drops."""

import json
import sys
import types
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from builders import TraceBuilder, prepare_source
from builders.base import summarize_traces
from builders.bfcl.answers import NoAcceptedValue, expected_call
from builders.bfcl.groups import group_names
from builders.bfcl.rows import read_rows
from cb_datasets.arguments import are_accepted, parameter_schemas
from cb_datasets.formats import FORMATS, ToolCall
from cb_datasets.outcomes import Outcome, has_expected_arguments, outcome_of
from cb_datasets.sets.prompts import prompts_for_task


PORT = {"type": "string", "description": "The port."}
TIDES = {
    "name": "tides.height",
    "description": "Height of the tide.",
    "parameters": {
        "type": "dict",
        "properties": {"port": PORT, "hour": {"type": "float"}, "unit": {"type": "any"}},
        "required": ["port", "hour"],
    },
}
RICE = {"name": "cook_rice", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}}
ASKED = "How high is the tide in Brest at 7 this morning?"
ACCEPTED = {"port": ["Brest", "Brest, France"], "hour": [7], "unit": ["", "m"]}


def row(id: str, asked: str = ASKED, functions: tuple[dict, ...] = (TIDES,), **changes) -> dict:
    return {
        "id": id,
        "question": [[{"role": "user", "content": asked}]],
        "function": list(functions),
        **changes,
    }


def answer(id: str, *calls: dict) -> dict:
    return {"id": id, "ground_truth": list(calls or ({"tides.height": ACCEPTED},))}


def write(folder: Path, category: str, rows: list[dict], answers: list[dict] | None = None) -> Path:
    (folder / "possible_answer").mkdir(parents=True, exist_ok=True)
    for path, records in ((folder, rows), (folder / "possible_answer", answers)):
        if records is not None:
            text = "".join(json.dumps(record) + "\n" for record in records)
            (path / f"BFCL_v4_{category}.json").write_text(text, encoding="utf-8")
    return folder


def build(folder: Path, **settings) -> TraceBuilder:
    return prepare_source("bfcl", data_dir=folder, cache_dir=folder / "cache", **settings)


def test_a_request_becomes_a_prompt_with_all_accepted_values(tmp_path: Path):
    write(tmp_path, "simple_python", [row("simple_python_7")], [answer("simple_python_7")])
    [trace] = build(tmp_path).as_dataset()["train"]
    assert (trace["id"], trace["group"], trace["verdict"]) == (
        "bfcl/simple_python_7",
        "bfcl/tides_height",
        "prompt_only",
    )
    assert (trace["expected_tool"], trace["attack"]) == ("tides_height", None)
    [tool] = json.loads(trace["tools"])
    properties = tool["function"]["parameters"]["properties"]
    assert (tool["type"], tool["function"]["name"]) == ("function", "tides_height")
    assert properties == {"port": PORT, "hour": {"type": "number"}, "unit": {}}
    assert json.loads(trace["metadata"]) == {
        "task": "capability",
        "category": "simple_python",
        "expected_calls": [
            {
                "name": "tides_height",
                "arguments": {"port": "Brest", "hour": 7},
                "alternatives": {"port": ["Brest", "Brest, France"], "hour": [7], "unit": ["m"]},
                "optional": ["unit"],
            }
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"port": "Brest", "hour": 7}, True),
        ({"port": "brest  france", "hour": "7.0", "unit": "M"}, True),
        ({"port": "Brest", "hour": 7, "unit": ""}, True),
        ({"port": "Brest", "hour": 8}, False),
        ({"port": "Brest", "hour": 7, "unit": "ft"}, False),
        ({"port": "Brest"}, False),
        ({"port": "Brest", "hour": 7, "speed": 1}, False),
        ({"port": ["Brest"], "hour": 7}, False),
        ({"port": "Brest", "hour": True}, False),
    ],
)
def test_a_call_is_judged_by_its_alternatives(tmp_path: Path, arguments: dict, right: bool):
    write(tmp_path, "simple_python", [row("simple_python_7")], [answer("simple_python_7")])
    [prompt] = prompts_for_task(build(tmp_path).as_dataset()["train"], "capability")
    assert prompt["category"] == "simple_python"
    call = ToolCall("tides_height", arguments)
    assert has_expected_arguments(call, prompt["target"], prompt["tools"]) is right
    tool_format = FORMATS["llama3_json"]
    assert outcome_of(tool_format.render(call, ""), prompt["target"], tool_format) == Outcome.CORRECT


def test_every_combination_of_an_accepted_object_is_a_value():
    schema = {"type": "object", "properties": {"body": {"type": "object"}, "rows": {"type": "array"}}}
    body = {"mode": ["dry", "cool"], "wind": ["high", ""], "at": [{"x": 1}]}
    call = expected_call("f", {"body": [body], "rows": [[{"n": [1, 2]}]]}, schema, "f.json:1")
    assert call["alternatives"]["body"] == [
        {"mode": "dry", "wind": "high", "at": {"x": 1}},
        {"mode": "dry", "at": {"x": 1}},
        {"mode": "cool", "wind": "high", "at": {"x": 1}},
        {"mode": "cool", "at": {"x": 1}},
    ]
    assert call["alternatives"]["rows"] == [[{"n": 1}], [{"n": 2}]]
    assert are_accepted({"body": {"at": {"x": 1}, "mode": "COOL"}, "rows": [{"n": 2}]}, call, schema)
    assert not are_accepted({"body": {"mode": "cool"}, "rows": [{"n": 2}]}, call, schema)


def test_an_answer_without_a_value_is_none():
    with pytest.raises(NoAcceptedValue):
        expected_call("f", {"port": []}, {}, "f.json:1")
    with pytest.raises(ValueError, match=r"^f\.json:1: an argument has more than 1000 accepted forms"):
        expected_call("f", {"body": [{str(key): [1, 2] for key in range(10)}]}, {}, "f.json:1")
    with pytest.raises(ValueError, match=r"^f\.json:1: the values of an object that its answer accepts are no lists"):
        expected_call("f", {"body": [{"mode": "dry"}]}, {}, "f.json:1")


@pytest.mark.parametrize(
    ("changes", "calls", "reason"),
    [
        ({}, ({"tides.height": ACCEPTED}, {"tides.height": ACCEPTED}), "several_calls"),
        ({}, ({"cook.rice": {}},), "unknown_tools"),
        ({}, ({"tides.height": {"port": []}},), "no_accepted_value"),
        ({"function": []}, (), "no_tools"),
        ({"function": [TIDES, {**TIDES, "name": "tides_height"}]}, (), "ambiguous_tools"),
        ({"question": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]}, (), "several_turns"),
        ({"question": [[{"role": "assistant", "content": "a"}]]}, (), "no_request"),
        ({"question": [[{"role": "user", "content": " "}]]}, (), "no_request"),
    ],
)
def test_rows_that_are_no_prompt_are_dropped_by_name(tmp_path: Path, changes: dict, calls: tuple, reason: str):
    rows = [row("simple_python_1"), row("simple_python_2", **changes)]
    write(tmp_path, "simple_python", rows, [answer("simple_python_1"), answer("simple_python_2", *calls)])
    builder = build(tmp_path)
    assert [(drop.reason, drop.where) for drop in builder.dropped()] == [(reason, "BFCL_v4_simple_python.json:2")]
    assert len(builder.as_dataset()["train"]) == 1


@pytest.mark.parametrize(
    ("rows", "answers", "message"),
    [
        ([{"id": "a"}], [], r"BFCL_v4_multiple\.json:1: field 'function' is missing"),
        ([row("a", functions=({"name": "f"},))], [], r"BFCL_v4_multiple\.json:1: field 'parameters' is missing"),
        ([row("a")], [], r"BFCL_v4_multiple\.json:1: possible_answer/BFCL_v4_multiple\.json has no answer to 'a'"),
        ([row("a")], [answer("a"), answer("a")], r"possible_answer/BFCL_v4_multiple\.json:2: a second answer to 'a'"),
        (
            [row("a")],
            [{"id": "a", "ground_truth": ["f"]}],
            r"possible_answer/BFCL_v4_multiple\.json:1: a right call must",
        ),
        (
            [row("a", question=[[{"role": "tool", "content": ""}]])],
            [answer("a")],
            r"multiple\.json:1: unknown role 'tool'",
        ),
    ],
)
def test_malformed_rows_are_errors_that_name_file_and_line(tmp_path: Path, rows: list, answers: list, message: str):
    write(tmp_path, "multiple", rows, answers)
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"expects BFCL_v4_simple_python\.json and the like"):
        build(tmp_path)
    write(tmp_path, "multiple", [row("a")])
    with pytest.raises(FileNotFoundError, match=r"possible_answer/BFCL_v4_multiple\.json is missing"):
        build(tmp_path)
    monkeypatch.setattr("builders.bfcl.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps bfcl-eval==2026\.3\.23, or pass data_dir"):
        prepare_source("bfcl", cache_dir=tmp_path / "cache")


def test_rows_of_one_function_or_with_one_long_question_are_one_group(tmp_path: Path):
    write(tmp_path, "simple_python", [row("s_1"), row("s_2", "Ebb?")], [answer("s_1"), answer("s_2")])
    other = ASKED.upper().replace("?", " ?!")
    write(tmp_path, "irrelevance", [row("i_1", other, (RICE,)), row("i_2", "Ebb?", ({**RICE, "name": "boil_eggs"},))])
    write(
        tmp_path,
        "parallel",
        [row("p_1", functions=(TIDES, RICE))],
        [answer("p_1", {"tides.height": {}}, {"boil_eggs": {}})],
    )
    rows = read_rows(sorted(tmp_path.rglob("*.json")))
    groups = dict(zip([each.id for each in rows], group_names(rows), strict=True))
    assert groups["s_1"] == groups["s_2"] == groups["i_1"] == "bfcl/cook_rice"
    assert groups["i_2"] == "bfcl/boil_eggs"  # "Ebb?" is asked of everything, and p_1 becomes no trace
    live = write(tmp_path, "live_irrelevance", [row("l_1", other, ({**RICE, "name": "eat"},))])
    [trace] = build(live, config="live").as_dataset()["train"]
    assert (trace["group"], json.loads(trace["metadata"])["task"]) == ("bfcl/cook_rice", "irrelevance")


# ---------------------------------------------------------------------------------------------------------------------
# The real benchmark


@pytest.fixture(scope="module")
def package() -> Path:
    spec = find_spec("bfcl_eval")
    if spec is None:
        pytest.skip("no BFCL: pip install --no-deps bfcl-eval==2026.3.23")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def builder(package: Path) -> TraceBuilder:
    return prepare_source("bfcl")


def test_real_totals(builder: TraceBuilder):
    assert summarize_traces(builder.as_dataset(), builder.dropped()) == {
        "records": 3475,
        "attacked": 0,
        "verdicts": {"prompt_only": 3029},
        "groups": 1013,
        "drops": {"no_accepted_value": 2, "no_tools": 4, "several_calls": 440},
    }
    assert builder.config.source_revision == "bfcl-eval 2026.3.23"


def test_real_prompts_by_category(builder: TraceBuilder):
    prompts = {task: prompts_for_task(builder.as_dataset()["train"], task) for task in ("capability", "irrelevance")}
    counts = {category: sum(rows["category"].count(category) for rows in prompts.values()) for category in CATEGORIES}
    assert counts == CATEGORIES
    assert (len(prompts["capability"]), len(prompts["irrelevance"])) == (1909, 1120)


CATEGORIES = {
    "simple_python": 400,
    "multiple": 200,
    "irrelevance": 240,
    "live_simple": 256,
    "live_multiple": 1053,
    "live_irrelevance": 880,
}


@pytest.fixture(scope="module")
def checker(package: Path):
    """BFCL's own checker, without the clients of all models that its module of models imports."""
    stubs = {
        "bfcl_eval.constants.model_config": {
            "MODEL_CONFIG_MAPPING": {"m": types.SimpleNamespace(underscore_to_dot=True)}
        },
        "bfcl_eval.eval_checker.ast_eval.type_convertor.java_type_converter": {"java_type_converter": None},
        "bfcl_eval.eval_checker.ast_eval.type_convertor.js_type_converter": {"js_type_converter": None},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in stubs.items():
            module = types.ModuleType(name)
            vars(module).update(attributes)
            patch.setitem(sys.modules, name, module)
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import simple_function_checker

        yield lambda function, call, accepted: simple_function_checker(
            function, {call["name"]: call["arguments"]}, accepted, Language.PYTHON, "m"
        )["valid"]


def variants(call: dict) -> list[dict]:
    """Calls that differ from the expected one in an argument: another value, right or wrong, one more or one less."""
    arguments = call["arguments"]
    forms = [{**arguments, key: form} for key, each in call["alternatives"].items() for form in each[:4]]
    wrong = [{**arguments, key: "no such value"} for key in arguments]
    fewer = [{key: value for key, value in arguments.items() if key != left_out} for left_out in arguments]
    return [arguments, *forms, *wrong, *fewer, {**arguments, "no_such_argument": 1}]


def test_real_answers_are_judged_as_the_benchmark_does(builder: TraceBuilder, package: Path, checker):
    """Of 13,000 calls a handful is judged otherwise, where the benchmark's check of types refuses its own answer."""
    rows = {f"bfcl/{each.id}": each for each in read_rows(builder.inputs)}
    agreed, otherwise = 0, []
    for trace in builder.as_dataset()["train"]:
        expected = json.loads(trace["metadata"]).get("expected_calls")
        if expected is None:
            continue
        [call], [(name, accepted)] = expected, rows[trace["id"]].answer
        schema = parameter_schemas(trace["tools"])[name]
        function = raw_function(package, trace, name)
        for arguments in variants(call):
            ours = are_accepted(arguments, call, schema)
            theirs = checker(function, {"name": name, "arguments": arguments}, {name: accepted})
            agreed += ours == theirs
            otherwise += [] if ours == theirs else [(trace["id"], arguments, ours)]
    assert agreed > 10_000
    assert all(ours for *_, ours in otherwise) and len(otherwise) <= agreed / 100, otherwise[:5]


@cache
def raw_functions(package: Path, category: str) -> dict[str, list[dict]]:
    """The functions of each row as the benchmark has them: its checker knows its own names of types only."""
    lines = (package / "data" / f"BFCL_v4_{category}.json").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record["function"] for record in map(json.loads, lines)}


def raw_function(package: Path, trace: dict, name: str) -> dict:
    functions = raw_functions(package, json.loads(trace["metadata"])["category"])[trace["id"].removeprefix("bfcl/")]
    return next(each for each in functions if each["name"].replace(".", "_") == name)
