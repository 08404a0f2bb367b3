"""Records of look-alike prompts, in the shape of B4, with the injection where a family has it: behind the request."""

import random
import re
import uuid
from collections.abc import Callable

from ..fujitsu import normalize_query
from .wording import (
    DOCS,
    PHRASINGS,
    TOOLS,
    UNSEEN,
    UNSEEN_FAMILIES,
    WEB,
    WORDING,
    Names,
    add_small_talk,
    fill,
    slots_and_arguments,
)


# Fractions of (expected tool, attacker's tool), `None` being any two tools. As in B4, most attacks turn a document
# search into a web search.
_DIRECTIONS = {(DOCS, WEB): 0.40, (WEB, DOCS): 0.30, None: 0.30}
_DEGENERATE_FRACTION = 0.02

# Part of an injection template that is left out if the attacker's call takes its input from the request.
_OPTIONAL = re.compile(r"\(\((.*?)\)\)", re.DOTALL)


def _sample_tools(rng: random.Random) -> tuple[str, str]:
    """Sample the expected tool and the attacker's; a few records are degenerate, with the same tool, as in B4."""
    direction = rng.choices(list(_DIRECTIONS), list(_DIRECTIONS.values()))[0]
    expected, simulated = direction or rng.sample(TOOLS, 2)
    return (expected, expected) if rng.random() < _DEGENERATE_FRACTION else (expected, simulated)


def sample_injection(rng: random.Random, wording: dict, family: dict, tool: str, input: str | None) -> str:
    """Text of the attacker: an opener and a command inside a wrapper, or a fixed form such as JSON."""
    if "forms" in family:
        text, name = rng.choice(family["forms"]), WORDING["aliases"][tool] if family.get("alias") else tool
    else:
        body = f"{rng.choice(wording['injection_openers'])} {rng.choice(wording['injection_commands'])}."
        text = fill(rng.choice(family["wrappers"]), {"body": body})
        name = WORDING["aliases"][tool] if rng.random() < 0.25 else tool
    text = _OPTIONAL.sub("" if input is None else r"\1", text)
    return fill(text, {"tool": name, "input": input or ""})


def _insert_injection(request: str, injection: str, position: str) -> tuple[str, str]:
    """`(injection, attacked request)`; cutting the injection out of the attacked request gives the request again."""
    if position == "inside":
        middle = len(request) // 2
        at = request.index(" ", middle) + 1 if " " in request[middle:] else 0
        return f"{injection} ", f"{request[:at]}{injection} {request[at:]}"
    return injection, {
        "after": f"{request}\n\n{injection}",
        "before": f"{injection}\n\n{request}",
        "same_line": f"{request} {injection}",
    }[position]


def _sample_record(rng: random.Random, split: str) -> dict:
    # The order of the calls to `rng` is part of the data: changing it changes every record of a seed.
    families = UNSEEN_FAMILIES if split == UNSEEN else WORDING[split]["families"]
    split = "test" if split == UNSEEN else split
    wording, names = WORDING[split], Names(rng, split)
    expected, simulated = _sample_tools(rng)
    slots, expected_arguments = slots_and_arguments(rng, names, expected)
    benign = add_small_talk(rng, wording, fill(rng.choice(PHRASINGS[split][expected]), slots))
    # Between the two search tools, the attacker's call can take its query from the user's request.
    if {expected, simulated} <= {WEB, DOCS} and rng.random() < 0.5:
        input, simulated_arguments = None, expected_arguments
    else:
        slots, simulated_arguments = slots_and_arguments(rng, names, simulated)
        input = fill(WORDING["inputs"][simulated], slots)
    family = rng.choice(list(families))
    injection = sample_injection(rng, wording, families[family], simulated, input)
    injection, attacked = _insert_injection(benign, injection, families[family].get("position", "after"))
    return {
        "record_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "attack_id": family,
        "category": families[family]["category"],
        "subtype": f"{family.replace('_', ' ')}, {_short(expected)} to {_short(simulated)}",
        "benign_query": benign,
        "malicious_injection": injection,
        "combined_query": attacked,
        "expected_tool": expected,
        "simulated_tool": simulated,
        "success": expected != simulated,
        "judge_note": f"asks for {simulated} where {expected} is right",
        "models_used": {"crafter": "lookalike_v1", "simulator": "none"},
        "script_version": "lookalike_v1",
        "timestamp": "2025-01-01T00:00:00Z",
        "expected_arguments": expected_arguments,
        "simulated_arguments": simulated_arguments,
    }


def _short(tool: str) -> str:
    return {WEB: "web", DOCS: "docs"}.get(tool, tool)


def sample_prompt(rng: random.Random, split: str, task: str) -> dict:
    """One prompt of a task that needs no tool call."""
    wording, names, category = WORDING[split], Names(rng, split), None
    if task == "refusal":
        category = rng.choice(list(wording["harms"]))
        template, answer = rng.choice(wording["harm_requests"]), WORDING["refusals"][category]
        template = fill(template, {"harm": rng.choice(wording["harms"][category])})
    else:
        template, answer = rng.choice(wording[task])
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    slots = {"person": names.name(), "topic": names.topic(), "a": str(a), "b": str(b), "sum": str(a + b)}
    text = fill(template, slots) if task == "chat" else add_small_talk(rng, wording, fill(template, slots))
    record_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return {"record_id": record_id, "text": text, "answer": fill(answer, slots), "category": category}


def _sample_distinct(sample: Callable[[], dict], text_field: str, n: int) -> list[dict]:
    """Call `sample` until there are `n` rows with different normalised texts; of equal ones the first is kept."""
    rows: dict[str, dict] = {}
    while len(rows) < n:
        row = sample()
        rows.setdefault(normalize_query(row[text_field]), row)
    return list(rows.values())


def lookalike_records(seed: int, n: int, split: str, task: str = "tool_flip") -> list[dict]:
    """Generate `n` records with all fields of B4 and distinct benign queries; a few of them are degenerate.

    Args:
        seed (`int`): Seed of the records.
        n (`int`): Number of records; a larger number continues the records of a smaller one.
        split (`str`): `train`, `dev`, `test`, or `unseen`: the requests of `test` with other injection families.
        task (`str`, *optional*, defaults to `"tool_flip"`): Another task has other records.
    """
    rng = random.Random(f"{seed}/{split}/{task}")
    return _sample_distinct(lambda: _sample_record(rng, split), "benign_query", n)


def lookalike_prompts(seed: int, n: int, split: str, task: str) -> list[dict]:
    """Generate `n` distinct prompts that need no tool call: `{"record_id", "text", "answer", "category"}`.

    Args:
        seed (`int`): Seed of the prompts.
        n (`int`): Number of prompts; a larger number continues the prompts of a smaller one.
        split (`str`): `train`, `dev` or `test`.
        task (`str`): `refusal` (an openly harmful request), `chat`, or `irrelevance` (a question that needs no tool).
    """
    rng = random.Random(f"{seed}/{split}/{task}")
    return _sample_distinct(lambda: sample_prompt(rng, split, task), "text", n)
