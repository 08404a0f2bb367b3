"""What holds for every tool-call format."""

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest

from cb_datasets.formats import FORMATS, ToolCall, _told_by
from cb_datasets.formats.typed_text import json_types
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
