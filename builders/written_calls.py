"""Calls that a text writes: those of models whose calls are text, and those of other formats.

    {"name": "send_money", "parameters": {"amount": 1}}        JSON, alone, in a fence, in <tool_call> or after words
    <function=send_money>{"amount": 1}</function>              Llama's other form, and those with tags like it
    [send_money(amount=1)]                                     Python, alone or in <function_call>
    call:send_money{amount:1}                                  Gemma's
    I won't call send_money.                                   none

A recorded agent's answer with one of them is no plain text: whoever ran the agent may have executed it, and the next
model's server may.
"""

import re
from collections.abc import Iterable
from functools import lru_cache


def calls_in_words(text: str, tools: Iterable[str]) -> list[str]:
    """Names of the offered `tools` that a text writes calls of, in the order of the text, each once.

    Linear in the length of the text.
    """
    names = tuple(sorted(tools))
    if not names or not text:
        return []
    found = (next(filter(None, match.groups())) for match in _pattern(names).finditer(text))
    return list(dict.fromkeys(found))


@lru_cache(maxsize=256)
def _pattern(names: tuple[str, ...]) -> re.Pattern:
    name = "|".join(map(re.escape, names))
    return re.compile(
        rf"""["']name["']\s{{0,9}}:\s{{0,9}}["']({name})["']"""  # a JSON object, or Python's
        rf"""|<(?:function|invoke|tool)(?:=|\s+name=["'])({name})(?=["'\s>])"""
        # Keywords, text or an object make it a call; "use send_money()" is talk about a tool, unless it stands alone.
        rf"""|(?<![\w.])(?:functions\.)?({name})\((?=\s{{0,9}}(?:\w+\s{{0,9}}=|["'{{\[]))"""
        rf"""|[\[,]\s?({name})\(\s{{0,9}}\)(?=\s?[,\]])"""
        rf"""|^[\W_]{{0,20}}(?:functions\.)?({name})\(\s{{0,9}}\)\W{{0,20}}$"""
        rf"""|\bcall:({name})\{{""",
        re.MULTILINE,
    )
