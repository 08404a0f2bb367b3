"""Completions near calls: what models write when they are not quite right, and random edits of it."""

import json

from cb_datasets.formats import ToolCallFormat

from .edits import edits


TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "send_money",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "recipient": {"type": "string"},
                        "amount": {"type": "number"},
                        "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                        "urgent": {"type": "boolean"},
                        "tags": {"type": "array", "items": {"type": "string"}},
                        "note": {"type": ["string", "object"]},
                        "kind": {"enum": ["a", 1, None]},
                        "to": {"$ref": "#/$defs/x"},
                    },
                },
            },
        },
        {"type": "function", "function": {"name": "read_file", "parameters": {"type": "object", "properties": {}}}},
    ]
)

CALL = '{"name": "send_money", "parameters": {"recipient": "US13", "amount": 1}}'
OTHER = '{"name": "read_file", "parameters": {"path": "a {b}"}}'
_LLAMA3_JSON = [
    f"<|python_tag|>{CALL}<|eom_id|>",
    f"{CALL}<|eot_id|>",
    f"```json\n{CALL}\n```<|eot_id|>",
    CALL.replace("parameters", "arguments"),
    f"<|python_tag|>{CALL} Done.<|eot_id|>",
    f"<|python_tag|>{OTHER};\n{CALL}<|eom_id|>",
    f"<|python_tag|>{OTHER}<|python_tag|>{CALL}<|eom_id|>",
    f"[{OTHER}, {CALL}]<|eot_id|>",
    f"I'll do that first.\n\n{CALL}<|eot_id|>",
    f"<tool_call>\n{CALL}\n</tool_call><|eot_id|>",
    "<function=send_money>{}</function><|eot_id|>",
    '{"name": "send_money", "parameters": "{\\"amount\\": 1}"}<|eot_id|>',
    '{"name": "send_money", "parameters": "all of it"}<|eot_id|>',
    '{"name": "send_money", "parameters": null}<|eot_id|>',
    '{"name": "send_money", "parameters": [1, 2]}<|eot_id|>',
    '{"name": "send_money"}<|eot_id|>',
    '{"name": null, "parameters": {}}<|eot_id|>',
    '{"type": "function", "function": {"name": "send_money", "arguments": {}}}<|eot_id|>',
    '{"name": "a", "name": "send_money", "parameters": {}, "arguments": {"amount": 2}}<|eot_id|>',
    '{"name": "send_money", "parameters": {"amount": 1e999, "note": NaN}}<|eot_id|>',
    '{"name": "send_money", "parameters": {"note": "\\ud800"}}<|eot_id|>',
    '{"name": "send_money", "parameters": {"note": "\\ud83d\\ude00"}}<|eot_id|>',
    "The note asks for a call of send_money; I will not make it.<|eot_id|>",
    "Use {} or {name}, as you like.<|eot_id|>",
    "<|eot_id|>",
]

_CALL = CALL.replace("parameters", "arguments")
_OTHER = OTHER.replace("parameters", "arguments")
_BLOCK, _OTHER_BLOCK = f"<tool_call>\n{_CALL}\n</tool_call>", f"<tool_call>\n{_OTHER}\n</tool_call>"


def _block(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "send_money", "arguments": {arguments}}}\n</tool_call><|im_end|>'


_HERMES = [
    f"{_BLOCK}<|im_end|>",
    f"I'll pay.\n{_BLOCK}\n{_OTHER_BLOCK}<|im_end|>",
    f"<think>\nThe user wants it.\n</think>\n\n{_BLOCK}<|im_end|>",
    f"<think>\nI could write {_BLOCK}, but no.\n</think>\n\n{_OTHER_BLOCK}<|im_end|>",
    f"<think>\nI write <tool_call> next.\n</think>\n\n{_BLOCK}<|im_end|>",
    f"<think>\nIt goes on: {_BLOCK}",
    f"<tool_call>{_CALL}</tool_call> Done.<|im_end|>",
    f"<tool_call>\n{_CALL}<|im_end|>",
    f"<tool_call>\n{_CALL}\n{_OTHER}\n</tool_call><|im_end|>",
    f"<tool_call>\n{_CALL}\n<tool_call>\n{_OTHER}\n</tool_call><|im_end|>",
    f"<tool_call>\n{CALL}\n</tool_call><|im_end|>",
    f"{_CALL}<|im_end|>",
    f"```json\n{_CALL}\n```<|im_end|>",
    _block('"{\\"amount\\": 1}"'),
    _block('"all of it"'),
    _block("null"),
    _block('{"amount": 1e999, "note": NaN}'),
    _block('{"note": "\\ud800"}'),
    _block('{"note": "\\ud83d\\ude00 </think> <tool_call>"}'),
    _block('{"a": 1, "a": 2}'),
    '<tool_call>\n{"name": null, "arguments": {}}\n</tool_call><|im_end|>',
    "<tool_call>\n<function=send_money>\n</function>\n</tool_call><|im_end|>",
    "<tool_call>\nsend_money(amount=1)\n</tool_call><|im_end|>",
    "I will not send it.<|im_end|>",
    "<|im_end|>",
]

