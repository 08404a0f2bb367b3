"""What our formats say that a server executes, against vLLM's own parsers."""

import json

import pytest

from cb_datasets.formats import FORMATS
from cb_datasets.formats.tool_call import executed_call

from .mutations import mutations


pytestmark = pytest.mark.vllm

PARSERS = {"llama3_json": "llama3_json"}


def calls_of_vllm(parser, body):
    """The calls that vLLM makes of a completion without its end token, as a client decodes them."""
    extracted = parser.extract_tool_calls(body, request=None)
    found = [(call.function.name, json.loads(call.function.arguments)) for call in extracted.tool_calls]
    try:
        calls = [executed_call(*call) for call in found]
    except UnicodeEncodeError:  # half of a surrogate pair, on which the server fails when it writes its response
        return []
    return [call for call in calls if call is not None]


@pytest.mark.parametrize("name", FORMATS)
def test_1000_completions_execute_as_in_vllm(name, tiny_agent_path):
    from transformers import AutoTokenizer
    from vllm.tool_parsers import ToolParserManager

    tool_format = FORMATS[name]
    parser = ToolParserManager.get_tool_parser(PARSERS[name])(AutoTokenizer.from_pretrained(tiny_agent_path))
    wrong, executing = [], 0
    for completion in mutations(0, 1000):
        ends = [at for token in tool_format.end_tokens if (at := completion.find(token)) >= 0]
        expected = calls_of_vllm(parser, completion[: min(ends, default=len(completion))])
        executing += bool(expected)
        if repr(list(tool_format.executed_calls(completion))) != repr(expected):  # NaN is not equal to itself
            wrong.append((completion, expected))
    assert not wrong
    assert 200 < executing < 800
