"""Completions near calls: what models write when they are not quite right, and random edits of it."""

import random


CALL = '{"name": "send_money", "parameters": {"recipient": "US13", "amount": 1}}'
OTHER = '{"name": "read_file", "parameters": {"path": "a {b}"}}'
SEEDS = [
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
PIECES = [*'"{}[],:\\;\n é\u2028\x00', "```", "<|python_tag|>", "<|eom_id|>", "parameters", "arguments", "name"]
PIECES += ["null", "1e999", "NaN", "\\ud800", "{}", '{"a": 1}', "' '", CALL, OTHER]


def mutations(seed: int, n: int) -> list[str]:
    """`n` completions: the seeds, then seeds with a few pieces deleted, inserted, doubled or cut off."""
    rng, made = random.Random(seed), list(SEEDS)
    while len(made) < n:
        text = rng.choice(SEEDS)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text) + 1)
            end = min(len(text), start + rng.choice((0, 0, 1, 2, 8)))
            match rng.randrange(4):
                case 0:
                    text = text[:start] + text[end:]
                case 1:
                    text = text[:start] + rng.choice(PIECES) + text[start:]
                case 2:
                    text = text[:end] + text[start:]
                case 3 if rng.random() < 0.3:
                    text = text[:start]
        made.append(text)
    return made
