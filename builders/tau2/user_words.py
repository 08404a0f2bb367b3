"""The request of a scenario in the user's own words.

A scenario is written for a simulated user. It tells them in the second person what to request and how to behave:

    scenario   You want to return the lamp (do not reveal why). If the agent asks, say that you are calm.
    request    I want to return the lamp.

The rule, sentence by sentence:

- Of `task_instructions`, only wishes ("You want ...") are taken; the rest directs the simulated user's behavior.
- Parentheses that direct it are cut out, and so is every other sentence that does: one that speaks of the agent, or of
  what to say, to keep back or to pretend.
- What remains is put in the first person. "The agent" becomes "you" where the user asks what it can or shall do.

Where no sentence of the request remains, there is no user turn.
"""

import re


# Fields of a scenario, in the order in which they are joined.
SCENARIO = ("reason_for_call", "known_info", "unknown_info", "task_instructions")

# A line that begins with a dash is an item of a list, and belongs to the sentence before it.
_SENTENCE_END = re.compile(r"(?<!i\.e\.)(?<=[.!?;])\s+|\n+(?!\s*-)")
_PARENTHESES = re.compile(r"(?<!\s)\s*+\([^()]*+\)")
_WISH = re.compile(r"You(?: also| would| only| just|'d)* (?:want|like|need|wish|prefer)\b")

# Words of sentences that direct the simulated user.
_DIRECTS = re.compile(
    r"\b(?:agents?|reveal|share this|mention|insist\w*|pretend|make up|confirm\w*(?! number)|say|says|saying|"
    r"respond|reply|replies|communicate|talk|upfront|when asked|if asked|conversation|discussion|change your mind|"
    r"refuses|intended task|your goal|(?:are|become) angry(?: and|,)|notifications?)\b",
    re.IGNORECASE,
)

# Stands for "you", the agent, while "you", the user, is put in the first person.
_AGENT = "\0"

# Where the agent can be addressed: "if the agent can help", "you want the agent to book it".
_ADDRESSED = re.compile(r"(?<!tell )\bthe agent (?=(?:can|could|to|will|would|should)\b)")
_REQUESTS = (
    (re.compile(r"(?<![Yy]ou )\bask the agent to (?=\w)", re.IGNORECASE), "please "),
    (re.compile(r"(?<![Yy]ou )\bask the agent (?=(?:how|what|which|if|whether)\b)", re.IGNORECASE), "please tell me "),
    (re.compile(r"\b([Yy])ou ask the agent\b"), r"\1ou ask " + _AGENT),
)

# "You name is", "You reservation number is": slips of the pen in the benchmark.
_SLIPS = re.compile(r"\b([Yy])ou(?= (?:name|mobile data|reservation|skateboard)\b)")

_OBJECT_AFTER = (
    "for|to|with|from|of|about|at|by|on|against|give|gives|gave|tell|tells|told|help|helps|let|lets|allow|allows|"
    "refund|upgrade|send|sent|cost|costs|charge|charges|make|makes|save|saves|cause|caused|compensate|contact"
)
# In this order: each rule sees the text that the earlier ones have left.
_FIRST_PERSON = (
    (re.compile(r"\byou (?:wonder|ask)(?= (?:if|whether|what|which|how)\b)", re.IGNORECASE), "I would like to know"),
    (re.compile(r"\byourself\b", re.IGNORECASE), "myself"),
    (re.compile(r"\byours\b", re.IGNORECASE), "mine"),
    (re.compile(r"\bYour\b"), "My"),
    (re.compile(r"\byour\b"), "my"),
    (re.compile(r"\byou(?:'re| are)\b", re.IGNORECASE), "I am"),
    (re.compile(r"\byou were\b", re.IGNORECASE), "I was"),
    (re.compile(rf"\b({_OBJECT_AFTER}) you\b"), r"\1 me"),
    (re.compile(r"\byou(?=[.,;:!?)]|$)"), "me"),
    (re.compile(r"\byou\b", re.IGNORECASE), "I"),
    (re.compile(r"\bI (also|currently|now|still|really|just|only) are\b"), r"I \1 am"),
    (re.compile(r"(\bI\b.* (?:and|but)) are (?=(?:in|not|willing)\b)"), r"\1 am "),
)


def user_words(scenario: dict[str, str | None]) -> str | None:
    """The request of a scenario, given by the fields of [`SCENARIO`]; `None` if nothing in it is a request."""
    request, *others = (_spoken(scenario.get(field) or "", is_wish=field == SCENARIO[-1]) for field in SCENARIO)
    wishes = others[-1]
    if not request and not wishes:
        return None
    return " ".join([*request, *(sentence for sentences in others for sentence in sentences)])


def _spoken(text: str, is_wish: bool) -> list[str]:
    """The sentences of a field that a user can say, in the first person."""
    for pattern, replacement in _REQUESTS:
        text = pattern.sub(replacement, text)
    text = _ADDRESSED.sub(f"{_AGENT} ", text)
    text = _PARENTHESES.sub(lambda match: "" if _DIRECTS.search(match[0]) else match[0], text)
    sentences = (
        " ".join(sentence.split()).strip(" .,:;") for sentence in _SENTENCE_END.split(_SLIPS.sub(r"\1our", text))
    )
    return [
        _in_first_person(sentence)
        for sentence in sentences
        if any(map(str.isalpha, sentence)) and not _DIRECTS.search(sentence) and (not is_wish or _WISH.match(sentence))
    ]


def _in_first_person(sentence: str) -> str:
    for pattern, replacement in _FIRST_PERSON:
        sentence = pattern.sub(replacement, sentence)
    sentence = sentence.replace(_AGENT, "you")
    end = "" if sentence.endswith(("!", "?")) else "."
    return sentence[0].upper() + sentence[1:] + end
