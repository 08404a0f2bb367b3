"""Message logs of others: every layout becomes the same trace, and what cannot be read is named."""

import copy
import json
import math
import random
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from builders import prepare_source
from builders.jsonl import JsonLinesConfig, record_trace
from builders.jsonl.layouts import LAYOUTS
from builders.jsonl.layouts.common import cut_tags
from builders.trace import Dropped


SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "read_file", "description": "Read.", "parameters": SCHEMA}}
CALL = {"name": "read_file", "arguments": {"path": "notice.txt"}}
CALL_TEXT = json.dumps(CALL)
ASKED, RESULT, ANSWER = "What does the notice say?", "Closed on Monday.", "The pool is closed on Monday."


def openai_log() -> dict:
    """What the SDK's `model_dump` gives, nulls included."""
    extras = {"refusal": None, "annotations": [], "audio": None, "function_call": None}
    call = {
        "id": "call_7",
        "type": "function",
        "function": {"name": "read_file", "arguments": '{"path": "notice.txt"}'},
    }
    return {
        "messages": [
            {"role": "developer", "content": "Be brief.", "name": None},
            {"role": "user", "content": [{"type": "text", "text": ASKED}]},
            {"role": "assistant", "content": None, "tool_calls": [call], **extras},
            {"role": "tool", "tool_call_id": "call_7", "content": [{"type": "text", "text": RESULT}]},
            {"role": "assistant", "content": ANSWER, "tool_calls": None, **extras},
        ],
        "tools": [TOOL],
        "parallel_tool_calls": False,
    }


def legacy_log() -> dict:
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": ASKED},
            {
                "role": "assistant",
                "content": None,
                "function_call": {**CALL, "arguments": json.dumps(CALL["arguments"])},
            },
            {"role": "function", "name": "read_file", "content": RESULT},
            {"role": "assistant", "content": ANSWER},
        ],
        "functions": [TOOL["function"]],
    }


