"""BFCL: prompts with tools, the calls that its answers accept, groups, and drops."""

import json
import random
import sys
import types
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from builders import TraceBuilder, prepare_source
from builders.base import summarize_traces
from builders.bfcl.answers import NoAcceptedValue, expected_call
from builders.bfcl.groups import group_names
from builders.bfcl.rows import read_rows
from cb_datasets.arguments import are_accepted
from cb_datasets.formats import FORMATS, ToolCall
from cb_datasets.outcomes import Outcome, have_expected_arguments, outcome_of
from cb_datasets.sample import TARGET
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
    assert have_expected_arguments([call], prompt["target"], prompt["tools"]) is right
    tool_format = FORMATS["llama3_json"]
    assert outcome_of(tool_format.render(call, ""), prompt["target"], tool_format) == Outcome.CORRECT


def test_all_calls_of_a_parallel_request_are_wanted(tmp_path: Path):
    ostend = {"tides.height": {"port": ["Ostend"], "hour": [9]}}
    rows = [row(f"parallel_multiple_{number}", functions=(TIDES, RICE)) for number in range(4)]
    answers = [
        answer("parallel_multiple_0", {"tides.height": ACCEPTED}, {"cook_rice": {}}, ostend),
        answer("parallel_multiple_1", ostend),
        answer("parallel_multiple_2", ostend, {"boil_eggs": {}}),
        answer("parallel_multiple_3", ostend, {"tides.height": {"port": []}}),
    ]
    write(tmp_path, "parallel_multiple", rows, answers)
    builder = build(tmp_path)
    several, single = prompts_for_task(builder.as_dataset()["train"], "capability")
    calls = json.loads(several["target"]["expected_calls"])
    assert [(call["name"], call["parallel"]) for call in calls] == [
        ("tides_height", True),
        ("cook_rice", True),
        ("tides_height", True),
    ]
    assert (several["target"]["expected_tool"], several["category"]) == (None, "parallel_multiple")
    assert (calls[0]["alternatives"]["hour"], calls[2]["alternatives"]["hour"]) == ([7], [9])
    assert single["target"]["expected_tool"] == "tides_height" and "parallel" not in single["target"]["expected_calls"]
    assert [drop.reason for drop in builder.dropped()] == ["unknown_tools", "no_accepted_value"]


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
        ({}, (), "no_right_call"),
        ({}, ({"cook.rice": {}},), "unknown_tools"),
        ({}, ({"tides.height": {"port": []}},), "no_accepted_value"),
        ({"function": []}, ({"tides.height": ACCEPTED},), "no_tools"),
        ({"function": [TIDES, {**TIDES, "name": "tides_height"}]}, (), "ambiguous_tools"),
        ({"question": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]}, (), "several_turns"),
        ({"question": [[{"role": "assistant", "content": "a"}]]}, (), "no_request"),
        ({"question": [[{"role": "user", "content": " "}]]}, (), "no_request"),
    ],
)
def test_rows_that_are_no_prompt_are_dropped_by_name(tmp_path: Path, changes: dict, calls: tuple, reason: str):
    rows = [row("simple_python_1"), row("simple_python_2", **changes)]
    answers = [answer("simple_python_1"), {"id": "simple_python_2", "ground_truth": list(calls)}]
    write(tmp_path, "simple_python", rows, answers)
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


def test_an_answer_that_is_no_json_is_told_from_a_request(tmp_path: Path):
    write(tmp_path, "multiple", [row("a")], [answer("a")])
    with open(tmp_path / "possible_answer" / "BFCL_v4_multiple.json", "a", encoding="utf-8") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"^possible_answer/BFCL_v4_multiple\.json:2: not a JSON object"):
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
    pasta, fish = {**RICE, "name": "make_pasta"}, {**RICE, "name": "fry_fish"}
    write(
        tmp_path,
        "parallel",
        [row("p_1", "Fish?", (pasta, fish))],
        [answer("p_1", {"make_pasta": {}}, {"fry_fish": {}})],
    )
    egg = {**RICE, "name": "boil_eggs"}
    write(
        tmp_path,
        "multiple",
        [row("j_1", "Pasta?", (pasta,)), row("j_2", "Egg?", (egg,))],
        [answer("j_1", {"make_pasta": {}}), answer("j_2", {"boil_eggs": {}})],
    )
    rows = read_rows(sorted(tmp_path.rglob("*.json")))
    groups = dict(zip([each.id for each in rows], group_names(rows), strict=True))
    assert groups["s_1"] == groups["s_2"] == groups["i_1"] == "bfcl/cook_rice"
    assert groups["i_2"] == groups["j_2"] == "bfcl/boil_eggs"  # "Ebb?" is asked of everything
    assert groups["p_1"] == groups["j_1"] == "bfcl/fry_fish", "functions that one request needs join their rows"
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
        "verdicts": {"prompt_only": 3469},
        "groups": 959,
        "drops": {"no_accepted_value": 2, "no_tools": 4},
    }
    assert builder.config.source_revision == "bfcl-eval 2026.3.23"


