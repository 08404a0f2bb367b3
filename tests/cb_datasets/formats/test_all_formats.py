"""What holds for every tool-call format."""

import json
import random
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from builders.trace import to_json
from cb_datasets.formats import FORMATS, Diagnosis, ToolCall, ToolCallFormat, _told_by
from cb_datasets.formats.tool_call import MAX_NESTING
from cb_datasets.formats.typed_text import json_types
from cb_datasets.outcomes import outcome_of
from tests.growth import FACTOR, growth

from .edits import value_of
from .mutations import SEEDS, TOOLS, mutations


NAMES = ("search_web", "a", "getThem2", "name", "arguments", "x" * 64)
# Names that a JSON text or a tag can hold.
ODD_NAMES = ("see-docs", "files.read", "files/read", "Zoë", "天気", "a b")
QUOTED = {name for name in FORMATS if name not in ("harmony", "pythonic", "pythonic_llama4")}
SEEDED = [name for name in FORMATS if name.removesuffix("_thinking") in SEEDS]


def random_call(rng: random.Random, names: tuple[str, ...]) -> tuple[ToolCall, str]:
    """A call, and the tools that offer it."""
    arguments = {rng.choice([*NAMES, f"key{number}"]): value_of(rng) for number in range(rng.randint(0, 4))}
    name = rng.choice(names)
    properties = {key: {"type": json_types(each)[0]} for key, each in arguments.items()}
    function = {"name": name, "parameters": {"type": "object", "properties": properties}}
    return ToolCall(name, arguments), json.dumps([{"type": "function", "function": function}])


@pytest.mark.parametrize("name", FORMATS)
def test_a_rendered_call_parses_to_itself(name):
    tool_format, rng = FORMATS[name], random.Random(name)
    names = NAMES + (ODD_NAMES if name in QUOTED else ())
    for _ in range(300):
        call, tools = random_call(rng, names)
        words = rng.choice(["", "One moment.", "I'll see.\nThen: {x}"])
        completion = tool_format.render(call, words)
        parsed = tool_format.parse(completion, tools)
        assert parsed.is_call and repr(parsed.calls) == repr((call,)), completion
        assert completion[slice(*parsed.name_span)] == call.name
        assert completion[: parsed.call_span[0]] == tool_format.opening(words)
        assert parsed.call_span[1] == len(completion)
        assert parsed.text == (words if tool_format.text_before_call else "") and not parsed.thinking
        assert parsed.end == tool_format.call_end
        assert tool_format.render(call, "").startswith(tool_format.call_head(call.name))
        assert tool_format.call_head(call.name).startswith(tool_format.name_head(call.name))


@pytest.mark.parametrize("name", FORMATS)
def test_a_turn_of_words_parses_to_itself(name):
    tool_format = FORMATS[name]
    parsed = tool_format.parse(tool_format.render_text("High tide at 5."))
    assert parsed.diagnosis == "text" and parsed.text == "High tide at 5." and parsed.end == tool_format.turn_end
    assert tool_format.executed_calls(tool_format.render_text("High tide at 5.")) == ()


@pytest.mark.parametrize("name", SEEDED)
def test_no_text_raises_and_spans_are_within_it(name):
    tool_format = FORMATS[name]
    for completion in mutations(tool_format, 1, 2000):
        for tools in (None, TOOLS):
            tool_format.executed_calls(completion, tools)
            parsed = tool_format.parse(completion, tools)
            assert (parsed.call_span is not None) == (parsed.name_span is not None) == parsed.is_call
            assert 0 <= parsed.answer_start <= len(completion)
            assert all(completion.startswith(tool_format.call_tag, start) for start in parsed.call_starts)
            assert all(start >= parsed.answer_start for start in parsed.call_starts)
            if parsed.is_call:
                [call] = parsed.calls
                start, end = parsed.call_span
                assert start < parsed.name_span[0] < parsed.name_span[1] < end
                assert completion[start:end].endswith(tool_format.end_tokens)
                assert completion[slice(*parsed.name_span)] in (call.name, json.dumps(call.name)[1:-1])


ANY_TYPE = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"q": {"type": [
    "object", "array", "number", "integer", "boolean", "null"]}}}}}])  # fmt: skip
TARGET = {
    "expected_tool": "f",
    "simulated_tool": "g",
    "expected_calls": None,
    "goal_calls": to_json([{"name": "g", "arguments": {"q": "eve"}}]),
    "prefill": None,
}
# Values in place of an argument, as a model writes them: none of them is JSON that a row can hold.
ODD_VALUES = {
    "a thousand brackets": "[" * 1000 + "]" * 1000,
    "a thousand objects": '{"a":' * 1000 + "1" + "}" * 1000,
    "one bracket too many": "[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1),
    "a hundred thousand brackets": "[" * 100_000,
    "infinity": "1e999",
    "minus infinity": "-1e999",
    "not a number": "NaN",
    "a long number": "9" * 5000,
    "half of a surrogate pair": '["\\ud800"]',
}


def with_value(tool_format: ToolCallFormat, value: str) -> str:
    """A call of `f` with this text as the value of `q`."""
    call = tool_format.render(ToolCall("f", {"q": "VALUE"}), "")
    return next(call.replace(form, value) for form in ('"VALUE"', "'VALUE'", "VALUE") if form in call)