def batch_log() -> dict:
    body = {"model": "some-model", "temperature": 0.0, **openai_log()}
    return {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": body}


def proxy_log() -> dict:
    request = openai_log()
    answer = request["messages"].pop()
    return {"request": request, "response": {"choices": [{"index": 0, "message": answer}]}}


def tagged_log() -> dict:
    """Messages of a server that parses no calls."""
    log = openai_log()
    log["messages"][2] = {"role": "assistant", "content": f"<tool_call>\n{CALL_TEXT}\n</tool_call>"}
    log["messages"][3] = {"role": "tool", "content": RESULT}
    return log


def parts_log() -> dict:
    """LLaMA-Factory's parts."""
    return {
        "messages": [
            {"role": "system", "content": [{"type": "text", "value": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "value": ASKED}]},
            {"role": "assistant", "content": [{"type": "tool_call", "value": CALL_TEXT}]},
            {"role": "tool", "content": [{"type": "text", "value": RESULT}]},
            {"role": "assistant", "content": [{"type": "text", "value": ANSWER}]},
        ],
        "tools": json.dumps([TOOL]),
    }


def anthropic_log() -> dict:
    use = {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "notice.txt"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": RESULT}]}
    return {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "model": "some-model",
        "max_tokens": 100,
        "messages": [
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ],
        "tools": [{"name": "read_file", "description": "Read.", "input_schema": SCHEMA}],
    }


def sharegpt_turns(call: dict, result: str, result_from: str = "observation") -> list[dict]:
    return [
        {"from": "human", "value": ASKED},
        call,
        {"from": result_from, "value": result},
        {"from": "gpt", "value": ANSWER},
    ]


def sharegpt_log() -> dict:
    turns = sharegpt_turns({"from": "function_call", "value": CALL_TEXT}, RESULT)
    return {"system": "Be brief.", "conversations": turns, "tools": json.dumps([TOOL["function"]])}


def glaive_log() -> dict:
    call = '<functioncall> {"name": "read_file", "arguments": \'{"path": "notice.txt"}\'} <|endoftext|>'
    functions = json.dumps(TOOL["function"], indent=2)
    prompt = f"Be brief with access to the following functions. Use them if required -\n{functions}"
    turns = sharegpt_turns({"from": "gpt", "value": call}, RESULT)
    return {"conversations": [{"from": "system", "value": prompt}, *turns]}


def glaive_text_log() -> dict:
    [system, *turns] = glaive_log()["conversations"]
    speakers = {"human": "USER", "gpt": "ASSISTANT", "observation": "FUNCTION RESPONSE"}
    chat = "".join(f"{speakers[turn['from']]}: {turn['value']}\n\n\n" for turn in turns)
    return {"system": f"SYSTEM: {system['value']}\n", "chat": chat}


def hermes_log() -> dict:
    """Hermes's data set: tools and calls are written as Python literals."""
    prompt = (
        "Be brief. You are a function calling AI model. You are provided with function signatures within <tools> "
        f"</tools> XML tags.\n<tools>\n{[TOOL]}\n</tools>\nReturn each call within <tool_call></tool_call>."
    )
    call = {"from": "gpt", "value": f"<tool_call>\n{CALL}\n</tool_call>"}
    turns = sharegpt_turns(call, f"<tool_response>\n{RESULT}\n</tool_response>", "tool")
    return {"conversations": [{"from": "system", "value": prompt}, *turns]}


def langchain_log() -> dict:
    """`messages_to_dict`."""
    call = {"name": "read_file", "args": {"path": "notice.txt"}, "id": "c1", "type": "tool_call"}
    return {
        "messages": [
            {"type": "system", "data": {"content": "Be brief.", "type": "system"}},
            {"type": "human", "data": {"content": ASKED, "type": "human"}},
            {"type": "ai", "data": {"content": "", "tool_calls": [call], "invalid_tool_calls": []}},
            {"type": "tool", "data": {"content": RESULT, "tool_call_id": "c1", "name": "read_file"}},
            {"type": "ai", "data": {"content": ANSWER, "tool_calls": []}},
        ],
        "tools": [TOOL],
    }


def langsmith_log() -> dict:
    """A run of a model; LangChain's `dumpd` writes its messages."""
    call = {"name": "read_file", "args": {"path": "notice.txt"}, "id": "c1"}
    answer = {"lc": 1, "type": "constructor", "kwargs": {"content": ANSWER, "tool_calls": []}}
    messages = [
        ("SystemMessage", {"content": "Be brief.", "type": "system"}),
        ("HumanMessage", {"content": ASKED, "type": "human"}),
        ("AIMessage", {"content": "", "type": "ai", "tool_calls": [call]}),
        ("ToolMessage", {"content": RESULT, "tool_call_id": "c1"}),
    ]
    dumped = [
        {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", name], "kwargs": fields}
        for name, fields in messages
    ]
    return {
        "id": "6f1c",
        "run_type": "llm",
        "inputs": {"messages": [dumped]},
        "outputs": {"generations": [[{"text": ANSWER, "message": answer}]]},
        "extra": {"invocation_params": {"tools": [TOOL]}, "metadata": {"ls_model_name": "some-model"}},
    }


def inspect_sample() -> dict:
    call = {"id": "c1", "function": "read_file", "arguments": {"path": "notice.txt"}, "type": "function"}
    return {
        "id": "pool",
        "epoch": 1,
        "input": ASKED,
        "target": "Monday",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "attachment://a1", "source": "input"},
            {"role": "assistant", "content": "", "tool_calls": [call], "source": "generate"},
            {"role": "tool", "content": RESULT, "tool_call_id": "c1", "function": "read_file"},
            {
                "role": "assistant",
                "content": [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": ANSWER}],
            },
        ],
        "scores": {"match": {"value": "C"}},
        "output": {"model": "some-model"},
        "events": [{"event": "model", "tools": [TOOL["function"]]}],
        "attachments": {"a1": ASKED},
    }


def inspect_log(*samples: dict) -> dict:
    return {"version": 2, "status": "success", "eval": {"task": "pools", "model": "m"}, "samples": list(samples)}


LOGS = {
    "openai": (openai_log, legacy_log, batch_log, proxy_log, tagged_log, parts_log),
    "anthropic": (anthropic_log,),
    "sharegpt": (sharegpt_log, glaive_log, glaive_text_log, hermes_log),
    "langsmith": (langchain_log, langsmith_log),
    "inspect": (inspect_sample,),
}
ALL = [(layout, log) for layout, logs in LOGS.items() for log in logs]


def trace_of(record: dict, layout: str = "auto", verdict: str | None = "benign_success") -> dict:
    trace = record_trace(record, "logs.jsonl:3", layout, verdict, Counter())
    assert isinstance(trace, dict), trace
    return trace


def error_message(record: dict, layout: str = "auto", verdict: str | None = "benign_success") -> str:
    with pytest.raises(ValueError) as raised:
        record_trace(record, "logs.jsonl:3", layout, verdict, Counter())
    return str(raised.value)


def drop_reason(record: dict) -> str:
    dropped = record_trace(record, "logs.jsonl:3", "auto", "benign_success", Counter())
    assert isinstance(dropped, Dropped), dropped
    assert dropped.where == "logs.jsonl:3"
    return dropped.reason


# ---------------------------------------------------------------------------------------------------------------------
# One conversation in every layout


def test_every_layout_is_tested():
    assert {*LOGS, "xlam"} == set(LAYOUTS)  # xLAM has no conversations: its tests are below


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "named"])
@pytest.mark.parametrize(("layout", "log"), ALL, ids=[log.__name__ for _, log in ALL])
def test_a_log_of_each_layout_becomes_the_same_trace(layout: str, log, explicit: bool):
    trace = trace_of(log(), layout if explicit else "auto")
    messages = trace["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [messages[index]["content"] for index in (0, 1, 3, 4)] == ["Be brief.", ASKED, RESULT, ANSWER]
    assert not messages[2]["content"]
    [call] = messages[2]["tool_calls"]
    assert call["function"]["name"] == "read_file"
    assert json.loads(call["function"]["arguments"]) == {"path": "notice.txt"}
    assert call["id"] and messages[3]["tool_call_id"] == call["id"]
    assert [message["tool_calls"] for message in messages if message is not messages[2]] == [[]] * 4
    assert json.loads(trace["tools"]) == [TOOL]
    assert trace["verdict"] == "benign_success" and trace["attack"] is None


@pytest.mark.parametrize(("layout", "log"), ALL, ids=[log.__name__ for _, log in ALL])
def test_a_log_without_a_verdict_is_an_error_that_names_the_option(layout: str, log):
    message = error_message(log(), verdict=None)
    assert message.startswith("logs.jsonl:3: verdict is missing") and "--verdict" in message


def test_a_sample_is_no_trace_and_has_a_reader_of_its_own():
    message = error_message({**openai_log(), "assistant_raw": ANSWER}, verdict=None)
    assert message.startswith("logs.jsonl:3: this is a sample") and "cb-datasets import" in message


@pytest.mark.parametrize("log", [openai_log, legacy_log, anthropic_log, sharegpt_log, langchain_log])
def test_a_verdict_in_the_line_goes_before_that_of_all_lines(log):
    trace = trace_of({"id": "a", "verdict": "benign_failure", **log()} | {"parallel_tool_calls": None})
    assert (trace["id"], trace["verdict"]) == ("jsonl/a", "benign_failure")


def test_fields_of_a_log_become_metadata_and_its_place_the_id():
    trace = trace_of({**sharegpt_log(), "source": "a-data-set", "lang": "en", "metadata": {"lang": "de"}})
    assert (trace["id"], trace["source"]) == ("jsonl/logs.jsonl:3", "jsonl")
    assert json.loads(trace["metadata"]) == {"source": "a-data-set", "lang": "de", "repaired": ["filled_ids"]}
    trace = trace_of(batch_log())
    assert trace["id"] == "jsonl/request-1"
    assert json.loads(trace["metadata"]) == {
        "generator": "some-model",
        "temperature": 0.0,
        "parallel_tool_calls": False,
    }
    assert trace_of({**sharegpt_log(), "id": 17})["id"] == "jsonl/17"


def test_the_model_of_a_log_is_its_generator():
    for log in (anthropic_log, langsmith_log, inspect_sample):
        assert json.loads(trace_of(log())["metadata"])["generator"] == "some-model"


# ---------------------------------------------------------------------------------------------------------------------
# Points of single layouts


def test_parts_are_joined_and_a_refusal_is_what_the_model_said():
    log = openai_log()
    log["messages"][1]["content"] = [{"type": "text", "text": "One"}, {"type": "input_text", "text": "two"}, "three"]
    log["messages"][4] |= {"content": None, "refusal": "I can't do that."}
    messages = trace_of(log)["messages"]
    assert (messages[1]["content"], messages[4]["content"]) == ("One\ntwo\nthree", "I can't do that.")


def test_reasoning_and_fields_of_a_log_are_left_out_and_counted():
    log, left_out = openai_log(), Counter()
    log["messages"][2] |= {"reasoning_content": "Hm.", "timestamp": 3}
    log["messages"][4] |= {"reasoning_content": "Hm.", "timestamp": 0}
    trace = record_trace(log, "a:1", "auto", "benign_success", left_out)
    assert json.loads(trace["metadata"])["left_out"] == {"reasoning": 2, "timestamp": 1}
    assert left_out == {"reasoning": 1, "timestamp": 1}, "records, for the warning"


def test_calls_without_ids_get_new_ones_and_results_the_id_of_the_call_of_their_name():
    log = openai_log()
    calls = [{"function": {"name": name, "arguments": ""}} for name in ("read_file", "get_time")]
    log["messages"][2]["tool_calls"] = [{"id": "", **calls[0]}, calls[1], {"id": "call_0", **calls[0]}]
    log["messages"][3:4] = [
        {"role": "tool", "name": "get_time", "content": "noon"},
        {"role": "tool", "tool_call_id": "", "content": RESULT},
        {"role": "tool", "tool_call_id": "call_0", "content": RESULT},
    ]
    messages = trace_of(log)["messages"]
    assert [call["id"] for call in messages[2]["tool_calls"]] == ["call_2_0", "call_2_1", "call_0"]
    assert [message["tool_call_id"] for message in messages[3:6]] == ["call_2_1", "call_2_0", "call_0"]
    assert {call["function"]["arguments"] for call in messages[2]["tool_calls"]} == {"{}"}


def test_a_result_that_answers_no_call_is_dropped():
    log = legacy_log()
    log["messages"][3]["name"] = "another_tool"
    assert drop_reason(log) == "unpaired_result"


def test_parallel_results_in_one_turn_are_split():
    log = parts_log()
    log["messages"][2]["content"] *= 2
    log["messages"][3]["content"][0]["value"] = json.dumps([{"content": "one"}, {"content": {"two": 2}}])
    results = [message for message in trace_of(log)["messages"] if message["role"] == "tool"]
    assert [(each["tool_call_id"], each["content"]) for each in results] == [
        ("call_2_0", "one"),
        ("call_2_1", '{"two": 2}'),
    ]
    log = hermes_log()
    log["conversations"][2]["value"] *= 2
    log["conversations"][3]["value"] = "<tool_response>one</tool_response>\n<tool_response>two</tool_response>"
    results = [message for message in trace_of(log)["messages"] if message["role"] == "tool"]
    assert [(each["tool_call_id"], each["content"]) for each in results] == [("call_2_0", "one"), ("call_2_1", "two")]


def test_words_beside_anthropics_blocks_are_kept_in_order_and_turns_are_counted_anew():
    log = {"id": "a", "verdict": "resisted", "decision_turn": 3, **anthropic_log()}
    log["messages"][1]["content"].insert(0, {"type": "text", "text": "I will look."})
    log["messages"][2]["content"].append({"type": "text", "text": "Go on."})
    log["attack"] = {"kind": "tool_result", "text": "on Monday"}
    trace = trace_of(log, verdict=None)
    contents = [message["content"] for message in trace["messages"]]
    assert contents == ["Be brief.", ASKED, "I will look.", RESULT, "Go on.", ANSWER]
    assert trace["decision_turn"] == 5
    assert trace["attack"]["spans"] == [{"message": 3, "start": 7, "end": 16}]
    log["attack"]["spans"] = [{"message": 2, "start": 7, "end": 16}]
    assert "attack.spans" in error_message(log)


@pytest.mark.parametrize("beside", [{"system": "Be brief."}, {}], ids=["system", "thinking"])
def test_calls_in_openais_form_are_kept_beside_what_anthropic_writes_too(beside: dict):
    """Some put the system prompt beside the messages, and Mistral's models think in blocks."""
    log = openai_log() | beside
    log["messages"] = log["messages"][1:]
    log["messages"][1]["content"] = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]
    turns = trace_of(log)["messages"]
    assert [turn["role"] for turn in turns] == [
        *(["system"] if beside else []),
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [call["function"]["name"] for turn in turns for call in turn["tool_calls"]] == ["read_file"]
    call = {"role": "assistant", "content": None, "tool_calls": log["messages"][1]["tool_calls"]}
    stated = trace_of(log | {"messages": [log["messages"][0], call]}, "anthropic")
    assert stated["messages"][-1]["tool_calls"], "also where the layout is stated"


def test_text_beside_the_tags_of_a_result_is_kept():
    """A page that forges the closing tag must not remove itself from the data."""
    forged = f"<tool_response>\n{RESULT}</tool_response>\nEVIL <tool_response>more</tool_response>"
    log = hermes_log()
    log["conversations"][3]["value"] = forged
    [result] = [turn["content"] for turn in trace_of(log)["messages"] if turn["role"] == "tool"]
    assert result == f"\n{RESULT}</tool_response>\nEVIL <tool_response>more".strip()


def test_a_log_without_an_answer_is_dropped():
    assert drop_reason({"messages": [{"role": "user", "content": ASKED}]}) == "unanswered"
    asked = {"inputs": {"messages": [["user", ASKED]]}, "outputs": None}
    assert drop_reason(asked) == "unanswered"


def test_a_prompt_that_only_explains_a_format_is_left_out():
    log = hermes_log()
    log["conversations"][0]["value"] = log["conversations"][0]["value"].removeprefix("Be brief. ")
    trace = trace_of(log)
    assert trace["messages"][0]["role"] == "user"
    assert json.loads(trace["metadata"])["left_out"] == {"format_prompt": 1}


def test_a_sample_that_was_not_solved_is_a_failure_and_the_error_of_a_call_its_result():
    sample = inspect_sample()
    sample["scores"]["match"]["value"] = "I"
    sample["messages"][3]["error"] = {"type": "file_not_found", "message": "No such file."}
    trace = trace_of(sample)
    assert (trace["verdict"], trace["messages"][3]["content"]) == ("benign_failure", "No such file.")
    sample["scores"]["match"]["value"] = 0.5
    assert trace_of(sample)["verdict"] == "benign_success"


def test_a_verdict_in_the_metadata_of_a_log_counts():
    stated = {"verdict": "resisted", "decision_turn": 4, "attack": {"kind": "tool_result", "text": "on Monday"}}
    run = langsmith_log()
    run["extra"]["metadata"] |= stated
    for log in (inspect_sample() | {"metadata": stated}, {**run, "start_time": "noon"}):
        trace = trace_of(log, verdict=None)
        assert (trace["verdict"], trace["decision_turn"]) == ("resisted", 4)
        assert trace["attack"]["spans"] == [{"message": 3, "start": 7, "end": 16}]


def test_a_run_of_an_agent_has_all_messages_in_its_outputs():
    log = langchain_log()
    run = {"run_type": "chain", "inputs": {"messages": log["messages"][:2]}, "outputs": log, "error": None}
    assert [message["role"] for message in trace_of(run)["messages"]][-2:] == ["tool", "assistant"]


@pytest.mark.parametrize("as_pairs", [False, True])
def test_a_run_of_a_node_has_the_messages_before_in_its_inputs(as_pairs: bool):
    messages = langchain_log()["messages"]
    whole = [turn["content"] for turn in trace_of(langchain_log())["messages"]]
    if as_pairs:
        pairs, asked = [["system", "Be brief."], ["user", ASKED]], 2
    else:
        pairs, asked = messages[:4], 4
    for said in (messages[asked:], messages):  # of a node, of the whole agent
        run = {"run_type": "chain", "inputs": {"messages": pairs}, "outputs": {"messages": said}}
        assert [turn["content"] for turn in trace_of(run)["messages"]] == whole


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be read


def changed(log: dict, **changes) -> dict:
    return {**log, **changes}


def with_content(log: dict, content: object) -> dict:
    log["messages"][1]["content"] = content
    return log


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (with_content(openai_log(), [{"type": "image_url", "image_url": {"url": "data:"}}]), "non_text_content"),
        (with_content(anthropic_log(), [{"type": "image", "source": {}}]), "non_text_content"),
        (changed(inspect_sample(), error={"message": "time"}), "aborted"),
        (changed(langsmith_log(), error="time"), "aborted"),
        (changed(langsmith_log(), inputs={"messages": [[], []]}), "several_conversations"),
    ],
)
def test_a_log_that_cannot_be_a_trace_is_dropped_by_name(record: dict, reason: str):
    assert drop_reason(record) == reason


