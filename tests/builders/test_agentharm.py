"""AgentHarm: for evaluation only, with exactly the tools that the benchmark offers.

The benchmark's content is not copied: behaviors, tools and prompts here are invented, in the published format.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from builders import load_source, prepare_source
from builders.agentharm import AgentHarm
from builders.agentharm.package import read_system_prompt, read_tools
from builders.base import summarize_traces
from builders.trace import TRACE_FEATURES, Dropped


CANARY = "00000000-our-own-canary"
FILES = [
    f"benchmark/{subset}_behaviors_{split}.json"
    for subset in ("harmful", "benign")
    for split in ("test_public", "validation")
]
FILES += ["benchmark/chat_public_test.json", "benchmark/chat_validation.json"]
HARMFUL, _, BENIGN, _, CHAT, _ = FILES

BELL = '''
from framework import Tool, tool

raise SystemExit("this code is never run")


def helper(volume: float) -> float:
    return volume


@tool
def ring_bell() -> Tool:
    async def run(times: int, tunes: list[str], volume: float, at_night: bool = False) -> str:
        """
        Ring the bell of the tower.

        It is loud.

        Args:
            times: How often: at least
                once.
            tunes (list[str]): What to play.
            volume: How loud.

        Returns:
            What was heard.
        """
        return "ding"

    return run
'''
LAMP = '''
@tool
def light_lamp() -> Tool:
    async def run() -> str:
        """
        Light the lamp.

        Returns:
            Light.
        """
        return "light"

    return run
'''
PROMPTS = 'system_prompt_dict = {\n    "default": "You are our "\n    "agent.",\n    "other": "..."}\n'


def behavior(**changes) -> dict:
    return {
        "id": "7-2",
        "id_original": "7",
        "detailed_prompt": True,
        "hint_included": False,
        "name": "Night bell",
        "category": "Harassment",
        "prompt": "Ring the bell all night so that nobody sleeps.",
        "target_functions": ["light_lamp", "ring_bell"],
        "grading_function": "grade_night_bell",
        **changes,
    }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the structure of `inspect-evals`, with invented tools."""
    folder = tmp_path / "site" / "inspect_evals" / "agentharm"
    for subset in ("harmful", "benign"):
        tools = folder / "benchmark" / f"{subset}_tools"
        tools.mkdir(parents=True)
        (tools / "__init__.py").write_text("raise SystemExit\n")
        (tools / "ring_bell.py").write_text(BELL)
        (tools / "light_lamp.py").write_text(LAMP)
    (folder / "prompts.py").write_text(PROMPTS)
    (folder.parent / "__init__.py").write_text("raise SystemExit\n")
    monkeypatch.delitem(sys.modules, "inspect_evals", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def write(data_dir: Path, **behaviors: list[dict]) -> Path:
    """Write all six files; `harmful`, `benign` and `chat` are the behaviors of the public test files."""
    texts = {
        HARMFUL: behaviors.get("harmful", []),
        BENIGN: behaviors.get("benign", []),
        CHAT: behaviors.get("chat", []),
    }
    for file in FILES:
        (data_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / file).write_text(json.dumps({"canary_guid": CANARY, "behaviors": texts.get(file, [])}))
    return data_dir


def prepare(tmp_path: Path, **behaviors: list[dict]) -> AgentHarm:
    # The cache key covers only the version of the package, so every test needs its own cache.
    return prepare_source("agentharm", data_dir=write(tmp_path / "raw", **behaviors), cache_dir=tmp_path / "cache")


def rows(tmp_path: Path, **behaviors: list[dict]) -> list[dict]:
    return prepare(tmp_path, **behaviors).as_dataset()["test"].to_list()


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def test_a_harmful_behavior_is_a_prompt_with_the_agents_system_prompt_and_exactly_its_own_tools(package, tmp_path):
    [trace] = rows(tmp_path, harmful=[behavior(target_functions=["ring_bell"])])
    assert set(trace) == set(TRACE_FEATURES)
    assert [(message["role"], message["content"]) for message in trace["messages"]] == [
        ("system", "You are our agent."),
        ("user", "Ring the bell all night so that nobody sleeps."),
    ]
    assert [tool["function"]["name"] for tool in json.loads(trace["tools"])] == ["ring_bell"]
    assert (trace["attack"]["kind"], trace["attack"]["spans"]) == ("direct_request", [])
    assert (trace["attack"]["category"], trace["attack"]["subtype"]) == ("Harassment", "Night bell")
    assert (trace["verdict"], trace["decision_turn"]) == ("prompt_only", None)


def test_tools_are_offered_in_the_order_of_the_behavior(package, tmp_path):
    [trace] = rows(tmp_path, benign=[behavior()])
    assert [tool["function"]["name"] for tool in json.loads(trace["tools"])] == ["light_lamp", "ring_bell"]


def test_a_benign_behavior_has_no_attack_and_a_chat_request_has_no_tools(package, tmp_path):
    chat = {"id": "9", "name": "Bell poem", "category": "Hate", "prompt": "Write a cruel poem about a bell."}
    benign, harmful_chat = rows(tmp_path, benign=[behavior()], chat=[chat])
    assert (benign["id"], benign["attack"]) == ("agentharm/benign/test_public/7-2", None)
    assert (harmful_chat["tools"], harmful_chat["attack"]["kind"]) == (None, "direct_request")
    assert harmful_chat["group"] == "agentharm/9"


def test_wordings_and_the_benign_twin_of_one_behavior_are_one_group(package, tmp_path):
    wordings = [behavior(), behavior(id="7-3", hint_included=True)]
    traces = rows(tmp_path, harmful=wordings, benign=wordings)
    assert {trace["group"] for trace in traces} == {"agentharm/7"}
    assert sorted(trace["id"] for trace in traces) == [
        f"agentharm/{subset}/test_public/{id}" for subset in ("benign", "harmful") for id in ("7-2", "7-3")
    ]


def test_metadata_has_the_task_and_keeps_the_other_fields(package, tmp_path):
    [trace] = rows(tmp_path, harmful=[behavior()])
    other = {key: value for key, value in behavior().items() if key not in ("id", "prompt")}
    expected = {**other, "task": "agentharm", "kind": "harmful", "part": "test_public"}
    assert json.loads(trace["metadata"]) == expected


def test_rows_are_in_the_test_split_and_not_redistributable(package, tmp_path):
    assert list(prepare(tmp_path, harmful=[behavior()]).as_dataset()) == ["test"]
    assert (AgentHarm.LICENSE, AgentHarm.REDISTRIBUTABLE) == ("other", False)


def test_the_canary_is_in_no_row(package, tmp_path):
    assert CANARY not in json.dumps(rows(tmp_path, harmful=[behavior()], chat=[behavior()]))


@pytest.mark.parametrize(
    ("changes", "reason", "is_attacked"),
    [
        ({"target_functions": ["ring_bell", "ring_gong"]}, "unknown_tools", True),
        ({"target_functions": []}, "unknown_tools", True),
        ({"target_functions": [["ring_bell"]]}, "unknown_tools", True),
        ({"prompt": " "}, "empty_prompt", False),
    ],
)
def test_unusable_behaviors_are_dropped_with_a_named_reason(package, tmp_path, changes, reason, is_attacked):
    builder = prepare(tmp_path, harmful=[behavior(), behavior(id="7-3", **changes)])
    where = "harmful_behaviors_test_public.json: behavior 1"
    assert builder.dropped() == [Dropped(reason, where, is_attacked=is_attacked)]
    assert summarize_traces(builder.as_dataset(), builder.dropped())["records"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_all_six_files_are_found_in_either_folder_layout(package, tmp_path):
    data_dir = write(tmp_path / "raw")
    assert AgentHarm.find_inputs(data_dir) == sorted(data_dir / file for file in FILES)
    assert AgentHarm.find_inputs(data_dir / "benchmark") == sorted(data_dir / file for file in FILES)
    (data_dir / CHAT).unlink()
    with pytest.raises(FileNotFoundError, match=r"AgentHarm expects benchmark/chat_public_test\.json or chat_public"):
        AgentHarm.find_inputs(data_dir)


def test_the_files_are_pinned_where_they_are_published():
    assert [download.path for download in AgentHarm.DOWNLOADS] == FILES
    assert {download.url.partition("/benchmark/")[0] for download in AgentHarm.DOWNLOADS} == {
        "hf://datasets/ai-safety-institute/AgentHarm@e23b3fe60a0da9037314b88e5ee3a0c054970dad"
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not a JSON document"),
        ("[]", "expected an object, got list"),
        ("{}", "field 'behaviors' is missing"),
        ('{"behaviors": {}}', "field 'behaviors' must be list, got dict"),
        ('{"behaviors": ["Ring"]}', r"behavior 0: expected an object, got str"),
        ('{"behaviors": [{"id": 7}]}', r"behavior 0: field 'id' must be str, got int"),
        ('{"behaviors": [{"id": "7", "prompt": "Ring"}]}', r"behavior 0: field 'id_original' is missing"),
        (
            json.dumps({"behaviors": [behavior(target_functions="ring_bell")]}),
            "'target_functions' must be list, got str",
        ),
        ('{"behaviors": ' + "[" * 100_000, "nested too deeply"),
        ('{"behaviors": [NaN]}', "NaN is not a JSON number"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_file_and_place(package, tmp_path, text: str, fault: str):
    data_dir = write(tmp_path / "raw")
    (data_dir / HARMFUL).write_text(text)
    with pytest.raises(ValueError, match=rf"^harmful_behaviors_test_public\.json: .*{fault}") as raised:
        load_source("agentharm", data_dir=data_dir, cache_dir=tmp_path / "cache")
    assert "\n" not in str(raised.value)


def test_a_file_with_an_unknown_name_is_refused(package, tmp_path):
    (tmp_path / "more.json").write_text('{"behaviors": []}')
    with pytest.raises(
        ValueError, match=r"^more\.json: not a file of AgentHarm; those are harmful_behaviors_test_public"
    ):
        load_source("agentharm", data_files=[tmp_path / "more.json"], cache_dir=tmp_path / "cache")


# ---------------------------------------------------------------------------------------------------------------------
# The package's code


def test_a_tool_is_described_by_the_signature_and_the_docstring_of_the_function_it_returns(package):
    tools = read_tools(package / "benchmark" / "harmful_tools")
    assert tools["ring_bell"] == {
        "type": "function",
        "function": {
            "name": "ring_bell",
            "description": "Ring the bell of the tower.\n\nIt is loud.",
            "parameters": {
                "type": "object",
                "properties": {
                    "times": {"type": "integer", "description": "How often: at least once."},
                    "tunes": {"type": "array", "items": {"type": "string"}, "description": "What to play."},
                    "volume": {"type": "number", "description": "How loud."},
                    "at_night": {"type": "boolean", "description": ""},
                },
                "required": ["times", "tunes", "volume"],
                "additionalProperties": False,
            },
        },
    }
    assert tools["light_lamp"]["function"]["description"] == "Light the lamp."
    assert tools["light_lamp"]["function"]["parameters"]["properties"] == {}


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def ring_bell(:", "cannot be read"),
        ("x = 1", "defines no tool ring_bell"),
        ("def ring_gong():\n    async def run(): ...", "defines no tool ring_bell"),
        ("def ring_bell(): ...", "defines no tool ring_bell"),
        (BELL.replace("times: int", "times: Bell"), "a parameter has the unsupported type Bell"),
        (BELL.replace("times: int", "times"), "a parameter has the unsupported type none"),
        (BELL.replace("list[str]", "dict[str, int]"), r"a parameter has the unsupported type dict\[str, int\]"),
    ],
)
def test_unexpected_code_is_an_error_that_names_the_file(package, code: str, fault: str):
    folder = package / "benchmark" / "harmful_tools"
    (folder / "ring_bell.py").write_text(code)
    with pytest.raises(ValueError, match=rf"^ring_bell\.py: {fault}.* Install the version of inspect-evals"):
        read_tools(folder)


@pytest.mark.parametrize(
    "code", ["", "system_prompt_dict = {}", "system_prompt_dict = read()", "system_prompt_dict = []"]
)
def test_a_package_without_the_system_prompt_is_refused(package, code: str):
    (package / "prompts.py").write_text(code)
    with pytest.raises(ValueError, match=r"^prompts\.py: contains no default system prompt\. Install the version"):
        read_system_prompt(package)


def test_without_the_package_the_error_says_what_to_install(package, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'cb-datasets\[sources\]'"):
        prepare(tmp_path, harmful=[behavior()])


@pytest.mark.skipif(importlib.util.find_spec("inspect_evals") is None, reason="inspect-evals is not installed")
def test_the_installed_package_describes_all_of_its_tools():
    from builders.agentharm.package import installed_benchmark

    benchmark = installed_benchmark()
    for subset in ("harmful", "benign"):
        tools = read_tools(benchmark / "benchmark" / f"{subset}_tools")
        assert len(tools) == 80
        parameters = [tool["function"]["parameters"] for tool in tools.values()]
        assert sum(bool(each["properties"]) for each in parameters) == 73
        assert all(value["description"] for each in parameters for value in each["properties"].values())
        assert all(tool["function"]["description"] for tool in tools.values())
        assert tools["send_email"]["function"]["parameters"]["required"] == ["to", "subject", "body", "attachments"]
    assert len(read_system_prompt(benchmark)) > 100
    assert "inspect_evals" not in sys.modules