def storable(calls: tuple[ToolCall, ...]) -> bool:
    """Whether a row can hold the calls."""
    return all((call.name + to_json(call.arguments)).encode() for call in calls)


@pytest.mark.parametrize("odd", ODD_VALUES)
@pytest.mark.parametrize("name", FORMATS)
def test_what_no_row_can_hold_is_bad_json(name, odd):
    tool_format = FORMATS[name]
    completion = with_value(tool_format, ODD_VALUES[odd])
    assert tool_format.parse(with_value(tool_format, "[[1.5]]"), ANY_TYPE).is_call
    parsed = tool_format.parse(completion, ANY_TYPE)
    expected = Diagnosis.BAD_JSON
    if name.startswith(
        "pythonic"
    ):  # Python itself has no such literal, and its lists are counted before they are read
        special = {"not a number": Diagnosis.BAD_ARGUMENTS, "a hundred thousand brackets": Diagnosis.JSON_INCOMPLETE}
        expected = special.get(odd, expected)
    assert parsed.diagnosis == expected and not parsed.calls
    outcome_of(completion, TARGET, tool_format, ANY_TYPE)


@pytest.mark.parametrize("name", FORMATS)
def test_a_completion_is_read_alike_at_any_depth_of_the_stack(name):
    """Python writes fewer levels the deeper it is called: a call here would be an error in a later step."""

    def read(depth: int, completion: str) -> tuple:
        if depth:
            return read(depth - 1, completion)
        return tool_format.parse(completion, ANY_TYPE), tool_format.executed_calls(completion, ANY_TYPE)

    tool_format, deep = FORMATS[name], sys.getrecursionlimit() - 600
    for levels in (1, MAX_NESTING // 2, MAX_NESTING - 2, MAX_NESTING + 1, 300, 600, 900):
        completion = with_value(tool_format, "[" * levels + "]" * levels)
        assert read(0, completion) == read(deep, completion), levels


def random_text(rng: random.Random, tool_format: ToolCallFormat) -> str:
    """Characters of all planes, halves of surrogate pairs, numbers and nesting among what the format writes."""
    pieces = [
        lambda: chr(rng.randrange(0x110000)),
        lambda: chr(rng.choice((rng.randrange(0x20), rng.randrange(0xD800, 0xE000), 0xFFFF, 0x10FFFF))),
        lambda: rng.choice(tool_format.tokens),
        lambda: rng.choice((*'{}[]()",:=\\', '"name": "f"', '"parameters": ', '"arguments": ', "f(q=", "\\ud83d")),
        lambda: repr(rng.choice((rng.getrandbits(rng.choice((8, 64, 2000))), rng.uniform(-1e308, 1e308), 1e-320))),
        lambda: rng.choice("[{(") * rng.choice((1, 90, 110, 2000)),
        lambda: tool_format.render(ToolCall("f", {"q": value_of(rng)}), ""),
    ]
    return "".join(rng.choice(pieces)() for _ in range(rng.randint(1, 8)))


@pytest.mark.parametrize("name", FORMATS)
def test_any_text_is_read_and_what_is_read_can_be_stored(name):
    tool_format, rng = FORMATS[name], random.Random(f"any text {name}")
    for number in range(200):
        text = random_text(rng, tool_format)
        completion = with_value(tool_format, text) if number % 2 else text
        for tools in (None, ANY_TYPE):
            outcome_of(completion, TARGET, tool_format, tools)
            parsed = tool_format.parse(completion, tools)
            assert storable(parsed.calls) if parsed.is_call else True, ascii(completion)


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize(
    "pieces",
    ["{tag}", "<think>", "</think>", "{end}", '{{"a":', "{{", " ", "\n", "`", "<", "{call}", "{call} x", "a."],
)
def test_reading_takes_linear_time(name, pieces):
    tool_format = FORMATS[name]
    call = tool_format.render(ToolCall("a", {"q": "x"}), "")
    for token in tool_format.end_tokens:
        call = call.replace(token, "")
    piece = pieces.format(tag=tool_format.call_tag, end=tool_format.turn_end, call=call)
    start = tool_format.call_head("a")

    def read(text: str) -> None:
        tool_format.parse(text, TOOLS)
        tool_format.executed_calls(text, TOOLS)

    def make(length: int) -> str:
        return start + piece * (length // len(piece))

    assert growth(read, make, 4000) < 3 * FACTOR
    assert growth(read, lambda length: make(length)[len(start) :], 4000) < 3 * FACTOR


def test_templates_of_many_families_tell_the_format_of_two():
    """TRL's copies of chat templates: `<tool_call>` and `<|im_end|>` are in many that write calls in other ways."""
    import trl

    told: dict[str, set[str]] = {"hermes": set(), "qwen3_xml": set()}
    templates = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    for path in templates:
        with suppress(ValueError):
            told.setdefault(_told_by(path.read_text(encoding="utf-8")).name, set()).add(
                path.stem.split("_training")[0]
            )
    assert told["hermes"] == {"qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl"}
    assert {name.rsplit("_", 1)[0] for name in told["qwen3_xml"]} <= {"qwen3", "qwen3_5", "nemotron_3", "nemotron_3_5"}
    assert {"qwen3_5_think", "qwen3_5_nothink", "qwen3_6"} <= told["qwen3_xml"] and len(templates) > 50
