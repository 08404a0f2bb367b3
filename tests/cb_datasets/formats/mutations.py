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
    f"<|python_tag|>{OTHER}{CALL}<|eom_id|>",
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
    _xml("kind", "1.5"),
    _xml("to", "1"),
    _xml("other", "1"),
    "I will not send it.<|im_end|>",
    "<|im_end|>",
]

_MISTRAL_V3 = [
    f"[TOOL_CALLS][{_CALL}]</s>",
    f"[TOOL_CALLS] [{_CALL}, {_OTHER}]</s>",
    f"I'll pay. [TOOL_CALLS]{_CALL}</s>",
    f"[TOOL_CALLS][{_CALL}] Done. [TOOL_CALLS][{_OTHER}]</s>",
    f"[TOOL_CALLS]Sure: [{_CALL}] Done.</s>",
    f"[TOOL_CALLS][TOOL_CALLS] [{_CALL}]</s>",
    '[TOOL_CALLS][{"name": "send_money", "arguments": "{\\"amount\\": 1}", "id": "abcdefghi"}]</s>',
    '[TOOL_CALLS][{"name": null, "arguments": null}, 5, {"a": 1}, {"arguments": {"amount": 1}}]</s>',
    '[TOOL_CALLS][{"name": "send_money", "arguments": {"amount": 1e999, "note": NaN}}]</s>',
    '[TOOL_CALLS][{"name": "send_money", "arguments": {"note": "\\ud800"}}]</s>',
    "[TOOL_CALLS]send_money[ARGS]{}</s>",
    f"[{_CALL}]</s>",
    "I will not send it.</s>",
    "</s>",
]

_MISTRAL_V11 = [
    '[TOOL_CALLS]send_money[ARGS]{"recipient": "US13", "amount": 1}</s>',
    'I\'ll pay.[TOOL_CALLS]send_money[ARGS]{"n": "5", "tags": [1, "a"]}[TOOL_CALLS]read_file[ARGS]{"path": "a"}</s>',
    '[TOOL_CALLS]send_money{"recipient": 13, "amount": "2.0"}</s>',
    '[TOOL_CALLS]send_money[CALL_ID]abcdefghi[ARGS]{"n": null, "urgent": "1"}</s>',
    '[TOOL_CALLS] send_money [ARGS] {"amount": "1e999", "note": "{\\"a\\": NaN}"} Done.</s>',
    '[TOOL_CALLS]send_money[ARGS]{"kind": "1", "to": 1, "amount": NaN, "n": 1.0}</s>',
    '[TOOL_CALLS]send_money[ARGS]{"kind": "1.5"}</s>',
    '[TOOL_CALLS]send_money[ARGS]{"recipient": "<s>\\ud83d\\ude00<unk>", "urgent": null}</s>',
    '[TOOL_CALLS]send_money[ARGS]{"note": "\\ud800"}</s>',
    '[TOOL_CALLS]send_money[ARGS]"all of it"</s>',
    '[TOOL_CALLS][ARGS]{"amount": 1}[TOOL_CALLS]</s>',
    f"[TOOL_CALLS][{_CALL}]</s>",
    'send_money[ARGS]{"amount": 1}</s>',
    "[TOOL_CALLS]send_money</s>",
    "I will not send it.</s>",
    "</s>",
]
_MISTRAL_V13 = [
    *_MISTRAL_V11,
    *(f"[THINK]The user wants it.[/THINK]{each}" for each in _MISTRAL_V11),
    '[THINK]I could write [TOOL_CALLS]send_money[ARGS]{"amount": 1}.[/THINK][TOOL_CALLS]read_file[ARGS]{}</s>',
    '[TOOL_CALLS]send_money[ARGS]{"recipient": "[THINK]US13[/THINK]"}</s>',
    "[THINK]It goes on",
]

_DEEPSEEK_CALL = '<｜tool▁call▁begin｜>send_money<｜tool▁sep｜>{"recipient": "US13", "amount": 1}<｜tool▁call▁end｜>'
_DEEPSEEK_OTHER = '<｜tool▁call▁begin｜>read_file<｜tool▁sep｜>{"path": "a {b}"}<｜tool▁call▁end｜>'


def _deepseek(arguments: str, name: str = "send_money") -> str:
    call = f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"
    return f"<｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"


_DEEPSEEK = [
    f"<｜tool▁calls▁begin｜>{_DEEPSEEK_CALL}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    f"I'll pay.<｜tool▁calls▁begin｜>{_DEEPSEEK_CALL}{_DEEPSEEK_OTHER}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    f"<｜tool▁calls▁begin｜>{_DEEPSEEK_CALL}\n{_DEEPSEEK_OTHER}<｜end▁of▁sentence｜>",
    f"{_DEEPSEEK_CALL}<｜tool▁calls▁begin｜><｜end▁of▁sentence｜>",
    f"{_DEEPSEEK_CALL}<｜end▁of▁sentence｜>",
    _deepseek('\n```json\n{"amount": 1}\n```', "function<｜tool▁sep｜>send_money"),
    _deepseek('{"recipient":\n"US13"}'),
    _deepseek('"{}"'),
    _deepseek("all of it"),
    _deepseek('{"amount": 1e999, "note": NaN, "note": 1}'),
    _deepseek('{"note": "\\ud800"}'),
    _deepseek("{}", ""),
    _deepseek("{}", " read_file "),
    f"I will not send it.{_CALL}<｜end▁of▁sentence｜>",
    f"{_CALL}<｜end▁of▁sentence｜>",
    "I will not send it.<｜end▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
]

