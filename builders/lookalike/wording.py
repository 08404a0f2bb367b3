"""Wording of the look-alike prompts: phrasings by split, invented names, and the arguments of calls."""

import itertools
import json
import random
import re
import zlib
from pathlib import Path


_ASSETS = Path(__file__).parents[1] / "assets"


def _read(name: str) -> dict:
    return json.loads((_ASSETS / name).read_text(encoding="utf-8"))


WORDING, LAYOUTS = _read("lookalike_v1.json"), _read("lookalike_layouts_v1.json")
# No setting of the demo's breaker was chosen with a look at the second file.
UNSEEN_FAMILIES = _read("lookalike_unseen_v1.json")["families"] | _read("lookalike_unseen_v2.json")["families"]

LOOKALIKE_SPLITS = ("train", "dev", "test")
UNSEEN = "unseen"
WEB, DOCS = "search_web", "retrieve_multimodal_docs"
TOOLS = tuple(WORDING["inputs"])

SYLLABLES = tuple(consonant + vowel for consonant in "bdklmnrstv" for vowel in "aeiou")
# Random syllables may form offensive words.
_OFFENSIVE = re.compile("dik|kaka|kike|kil|sado|sodo|suka|tit")
_FIELDS = ("name", "email", "phone", "address")
PROGRAMS = {"python": "print('{person}')", "javascript": "console.log('{person}')", "bash": "echo {person}"}


def split_of_name(name: str) -> str:
    """Split of an invented name, by its hash, so that no name is in two splits."""
    bucket = zlib.crc32(name.encode()) % 10
    return "dev" if bucket == 0 else "test" if bucket <= 2 else "train"


def phrasings(split: str, tool: str) -> list[str]:
    """Request templates of a split for a tool, with all choices `[a|b]` expanded; train has none of dev and test."""
    templates = [phrase for template in WORDING[split]["requests"][tool] for phrase in _choices(template)]
    if split != "train":
        return templates
    held_out = {phrase for other in LOOKALIKE_SPLITS[1:] for phrase in phrasings(other, tool)}
    return [phrase for phrase in dict.fromkeys(templates) if phrase not in held_out]


def _choices(template: str) -> list[str]:
    alternatives = [piece.split("|") for piece in re.split(r"[\[\]]", template)]
    return ["".join(choice) for choice in itertools.product(*alternatives)]


PHRASINGS = {split: {tool: phrasings(split, tool) for tool in TOOLS} for split in LOOKALIKE_SPLITS}


class Names:
    """Generator of invented names of one split, for one prompt.

    No syllable occurs twice in a prompt: a model that copies a name never has to choose between two continuations.
    """

    def __init__(self, rng: random.Random, split: str):
        self.rng, self.split = rng, split
        self.used: set[str] = set()

    def name(self, syllables: int = 3) -> str:
        free = [syllable for syllable in SYLLABLES if syllable not in self.used]
        while True:
            chosen = self.rng.sample(free, syllables)
            name = "".join(chosen).capitalize()
            if split_of_name(name) == self.split and not _OFFENSIVE.search(name.lower()):
                self.used.update(chosen)
                return name

    def topic(self) -> str:
        return self.name() if self.rng.random() < 0.5 else f"{self.name(2)} {self.name(2)}"


def fill(template: str, slots: dict[str, str]) -> str:
    for slot, value in slots.items():
        template = template.replace("{" + slot + "}", value)
    return template


def slots_and_arguments(rng: random.Random, names: Names, tool: str) -> tuple[dict[str, str], dict]:
    """Random slot values for the request templates of `tool`, and the arguments of the matching call."""
    if tool in (WEB, DOCS):
        topic = names.topic()
        return {"topic": topic}, {"query": topic}
    person, topic = names.name(), names.name()
    if tool == "send_email":
        address = f"{person}@mail.example"
        return {"address": address, "topic": topic}, {"to": address, "subject": topic, "body": f"About {topic}."}
    if tool == "execute_code":
        language = rng.choice(list(PROGRAMS))
        code = fill(PROGRAMS[language], {"person": person})
        return {"code": code, "language": language}, {"code": code, "language": language}
    if tool == "read_file":
        path = rng.choice([f"{person}.txt", f"{person}/{topic}.txt"])
        return {"path": path}, {"path": path}
    if tool == "write_file":
        path = f"{person}.txt"
        return {"path": path, "topic": topic}, {"path": path, "content": topic}
    if tool == "send_money":
        amount = rng.randint(11, 99)
        slots = {"amount": str(amount), "person": person, "topic": topic}
        return slots, {"recipient": person, "amount": amount, "subject": topic}
    user_field = rng.choice(_FIELDS)
    return {"field": user_field, "person": person}, {"fields": [user_field]}


def slots_of(tool: str, arguments: dict, names: Names | None = None) -> dict[str, str]:
    """Slot values of a request for this call. Only `names` has a person for `get_user_info`, whose call has none."""
    if tool in (WEB, DOCS):
        return {"topic": arguments["query"]}
    if tool == "send_email":
        return {"address": arguments["to"], "topic": arguments["subject"]}
    if tool == "write_file":
        return {"path": arguments["path"], "topic": arguments["content"]}
    if tool == "send_money":
        amount, person, topic = (str(arguments[key]) for key in ("amount", "recipient", "subject"))
        return {"amount": amount, "person": person, "topic": topic}
    if tool == "get_user_info":
        return {"field": arguments["fields"][0], **({"person": names.name()} if names else {})}
    return {key: str(value) for key, value in arguments.items()}


def input_of(tool: str, arguments: dict) -> str:
    """The input that an injection names, from the arguments of the attacker's call."""
    return fill(WORDING["inputs"][tool], slots_of(tool, arguments))


def add_small_talk(rng: random.Random, wording: dict, text: str) -> str:
    """Add a sentence of small talk before the request in half of all cases, and one after it in half."""
    if rng.random() < 0.5:
        text = f"{rng.choice(wording['openers'])} {text}"
    return f"{text} {rng.choice(wording['closers'])}" if rng.random() < 0.5 else text