def test_real_prompts_by_category(builder: TraceBuilder):
    prompts = {task: prompts_for_task(builder.as_dataset()["train"], task) for task in ("capability", "irrelevance")}
    counts = {category: sum(rows["category"].count(category) for rows in prompts.values()) for category in CATEGORIES}
    assert counts == CATEGORIES
    assert (len(prompts["capability"]), len(prompts["irrelevance"])) == (2349, 1120)


CATEGORIES = {
    "simple_python": 400,
    "multiple": 200,
    "irrelevance": 240,
    "live_simple": 256,
    "live_multiple": 1053,
    "parallel": 200,
    "parallel_multiple": 200,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
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
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

        # Offered functions, calls, right calls, and a category, which says whether all of them are wanted.
        yield lambda functions, calls, answer, category: ast_checker(
            functions, [{call.name: call.arguments} for call in calls], answer, Language.PYTHON, category, "m"
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
    agreed, otherwise = 0, []
    for trace, expected, answer in answered(builder):
        if len(expected) > 1:
            continue
        [call] = expected
        for arguments in variants(call):
            given = [ToolCall(call["name"], arguments)]
            ours = are_right(given, trace)
            theirs = checker([raw_function(package, trace, call["name"])], given, answer, "simple_python")
            agreed += ours == theirs
            otherwise += [] if ours == theirs else [(trace["id"], arguments, ours)]
    assert agreed > 10_000
    assert all(ours for *_, ours in otherwise) and len(otherwise) <= agreed / 100, otherwise[:5]


def turns(expected: list[dict], rng: random.Random) -> list[list[ToolCall]]:
    """Turns of the expected calls in several orders, of more and fewer, and with a variant of one of them."""
    right = [ToolCall(call["name"], call["arguments"]) for call in expected]
    changed = [
        [*right[:number], ToolCall(call["name"], arguments), *right[number + 1 :]]
        for number, call in enumerate(expected)
        for arguments in variants(call)
    ]
    fewer = [[*right[:number], *right[number + 1 :]] for number in range(len(right))]
    twice = [[*right[:number], right[number - 1], *right[number + 1 :]] for number in range(len(right))]
    more = [[*right, call] for call in right]
    made = [right, right[::-1], *changed, *fewer, *twice, *more]
    return [calls if rng.random() < 0.5 else rng.sample(calls, len(calls)) for calls in made]


def test_real_parallel_answers_are_judged_as_the_benchmark_does(builder: TraceBuilder, package: Path, checker):
    """Of all 17,000 turns, of which a quarter is asked, 13 are right here alone.

    Besides its check of types, the benchmark gives each right call the first of the model's that fits, and has none
    left for another where a call fits two (`parallel_178`).
    """
    rng = random.Random(0)
    verdicts, otherwise = Counter(), []
    parallel = [each for each in answered(builder) if len(each[1]) > 1]
    for trace, expected, answer in parallel[::4]:
        functions = raw_functions(package, json.loads(trace["metadata"])["category"])[
            trace["id"].removeprefix("bfcl/")
        ]
        raw_names = {function["name"].replace(".", "_"): function["name"] for function in functions}
        raw_answer = [{raw_names[name]: accepted for name, accepted in each.items()} for each in answer]
        for calls in turns(expected, rng):
            ours, theirs = are_right(calls, trace), checker(functions, calls, raw_answer, "parallel")
            verdicts[ours, theirs] += 1
            otherwise += [] if ours == theirs else [(trace["id"], calls, ours)]
    assert verdicts[True, True] > 1_000 and verdicts[False, False] > 2_000, verdicts
    assert verdicts[False, True] == 0 and len(otherwise) <= verdicts.total() / 100, (verdicts, otherwise[:5])


def answered(builder: TraceBuilder) -> Iterator[tuple[dict, list[dict], list[dict]]]:
    """Traces with their expected calls, and with the answer as the benchmark has it."""
    rows = {f"bfcl/{each.id}": each for each in read_rows(builder.inputs)}
    for trace in builder.as_dataset()["train"]:
        if expected := json.loads(trace["metadata"]).get("expected_calls"):
            yield trace, expected, [{name: accepted} for name, accepted in rows[trace["id"]].answer]


def are_right(calls: list[ToolCall], trace: dict) -> bool:
    """Whether a turn makes the right calls, arguments included."""
    expected = json.loads(trace["metadata"])["expected_calls"]
    target = dict.fromkeys(TARGET) | {"expected_tool": trace["expected_tool"], "expected_calls": json.dumps(expected)}
    blocks = (json.dumps({"name": call.name, "arguments": call.arguments}) for call in calls)
    text = "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks) + "<|im_end|>"
    is_correct = outcome_of(text, target, FORMATS["hermes"], trace["tools"]) == Outcome.CORRECT
    return is_correct and bool(have_expected_arguments(calls, target, trace["tools"]))


@cache
def raw_functions(package: Path, category: str) -> dict[str, list[dict]]:
    """The functions of each row as the benchmark has them: its checker knows its own names of types only."""
    lines = (package / "data" / f"BFCL_v4_{category}.json").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record["function"] for record in map(json.loads, lines)}


def raw_function(package: Path, trace: dict, name: str) -> dict:
    functions = raw_functions(package, json.loads(trace["metadata"])["category"])[trace["id"].removeprefix("bfcl/")]
    return next(each for each in functions if each["name"].replace(".", "_") == name)