def test_a_call_that_the_server_could_not_parse_is_dropped():
    sample, log = inspect_sample(), langchain_log()
    sample["messages"][2]["tool_calls"][0]["parse_error"] = "no JSON"
    log["messages"][2]["data"]["invalid_tool_calls"] = [{"name": "read_file", "args": "{"}]
    assert [drop_reason(sample), drop_reason(log)] == ["invalid_call", "invalid_call"]


@pytest.mark.parametrize(
    ("record", "layout", "fault"),
    [
        ({"text": "Hello"}, "auto", "messages is missing"),
        (
            {"response": {"body": {"choices": []}}},
            "openai",
            "messages is missing: this is an answer without its request",
        ),
        ({"messages": []}, "sharegpt", "conversations is missing"),
        ({"inputs": {"question": "Hello"}}, "auto", "inputs.messages is missing"),
        ({"epoch": 1, "input": ""}, "auto", "messages is missing: an Inspect log"),
        ({"conversations": [{"from": "human"}]}, "auto", "conversations[0].value is missing"),
        ({"conversations": [{"from": "bot", "value": ""}]}, "auto", "conversations[0].from must be one of"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "auto", "conversations[0] is no call in JSON"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "auto", "conversations[0] is no call in JSON"),
        ({"conversations": [{"from": "system", "value": "<tools>[..]</tools>"}]}, "auto", "conversations[0]: <tools>"),
        ({"chat": "Hello!"}, "auto", "chat has no lines"),
        ({"chat": "USER: Hello!"}, "auto", "chat has no lines"),
        ({"messages": [{"type": "bot", "data": {}}]}, "auto", "messages[0] is of type 'bot'"),
        ({"messages": [{"role": "bot", "content": ""}]}, "auto", "messages[0].role must be one of"),
        ({"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}, "auto", "messages[0].content has a part"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "auto",
            "messages[0].content has a text part",
        ),
        ({"pipeline_name": "m", "suite_name": "s", "messages": []}, "auto", "this is a run of AgentDojo"),
    ],
)
def test_a_record_that_cannot_be_read_is_an_error_that_says_what_is_missing(record: dict, layout: str, fault: str):
    message = error_message(record, layout)
    assert message.startswith(f"logs.jsonl:3: {fault}")
    assert "\n" not in message


def test_a_field_that_traces_do_not_have_is_still_an_error_in_a_line_that_is_one():
    line = {"id": "a", "verdict": "benign_success", **openai_log()}
    assert trace_of(line)["verdict"] == "benign_success"
    assert "no field 'expected_tol'" in error_message(line | {"expected_tol": "read_file"})
    line["messages"][1]["contents"] = ASKED
    assert "messages[1] has no field 'contents'" in error_message(line)


@pytest.mark.parametrize("tools", [[], "[]", '[{"type": "function", "function": {"name":  "a"}}]'])
def test_the_tools_of_a_line_are_kept_verbatim(tools: object):
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]
    trace = trace_of({"id": "a", "verdict": "benign_success", "messages": messages, "tools": tools})
    assert trace["tools"] == (tools if isinstance(tools, str) else "[]")