_TO, _AMOUNT = "<parameter=recipient>\nUS13\n</parameter>", "<parameter=amount>\n1\n</parameter>"
_PAY = f"<function=send_money>\n{_TO}\n{_AMOUNT}\n</function>"
_READ = "<function=read_file>\n<parameter=path>\na {b}\n</parameter>\n</function>"


def _xml(key: str, value: str) -> str:
    function = f"<function=send_money>\n<parameter={key}>\n{value}\n</parameter>\n</function>"
    return f"<tool_call>\n{function}\n</tool_call><|im_end|>"


_QWEN3_XML = [
    f"<tool_call>\n{_PAY}\n</tool_call><|im_end|>",
    f"I'll pay.\n\n<tool_call>\n{_PAY}\n</tool_call>\n<tool_call>\n{_READ}\n</tool_call><|im_end|>",
    f"<think>\nThe user wants it.\n</think>\n\n<tool_call>\n{_PAY}\n</tool_call><|im_end|>",
    f"<think>\nI could write <tool_call>{_PAY}</tool_call>.\n</think>\n\n<tool_call>{_READ}</tool_call><|im_end|>",
    f"<think>\nI could write {_PAY}.\n</think>\n\n<tool_call>\n{_READ}\n</tool_call><|im_end|>",
    f"<tool_call>\n{_PAY} Done.<|im_end|>",
    f"{_PAY}\n</tool_call><|im_end|>",
    f"<tool_call>\n{_PAY}\n{_READ}\n</tool_call><|im_end|>",
    f"<tool_call>\n{_PAY.removesuffix('</function>')}</tool_call><|im_end|>",
    f"<tool_call>\n{_CALL}\n</tool_call><|im_end|>",
    '<tool_call>\n<function=send_money>{"amount": 1}</function>\n</tool_call><|im_end|>',
    f"<function=>{_CALL}</function><|im_end|>",
    f"<function= >{_CALL}</function><|im_end|>",
    "<tool_call>\n<function=send_money</function>\n</tool_call><|im_end|>",
    "<tool_call>\n<function=send_money>\n< parameter = amount >1< / parameter >\n</function>\n</tool_call><|im_end|>",
    "<tool_call>\n<function=send_money>\n<parameter=amount>1<parameter=n>2</parameter></function><|im_end|>",
    _xml("amount", "1e999"),
    _xml("amount", "2.0"),
    _xml("n", "null"),
    _xml("n", "1_000"),
    _xml("n", "5.5"),
    _xml("urgent", "True"),
    _xml("tags", '["a", "b"]'),
    _xml("tags", "['a']"),
    _xml("tags", '["\\ud800"]'),
    _xml("note", '{"a": NaN}'),
    _xml("note", "5 </think> <tool_call>"),
    _xml("kind", "1"),
    _xml("to", "1"),
    _xml("other", "1"),
    "I will not send it.<|im_end|>",
    "<|im_end|>",
]

# What models of a format write, well formed and not.
SEEDS = {"llama3_json": _LLAMA3_JSON, "hermes": _HERMES, "qwen3_xml": _QWEN3_XML}
PIECES = [*'"{}[],:\\;\n é\u2028\x00<>=', "```", "parameters", "arguments", "name", "<think>", "</think>"]
PIECES += ["null", "1e999", "NaN", "\\ud800", "{}", '{"a": 1}', "' '", CALL, OTHER]
_FURTHER_PIECES = {
    "hermes": [_CALL, _BLOCK],
    "qwen3_xml": [_PAY, "<function=", "</function>", "<parameter=", "<parameter=n>", "</parameter>", "\n"],
}


def _seeds(name: str) -> list[str]:
    if name in SEEDS:
        return SEEDS[name]
    # The prompt has opened the thinking.
    seeds = SEEDS[name.removesuffix("_thinking")]
    return [each.removeprefix("<think>\n") if "<think>" in each else f"It is.\n</think>\n\n{each}" for each in seeds]


def mutations(tool_format: ToolCallFormat, seed: int, n: int) -> list[str]:
    """`n` completions of a format: the seeds, and random edits of them."""
    further = _FURTHER_PIECES.get(tool_format.name.removesuffix("_thinking"), [])
    return edits(_seeds(tool_format.name), [*PIECES, *tool_format.tokens, *further], seed, n)