_PYTHON_CALL = "search_web(query='tides', n=3)"
_PYTHONIC = [
    f"[{_PYTHON_CALL}]<|eot_id|>",
    f'[{_PYTHON_CALL}, see_docs(path="a {{b}}")]<|eot_id|>',
    "[a()]\n<|eot_id|>",
    "[a(), b()]<|eot_id|>",
    "[a() b(x=1)]<|eot_id|>",
    "[a(x=[1, {'b': None}], y=true, z=null)]<|eot_id|>",
    "[a(x=(1, 2), y={1, 2}, z={1: 2, None: 3, True: 4, 2.5: 5})]<|eot_id|>",
    "[a(x=f'b', y='c' 'd', z=r'\\e', w='''f\n'g'''')]<|eot_id|>",
    "[a(x=b'c')]<|eot_id|>",
    "[a(x=1j)]<|eot_id|>",
    "[a(x=1e999)]<|eot_id|>",
    "[a(x='\\ud800')]<|eot_id|>",
    "[a(x='\\ud83d\\ude00')]<|eot_id|>",
    "[a(x=1, **{'y': 2})]<|eot_id|>",
    "[a(x=1), b.c(2, y=-3)]<|eot_id|>",
    "[b.c(y=3)]<|eot_id|>",
    "[_a(x=1)]<|eot_id|>",
    "[a(x=0x1F, y=1_000, x=2)]<|eot_id|>",
    "[a(x=1)]\nprint(1)<|eot_id|>",
    "[a(x=1)].y = [b()]<|eot_id|>",
    "<|python_tag|>[a(x=1)]<|eot_id|>",
    f"I'll look. [{_PYTHON_CALL}]<|eot_id|>",
    f"{_PYTHON_CALL}<|eot_id|>",
    "[a('x')]<|eot_id|>",
    "[a(x=y)]<|eot_id|>",
    "[a(x=not 1, y=-True)]<|eot_id|>",
    "[a(x='it's')]<|eot_id|>",
    "[a\u00e9(x=1)]<|eot_id|>",
    "[a(\n  x=1,\n  y=2)]<|eot_id|>",
    "[a(x=1,\n  y=2)]<|eot_id|>",
    "[a(x=1)(y=2)]<|eot_id|>",
    "[1] is a footnote.<|eot_id|>",
    "<|eot_id|>",
]
_PYTHONIC_LLAMA4 = [
    *(each.replace("<|eot_id|>", "<|eot|>").replace("<|python_tag|>", "<|python_start|>") for each in _PYTHONIC),
    f"<|python_start|>[{_PYTHON_CALL}]<|python_end|><|eot|>",
    "<|python_start|>[a(x=1), b(y='<|python_end|>')]<|python_end|><|eom|>",
    "[a(x=1)]<|python_end|><|eot|>",
    "[a(x=1)]<|python_start|>[b(x=1)]<|python_end|><|eot|>",
    '<|python_start|><|python_end|>{"name": "a", "parameters": {}}<|eot|>',
]

# What models of a format write, well formed and not.
SEEDS = {
    "llama3_json": _LLAMA3_JSON,
    "hermes": _HERMES,
    "qwen3_xml": _QWEN3_XML,
    "mistral_v3": _MISTRAL_V3,
    "mistral_v11": _MISTRAL_V11,
    "mistral_v13": _MISTRAL_V13,
    "deepseek": _DEEPSEEK,
    "pythonic": _PYTHONIC,
    "pythonic_llama4": _PYTHONIC_LLAMA4,
}
PIECES = [*'"{}[],:\\;\n é\u2028\x00<>=', "```", "parameters", "arguments", "name", "<think>", "</think>"]
PIECES += ["null", "1e999", "NaN", "\\ud800", "{}", '{"a": 1}', "' '", CALL, OTHER]
_PYTHON_PIECES = [*"[](){},='\"\\;:.\n\t\r\x0b #+-_\u00e9\u2028\x00", "a(", ")]", "x=", "true", "None"]
_PYTHON_PIECES += ["1e999", "'''", "b'", "f'", "lambda", "**", "if", "for x in y", "...", "a.b(", _PYTHON_CALL]
_FURTHER_PIECES = {
    "llama3_json": ["}{"],
    "pythonic": _PYTHON_PIECES,
    "pythonic_llama4": _PYTHON_PIECES,
    "mistral_v3": ["[{", "}]", "[ARGS]"],
    "mistral_v11": ["<s>", "<unk>", "1"],
    "mistral_v13": ["<s>", "<unk>", "1"],
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