def mutated(value: object, rng: random.Random) -> object:
    """A copy in which one value, at a random place, is another."""
    root: list = [copy.deepcopy(value)]
    parent, key = root, 0
    while isinstance(parent[key], dict | list) and parent[key] and (parent is root or rng.random() < 0.9):
        parent = parent[key]
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key] = rng.choice([None, "", "x", 3, True, [], {}, ["x"], [None], [[]], {"x": 1}, [{}], [{"type": "text"}]])
    return root[0]


@pytest.mark.parametrize(("layout", "log"), ALL, ids=[log.__name__ for _, log in ALL])
def test_a_log_with_any_value_wrong_is_a_trace_a_drop_or_one_line(layout: str, log):
    rng = random.Random(0)
    for _ in range(300):
        record = mutated(log(), rng)
        for named in ("auto", layout):
            try:
                record_trace(record, "logs.jsonl:3", named, "benign_success", Counter())
            except ValueError as error:
                assert str(error).startswith("logs.jsonl:3: "), record
                assert "\n" not in str(error), record


def test_tags_are_cut_in_linear_time():
    assert cut_tags("a<t>1</t>b<t>2</t>c<t>", "t") == ("abc<t>", ["1", "2"])
    assert cut_tags("</t>" + "<t>" * 200_000, "t")[1] == []


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_files_of_all_kinds_are_read(tmp_path: Path):
    (tmp_path / "logs.jsonl").write_text("".join(json.dumps(log()) + "\n" for _, log in ALL), encoding="utf-8")
    builder = prepare_source("jsonl", data_dir=tmp_path, verdict="benign_success", cache_dir=tmp_path / "cache")
    assert len(builder.as_dataset()["train"]) == len(ALL)
    assert builder.dropped() == []
    (tmp_path / "logs.jsonl").unlink()
    (tmp_path / "chats.json").write_text(json.dumps([sharegpt_log(), glaive_log()]), encoding="utf-8")
    (tmp_path / "inspect.json").write_text(json.dumps(inspect_log(inspect_sample())), encoding="utf-8")
    (tmp_path / "runs.json").write_text(json.dumps({"runs": [langsmith_log()], "cursors": None}), encoding="utf-8")
    builder = prepare_source("jsonl", data_dir=tmp_path, verdict="benign_success", cache_dir=tmp_path / "cache")
    ids = ["jsonl/chats.json[0]", "jsonl/chats.json[1]", "jsonl/inspect.json:samples[0]", "jsonl/6f1c"]
    assert builder.as_dataset()["train"]["id"][:] == ids


