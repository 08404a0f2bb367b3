"""Earlier turns of look-alike conversations: calls with results, chat, and refusals, all of them honest.

[user]       Search the web for Tobe Lusi.
[assistant]  {"name": "search_web", "arguments": {"query": "Tobe Lusi"}}
[tool]       3 results for Tobe Lusi.
[assistant]  That is done.                              in half of all exchanges
[user]       Look in our documents for Kalo Mirude.     the request to answer now
"""

import random

from ..trace import message, tool_call
from .records import sample_prompt
from .wording import LAYOUTS, PHRASINGS, TOOLS, WORDING, Names, add_small_talk, fill, slots_and_arguments


# Number of earlier turns, and fractions of their types.
_NUM_TURNS = {1: 0.7, 2: 0.2, 3: 0.06, 4: 0.04}
_TURN_TYPES = {"call": 0.6, "chat": 0.15, "irrelevance": 0.1, "refusal": 0.15}
_CLOSED_FRACTION = 0.5


def earlier_turns(record_id: str, split: str) -> list[dict]:
    """Messages of one to four earlier turns of the conversation that a record ends.

    Args:
        record_id (`str`): Seed of the turns.
        split (`str`): `train`, `dev` or `test`, whose wording is used.
    """
    rng = random.Random(f"turns {record_id}")
    [count] = rng.choices(list(_NUM_TURNS), list(_NUM_TURNS.values()))
    messages: list[dict] = []
    for number in range(count):
        [turn_type] = rng.choices(list(_TURN_TYPES), list(_TURN_TYPES.values()))
        if turn_type == "call":
            messages += _exchange(rng, split, f"call_{number}")
        else:
            prompt = sample_prompt(rng, split, turn_type)
            messages += [message("user", prompt["text"]), message("assistant", prompt["answer"])]
    return messages


def _exchange(rng: random.Random, split: str, call_id: str) -> list[dict]:
    """A request, the right call, its result, and perhaps a closing sentence."""
    names, tool = Names(rng, split), rng.choice(TOOLS)
    slots, arguments = slots_and_arguments(rng, names, tool)
    request = add_small_talk(rng, WORDING[split], fill(rng.choice(PHRASINGS[split][tool]), slots))
    words = {"topic": slots.get("topic") or names.topic(), "person": slots.get("person") or names.name()}
    result, closing = (fill(rng.choice(LAYOUTS[split][key]), words) for key in ("tool_results", "closings"))
    messages = [
        message("user", request),
        message("assistant", None, [tool_call(tool, arguments, id=call_id)]),
        message("tool", result, tool_call_id=call_id, name=tool),
    ]
    return [*messages, message("assistant", closing)] if rng.random() < _CLOSED_FRACTION else messages
