"""Every regular expression of the package, and texts on which a backtracking matcher would take long.

A repetition is slow where its text can be divided in many ways, or where a search starts it again at every position
and runs to the end each time. For each repetition of a pattern, the texts repeat its body behind what leads up to it,
repeat both together, and end in what does not match.
"""

import ast
import importlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from re import _constants as sre
from re import _parser
from typing import Any


ROOT = Path(__file__).parents[1]
PACKAGES = ("builders", "cb_datasets", "trainers")

# What a model or a file repeats, whatever the pattern.
PIECES = (
    "-",
    " ",
    "\n",
    "\\",
    '"',
    "'",
    "(",
    "[",
    "{",
    "<",
    ")]",
    "()",
    "[{",
    "0",
    "a",
    "a ",
    "_",
    ". ",
    "http://",
    "`",
)
_PALETTE = " \n\ta0_-.A\"'\\[](){}<>|,;:!?/@=`\u00e9\u2019"
_UNBOUNDED = 30  # a repetition that may be as long as this is pumped
_ALIASES = {"_BEGINS_LIKE_CALL": "begins_like_call", "OPENS_OBJECT": "begins_like_call"}


@dataclass(frozen=True)
class Use:
    """A call of `re` in the package: where it is, what it is given, and how the pattern is applied."""

    module: str
    line: int
    source: str  # the pattern's expression
    flags: str
    at_start: bool  # only ever matched where a text begins, not searched for

    @property
    def key(self) -> str:
        return f"{self.module}: {self.source}"

    def compiled(self, names: dict[str, Any]) -> re.Pattern:
        """The pattern, with `names` for what is only known where it is used."""
        scope = vars(importlib.import_module(self.module)) | names
        return re.compile(eval(self.source, scope), eval(self.flags, scope))


def uses() -> list[Use]:
    """Every call of `re` with a pattern in the package, in the order of the files."""
    modules = {path: list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in _modules()}
    methods: dict[str, set[str]] = {}
    for nodes in modules.values():
        for node in nodes:
            if isinstance(node, ast.Attribute):
                name = node.value
                if isinstance(name, ast.Name | ast.Attribute):
                    methods.setdefault(name.id if isinstance(name, ast.Name) else name.attr, set()).add(node.attr)
    return [use for path, nodes in modules.items() for use in _uses_in(path, nodes, methods)]


def _modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _uses_in(path: Path, nodes: list[ast.AST], methods: dict[str, set[str]]) -> Iterator[Use]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    names = {
        id(node.value): node.targets[0].id
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    } | {id(node.value): node.arg for node in nodes if isinstance(node, ast.keyword)}
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        function = node.func
        if not (isinstance(function.value, ast.Name) and function.value.id == "re") or function.attr == "escape":
            continue
        flags = [word.value for word in node.keywords if word.arg == "flags"]
        if function.attr == "compile":
            flags += node.args[1:]
            name = names.get(id(node), "")
            used = methods.get(_ALIASES.get(name, name), {"search"})
            at_start = used <= {"match", "fullmatch"}
        else:
            flags += node.args[2:3] if function.attr in ("search", "match", "fullmatch", "findall", "finditer") else []
            at_start = function.attr in ("match", "fullmatch")
        yield Use(module, node.lineno, ast.unparse(node.args[0]), ast.unparse(flags[0]) if flags else "0", at_start)


def texts_for(pattern: re.Pattern, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """`(start, piece, end)`: texts that open with `start`, repeat `piece`, and close with `end`."""
    yield from (("", piece, "") for piece in PIECES)
    tree = _parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    pumps = list(_pumps(tree, "", rng))
    for before, body in pumps:
        for end in ("\x00", " x\x00"):
            yield before, body, end
        yield "", before + body, "\x00"
        yield "", body, "\x00"
        if before:
            yield "", before, "\x00"
    for before, body in pumps:
        yield before, body + rng.choice(pumps)[1], "\x00"


def _pumps(tree: Any, before: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """`(text before it, text of its body)` of each long repetition."""
    for operation, argument in tree:
        for inner in _parts(operation, argument):
            yield from _pumps(inner, before, rng)
        if operation in _REPEATS and argument[1] >= _UNBOUNDED:
            yield before, _sample(argument[2], rng) or "a"
        before += _sample([(operation, argument)], rng)


_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)


def _parts(operation: Any, argument: Any) -> list:
    if operation in _REPEATS:
        return [argument[2]]
    if operation is sre.BRANCH:
        return argument[1]
    if operation is sre.SUBPATTERN:
        return [argument[3]]
    if operation in (sre.ASSERT, sre.ASSERT_NOT):
        return [argument[1]]
    return [argument] if operation is sre.ATOMIC_GROUP else []


def _sample(tree: Any, rng: random.Random) -> str:
    """A text that a tree of the parser matches, lookarounds and references aside."""
    text = ""
    for operation, argument in tree:
        if operation is sre.LITERAL:
            text += chr(argument)
        elif operation in (sre.NOT_LITERAL, sre.ANY, sre.IN):
            text += rng.choice([sign for sign in _PALETTE if _in_class(sign, operation, argument)] or ["\ufffd"])
        elif operation in _REPEATS:
            low, high, inner = argument
            text += "".join(_sample(inner, rng) for _ in range(rng.randint(low, min(high, low + 2))))
        elif operation in (sre.ASSERT, sre.ASSERT_NOT, sre.AT, sre.GROUPREF):
            continue
        else:
            text += _sample(rng.choice(_parts(operation, argument)), rng)
    return text


def _in_class(sign: str, operation: Any, argument: Any) -> bool:
    if operation is sre.ANY:
        return sign != "\n"
    if operation is sre.NOT_LITERAL:
        return ord(sign) != argument
    negated = any(each is sre.NEGATE for each, _ in argument)
    return negated != any(_has(sign, *each) for each in argument)


def _has(sign: str, operation: Any, argument: Any) -> bool:
    if operation is sre.LITERAL:
        return ord(sign) == argument
    if operation is sre.RANGE:
        return argument[0] <= ord(sign) <= argument[1]
    if operation is sre.CATEGORY:
        inner = {
            sre.CATEGORY_SPACE: r"\s",
            sre.CATEGORY_NOT_SPACE: r"\S",
            sre.CATEGORY_WORD: r"\w",
            sre.CATEGORY_NOT_WORD: r"\W",
            sre.CATEGORY_DIGIT: r"\d",
            sre.CATEGORY_NOT_DIGIT: r"\D",
        }[argument]
        return re.match(inner, sign) is not None
    return False