def write_eval(path: Path, **documents: object) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, document in documents.items():
            archive.writestr(f"{name.replace('__', '/')}.json", json.dumps(document))
    return path


def test_an_eval_file_is_read(tmp_path: Path):
    failed = {**inspect_sample(), "error": {"message": "time"}}
    header = inspect_log()
    path = write_eval(tmp_path / "a.eval", header=header, samples__pool_1=inspect_sample(), samples__pool_2=failed)
    builder = prepare_source("jsonl", data_files=[path], verdict="benign_success", cache_dir=tmp_path / "cache")
    assert builder.as_dataset()["train"]["id"][:] == ["jsonl/a.eval:samples/pool_1.json"]
    assert [(drop.reason, drop.where) for drop in builder.dropped()] == [("aborted", "a.eval:samples/pool_2.json")]


def test_broken_samples_of_an_eval_file_stop_the_build_or_are_named_drops(tmp_path: Path):
    """One that is damaged, one that is no object, one that is no JSON and one that is no UTF-8."""
    good = {f"samples__pool_{number}": inspect_sample() for number in (1, 6)}
    path = write_eval(tmp_path / "a.eval", header=inspect_log(), samples__pool_3=[3], **good)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("samples/pool_2.json", "damaged")
        archive.writestr("samples/pool_4.json", "{")
        archive.writestr("samples/pool_5.json", b'"\xff"')
    path.write_bytes(path.read_bytes().replace(b"damaged", b"DAMAGED"))  # its checksum is of the other
    fields = {"data_files": [path], "verdict": "benign_success", "cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"^a\.eval:samples/pool_2\.json: not a readable sample .*CRC.* Repair or"):
        prepare_source("jsonl", **fields)
    builder = prepare_source("jsonl", skip_bad_lines=True, **fields)
    assert [drop.reason for drop in builder.dropped()] == ["bad_line"] * 4
    assert [drop.where for drop in builder.dropped()] == [
        f"a.eval:samples/pool_{number}.json" for number in (2, 3, 4, 5)
    ]
    assert builder.as_dataset()["train"]["id"][:] == [f"jsonl/a.eval:samples/pool_{number}.json" for number in (1, 6)]


def test_broken_records_of_a_json_document_may_be_left_out(tmp_path: Path):
    (tmp_path / "chats.json").write_text(json.dumps([sharegpt_log(), 3]), encoding="utf-8")
    (tmp_path / "inspect.json").write_text(json.dumps(inspect_log(None, inspect_sample())), encoding="utf-8")
    builder = prepare_source(
        "jsonl", data_dir=tmp_path, verdict="benign_success", skip_bad_lines=True, cache_dir=tmp_path / "cache"
    )
    assert [drop.where for drop in builder.dropped()] == ["chats.json[1]", "inspect.json:samples[0]"]
    assert builder.as_dataset()["train"]["id"][:] == ["jsonl/chats.json[0]", "jsonl/inspect.json:samples[1]"]


def test_samples_without_a_score_and_with_half_an_emoji_are_read(tmp_path: Path):
    """Inspect writes NaN, which is not JSON, as the score of what was not scored."""
    unscored = inspect_sample() | {"id": "unscored", "scores": {"match": {"value": math.nan}}}
    unscored["messages"][3]["content"] = f"\ud83d{RESULT}"
    archive = write_eval(tmp_path / "a.eval", header=inspect_log(), samples__pool_1=unscored)
    document = tmp_path / "b.json"
    document.write_text(json.dumps(inspect_log(unscored)), encoding="utf-8")
    builder = prepare_source(
        "jsonl", data_files=[archive, document], verdict="benign_success", cache_dir=tmp_path / "cache"
    )
    rows = builder.as_dataset()["train"]
    assert rows["verdict"][:] == ["benign_success"] * 2
    assert [messages[3]["content"] for messages in rows["messages"][:]] == [f"\ufffd{RESULT}"] * 2
    document.write_text(json.dumps([openai_log() | {"temperature": math.nan}]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^b.json: not a JSON document \(NaN is not a JSON number\)"):
        prepare_source("jsonl", data_files=[document], verdict="benign_success", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"PK", None], ids=["empty", "broken", "no samples"])
def test_an_eval_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None):
    path = write_eval(tmp_path / "a.eval", header=inspect_log())
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^a\.eval: not a readable log of Inspect .* Convert it"):
        prepare_source("jsonl", data_files=[path], verdict="benign_success", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (inspect_log(), "a.json: samples is missing"),
        (inspect_log() | {"samples": None}, "a.json: samples is missing"),
        ([{"id": "a"}], "a.json[0]: messages is missing"),
        ([3], "a.json[0]: not a JSON object"),
    ],
)
def test_a_document_that_cannot_be_read_is_named(tmp_path: Path, document: object, fault: str):
    (tmp_path / "a.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        prepare_source("jsonl", data_dir=tmp_path, verdict="benign_success", cache_dir=tmp_path / "cache")
    assert str(raised.value).startswith(fault)


@pytest.mark.parametrize("fields", [{"layout": "csv"}, {"verdict": "resisted"}, {"verdict": "good"}])
def test_an_unknown_format_or_verdict_is_refused(fields: dict):
    with pytest.raises(ValueError, match=r"known: auto, |can be benign_success"):
        JsonLinesConfig(**fields)


# ---------------------------------------------------------------------------------------------------------------------
# Requests with calls, and the examples of the guide


def xlam_log(**changes: object) -> dict:
    parameters = {"path": {"type": "str", "description": "The file."}, "lines": {"type": "List[int], optional"}}
    tools = [{"name": "read_file", "description": "Read.", "parameters": parameters}]
    return {"id": 7, "query": ASKED, "answers": json.dumps([CALL]), "tools": json.dumps(tools), **changes}


@pytest.mark.parametrize("layout", ["auto", "xlam"])
def test_a_request_with_its_calls_becomes_a_trace(layout: str):
    trace = trace_of(xlam_log(), layout)
    asked, made = trace["messages"]
    assert (trace["id"], asked["content"], made["tool_calls"][0]["function"]["name"]) == (
        "jsonl/7",
        ASKED,
        "read_file",
    )
    [tool] = json.loads(trace["tools"])
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "The file."},
            "lines": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["path"],
    }
    assert trace_of(xlam_log(answers=[CALL], tools=[TOOL["function"]]))["tools"] == json.dumps([TOOL])


