"""What our formats say that a server executes, against vLLM's own parsers, put together as its server does."""

import json
import logging

import pytest

from cb_datasets.formats import FORMATS
from cb_datasets.formats.tool_call import executed_call

from .mutations import SEEDS, TOOLS, mutations


pytestmark = pytest.mark.vllm

# The real tokenizer of each format; the tiny agent has that of the canonical one.
TOKENIZERS = {
    "hermes": "qwen2.5",
    "hermes_thinking": "qwen3",
    "qwen3_xml": "qwen3.6",
    "qwen3_xml_thinking": "qwen3.6",
    "mistral_v3": "mistral-v3",
    "mistral_v11": "mistral-v11",
    "mistral_v13": "mistral-v13",
    "deepseek": "deepseek-v3",
    "deepseek_thinking": "deepseek-v3",
    "pythonic_llama4": "llama-4",
}
# Special tokens that no parser sees, since it does not ask for them (`skip_special_tokens`).
SKIPPED = {"pythonic": ("<|python_tag|>",), "pythonic_llama4": ("<|python_start|>", "<|python_end|>")}
# At which a server stops, besides: Llama's generation config names them.
STOPS = {"pythonic": ("<|eom_id|>",)}


@pytest.fixture
def quiet():
    """No log: vLLM's parsers write a traceback for each malformed call."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def calls_of_vllm(quiet, tiny_agent_path, real_tokenizer):
    """`calls_of_vllm(format)(text)`: the calls that vLLM makes of a completion without its end token."""
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.parser_manager import ParserManager

    tools = json.loads(TOOLS)
    request = ChatCompletionRequest(messages=[], model="m", tools=tools, tool_choice="auto")

    def of(tool_format):
        name = TOKENIZERS.get(tool_format.name)
        tokenizer = AutoTokenizer.from_pretrained(tiny_agent_path) if name is None else real_tokenizer(name)
        parser_class = ParserManager.get_parser(tool_format.tool_parser, tool_format.reasoning_parser, True)
        parser = parser_class(tokenizer, request.tools)

        def calls_of(text):
            try:
                _, _, found = parser.parse(text, request, enable_auto_tools=True)
                calls = [executed_call(call.name, json.loads(call.arguments)) for call in found or ()]
            # The server fails: at half of a surrogate pair when it writes its response, at deep nesting before.
            except (ValueError, RecursionError):
                return []
            return [call for call in calls if call is not None]

        return calls_of

    return of


@pytest.mark.parametrize("name", [name for name in FORMATS if name.removesuffix("_thinking") in SEEDS])
def test_1000_completions_execute_as_in_vllm(name, calls_of_vllm):
    tool_format = FORMATS[name]
    calls_of = calls_of_vllm(tool_format)
    wrong, executing = [], 0
    for completion in mutations(tool_format, 0, 1000):
        stops = (*tool_format.end_tokens, *STOPS.get(name, ()))
        ends = [at for token in stops if (at := completion.find(token)) >= 0]
        text = completion[: min(ends, default=len(completion))]
        for token in SKIPPED.get(name, ()):
            text = text.replace(token, "")
        expected = calls_of(text)
        executing += bool(expected)
        # NaN is not equal to itself
        if repr(list(tool_format.executed_calls(completion, TOOLS))) != repr(expected):
            wrong.append((completion, expected))
    assert not wrong
    assert 100 < executing < 950
