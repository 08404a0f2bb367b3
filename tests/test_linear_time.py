"""What reads completions, requests or files takes time in proportion to their length."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest

from builders.agentdojo.exposure import tagged_texts, unquoted
from builders.agentdojo.goals import goal_from_injections
from builders.agentdojo.layouts import _visible_text
from builders.fujitsu.judge import judge_drop_reason
from builders.fujitsu.text import normalize_query
from builders.injecagent.simulated_result import simulated_result
from builders.json_records import parse_json
from builders.jsonl.layouts import sharegpt, xlam
from builders.jsonl.layouts.openai import cut_calls
from builders.jsonl.repair import repair_line
from builders.trace import call_matches
from builders.written_calls import calls_in_words
from cb_datasets.answers.fidelity import contains_term
from cb_datasets.answers.gibberish import is_degenerate
from cb_datasets.answers.refusals import is_refusal
from cb_datasets.control_tokens import leaks_control_token
from cb_datasets.evaluation.coherence import entropy, repetition
from cb_datasets.formats import FORMATS, ToolCall
from cb_datasets.formats.typed_text import coerce_typed, read_typed
from cb_datasets.markdown import cell, code
from cb_datasets.merge.shingles import normalized, signatures
from cb_datasets.public_name import public_name
from cb_datasets.publish.secrets import SECRETS, Secret
from cb_datasets.terminal import shown

from . import patterns
from .growth import FACTOR, growth


LENGTH = 8_000
# Seconds within which a text of this length is certainly read in linear time; only longer ones are measured again.
QUICK = 0.02

# Patterns that read nothing of a stranger's, or only the beginning of it. They may take longer.
NOT_MEASURED = {
    "builders.injecagent.simulated_result": "reads 2,000 characters",
    "cb_datasets.answers.refusals": "reads 600 characters, see `is_refusal` below",
    "builders.llmail.mailbox": "a file whose hash is pinned",
    "builders.lookalike.layouts": "the package's own wordings",
    "builders.lookalike.records": "the package's own wordings",
    "builders.tau2.user_words": "the scenarios of an installed package",
    "cb_datasets.formats.chat_template": "the package's own templates",
    "trainers.docstring_help": "the package's own docstrings",
}
# Patterns made at run time: what they are made of, as an example.
EXAMPLES: dict[tuple[str, str], dict] = {
    ("builders.agentdojo.exposure", "'|'.join(patterns)"): {"patterns": ["a" * 20, "a-a" * 9]},
    ("builders.trace", r"f'{before}{re.escape(wanted)}(?!\\w)(?![-.@]\\w)'"): {
        "before": r"(?<!\w)(?<!\w[-+@])(?<!\w\.)",
        "wanted": "a@a.a",
    },
    ("cb_datasets.answers.fidelity", r"f'(?<!\\w){re.escape(term)}(?!\\w)'"): {"term": "a a"},
    ("cb_datasets.attacks.composition", "f'({re.escape(tool)})'"): {"tool": "read_file"},
    ("cb_datasets.chat", "f'([{start_mark}{end_mark}])'"): {"start_mark": "\ue000", "end_mark": "\ue001"},
    ("cb_datasets.control_tokens", "'|'.join(map(re.escape, contents)) or '(?!)'"): {
        "contents": ["<|a|>", "<|", "[a"]
    },
    ("cb_datasets.formats.chat_template", r"f'\\b{re.escape(name)}\\b'"): {"name": "tools"},
    ("cb_datasets.model_licences", "pattern"): {"pattern": r"(?:^|[^a-z])llama-?3"},
    ("cb_datasets.publish.secrets", "self.pattern"): {
        "self": Secret("any of them", "|".join(f"(?:{secret.pattern})" for secret in SECRETS))
    },
    ("cb_datasets.template_openings", "text_mark"): {"text_mark": "\ue000"},
}
# Neither searched with nor matched here: a tool's schema states the pattern, and RE2 matches it.
COMPILED_ONLY = {("builders.tool_schema", "text")}


def is_slow(run: Callable[[str], object], start: str, piece: str, end: str, length: int = LENGTH) -> bool:
    """Whether a text of these parts takes more than linear time."""

    def make(length: int) -> str:
        return start + piece * (length // len(piece)) + end

    started = time.process_time()
    run(make(length))
    return time.process_time() - started > QUICK and growth(run, make, length // FACTOR) > 3 * FACTOR


def _scan(use: patterns.Use, pattern: re.Pattern) -> Callable[[str], object]:
    if use.at_start:
        return lambda text: (pattern.match(text), pattern.fullmatch(text))
    return lambda text: Counter(1 for _ in pattern.finditer(text))


def _compiled(use: patterns.Use) -> re.Pattern | None:
    """The pattern of a use; `None` for the long name of a pattern that is made with others."""
    names = EXAMPLES.get((use.module, use.source), {})
    try:
        return use.compiled(names)
    except NameError:
        return None


USES = patterns.uses()


def test_every_pattern_can_be_measured():
    assert len(USES) > 100
    unknown = [
        (use.module, use.source)
        for use in USES
        if use.module not in NOT_MEASURED and (use.module, use.source) not in COMPILED_ONLY and _compiled(use) is None
    ]
    # `calls_in_words` is measured below: its pattern is made of more than one name.
    assert [module for module, _ in unknown] == ["builders.written_calls"], unknown


@pytest.mark.parametrize("module", sorted({use.module for use in USES} - set(NOT_MEASURED)))
def test_a_pattern_takes_linear_time(module):
    slow = []
    for use in USES:
        if use.module != module or (use.module, use.source) in COMPILED_ONLY or (pattern := _compiled(use)) is None:
            continue
        if isinstance(pattern.pattern, bytes):
            continue
        run = _scan(use, pattern)
        texts = dict.fromkeys(patterns.texts_for(pattern, random.Random(use.key)))
        slow += [(use.line, use.source, *parts) for parts in texts if is_slow(run, *parts)]
    assert slow == []


@pytest.mark.parametrize("source", [r"<a>.*?</a>", r"\w+@"])
def test_a_slow_pattern_is_found(source):
    pattern = re.compile(source)
    texts = patterns.texts_for(pattern, random.Random(0))
    assert any(is_slow(lambda text: [*pattern.finditer(text)], *parts, length=10_000) for parts in texts)


# ---------------------------------------------------------------------------------------------------------------------
# Functions, which may read a text with several patterns, or with one from many positions


TOOLS = '[{"type": "function", "function": {"name": "a", "parameters": {"properties": {"q": {"type": "integer"}}}}}]'
ENDS = ("", "!", "\x00x", "\n", " x", "}", "]", ")", '"')


def _format_reader(name: str) -> Callable[[str], object]:
    tool_format = FORMATS[name]

    def read(text: str) -> None:
        tool_format.parse(text, TOOLS)
        tool_format.executed_calls(text, TOOLS)
        tool_format.begins_like_call.match(text)

    return read


FUNCTIONS: dict[str, Callable[[str], object]] = {
    **{name: _format_reader(name) for name in FORMATS},
    "is_refusal": is_refusal,
    "is_degenerate": is_degenerate,
    "repetition": repetition,
    "entropy": entropy,
    "leaks_control_token": leaks_control_token,
    "contains_term": lambda text: contains_term(text, "a a"),
    "read_typed": lambda text: read_typed(text, {"integer", "array"}),
    "coerce_typed": lambda text: coerce_typed(text, {"integer", "array"}),
    "normalized": normalized,
    "signatures": lambda text: signatures([text]),
    "cell": cell,
    "code": code,
    "shown": shown,
    "public_name": lambda text: public_name("/" + text),
    "calls_in_words": lambda text: calls_in_words(text, ["a", "read_file"]),
    "call_matches": lambda text: call_matches("a", {"to": text}, {"name": "a", "arguments": {"to": "a@a.a"}}),
    "unquoted": unquoted,
    "tagged_texts": lambda text: tagged_texts([{"role": "tool", "content": text}]),
    "visible_text": lambda text: _visible_text("<" + text, False),
    "goal_from_injections": lambda text: goal_from_injections([text], []),
    "judge_drop_reason": judge_drop_reason,
    "normalize_query": normalize_query,
    "simulated_result": lambda text: simulated_result([{"name": "a", "type": "array", "description": text}]),
    "parse_json": parse_json,
    "cut_calls": lambda text: cut_calls(text, "here"),
    "repair_line": lambda text: repair_line({"tools": text, "metadata": text}),
    "sharegpt.call": lambda text: sharegpt._glaive_call("<functioncall>" + text, "here"),
    "sharegpt.turns": sharegpt._glaive_turns,
    "sharegpt.tools": lambda text: sharegpt._json_objects(text, "here"),
    "xlam.type": xlam._type_schema,
}


def _pieces() -> list[str]:
    """What is repeated: what any text may hold, what these functions look for, and the parts of each format."""
    own = ["a@", "$1.", "{}", '{"a":1} ', "0,", ", ", ",default ", "List[", "USER:\n", "I can't ", "```", '"name": ']
    own += ["<INFORMATION>", "<thinking>", "<function_call>", "<function_call>\n", "<function=", "<functioncall>"]
    own += ["\u201c", "\u3042", "a.", "a(", "a(),", "[a(a=1),", "to=", "to=a ", "\\ud8", "--", "../", "json ", "' "]
    for tool_format in FORMATS.values():
        call = tool_format.render(ToolCall("a", {"q": 1}), "")
        inner = call
        for token in tool_format.end_tokens:
            inner = inner.replace(token, "")
        own += [*tool_format.tokens, tool_format.call_head("a"), inner, inner + " x"]
    return list(dict.fromkeys([*patterns.PIECES, *own]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_linear_time(name):
    rng, pieces = random.Random(name), _pieces()
    starts = ["", "x", "to=", ",default "]
    if name in FORMATS:
        starts += [FORMATS[name].call_tag, FORMATS[name].call_head("a")] * 9
    texts = [(rng.choice(starts), piece, rng.choice(ENDS)) for piece in pieces]
    texts += [("", rng.choice(pieces) + rng.choice(pieces), rng.choice(ENDS)) for _ in range(20)]
    texts.append(("", "".join(rng.choice(pieces) for _ in range(1_000)), ""))

    def run(text: str) -> None:
        with suppress(ValueError, RecursionError):  # what is wrong with such a text is no matter here
            FUNCTIONS[name](text)

    assert [parts for parts in texts if is_slow(run, *parts)] == []