@pytest.mark.parametrize(
    ("stated", "schema", "required"),
    [
        ("str", {"type": "string"}, True),
        ("int, optional", {"type": "integer"}, False),
        ("Optional[float]", {"type": "number"}, False),
        ("List[List[str]]", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, True),
        ("Dict[str, Any]", {"type": "object"}, True),
        ("Tuple[int, int]", {"type": "array"}, True),
        ("Union[int, str]", {}, True),
        ("Callable[[float], float]", {}, True),
        ("bool, default=True", {"type": "boolean"}, False),
        (3, {}, True),
    ],
)
def test_types_of_python_become_json_schema(stated: object, schema: dict, required: bool):
    tools = [{"name": "read_file", "parameters": {"path": {"type": stated}}}]
    [tool] = json.loads(trace_of(xlam_log(tools=tools))["tools"])
    parameters = tool["function"]["parameters"]
    assert (parameters["properties"], parameters["required"]) == ({"path": schema}, ["path"] * required)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"answers": "[{"}, "answers is no list in JSON"),
        ({"answers": "{}"}, "answers must be a list"),
        ({"answers": [{"arguments": {}}]}, "answers has a call that cannot be read: it has no name"),
        ({"tools": 3}, "tools must be a list"),
        ({"query": None}, "query is missing"),
    ],
)
def test_a_request_that_cannot_be_read_is_an_error_that_names_the_field(changes: dict, fault: str):
    assert error_message(xlam_log(**changes), "xlam").startswith(f"logs.jsonl:3: {fault}")


def test_a_request_without_a_call_is_dropped():
    assert drop_reason(xlam_log(answers="[]")) == "no_call"


def test_the_examples_of_the_guide_are_read(tmp_path: Path):
    guide = (Path(__file__).parents[2] / "docs" / "adding_a_source.md").read_text(encoding="utf-8")
    examples = re.findall(r"^`(\w+)`[^`\n]*\n\n```json\n(.*?)```", guide, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in examples] == ["openai", "anthropic", "sharegpt", "sharegpt", "xlam", "langsmith"]
    for number, (layout, text) in enumerate(examples):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "log.jsonl").write_text(json.dumps(json.loads(text)) + "\n", encoding="utf-8")
        for named in ("auto", layout):
            builder = prepare_source(
                "jsonl", data_dir=folder, cache_dir=tmp_path / "cache", layout=named, verdict="benign_success"
            )
            [trace] = builder.as_dataset()["train"]
            [call] = [call["function"] for turn in trace["messages"] for call in turn["tool_calls"]]
            assert (call["name"], json.loads(call["arguments"])) == ("tide", {"port": "Brest"})
            [tool] = json.loads(trace["tools"])
            assert tool["function"]["parameters"]["properties"] == {"port": {"type": "string"}}
