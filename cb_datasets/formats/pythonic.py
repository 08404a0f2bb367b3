"""Calls as a list of Python, as the small models of Llama 3.2 write them, and Llama 4:

    [search_web(query='tides', n=3)]<|eot_id|>
    <|python_start|>[search_web(query='tides', n=3)]<|python_end|><|eot|>      Llama 4, with or without the tags

The list is the whole turn. It is read with `ast`, and nothing of it is evaluated: an argument is a literal that JSON
can write, with `true`, `false` and `null` besides Python's own names of these.
"""

import ast
import json
import re
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .json_text import bare_call_form, dump_json, first_of
from .tool_call import Diagnosis, Parsed, ToolCall, ToolCallFormat, executed_call, is_too_deep


@dataclass(frozen=True)
class _Tokens:
    """The control tokens of a model.

    Args:
        ends (`tuple[str, ...]`): Those that may end a well-formed turn; the first one usually does.
        stops (`tuple[str, ...]`): Those at which a server stops.
        tags (`tuple[str, ...]`): Tags of calls.
        opens, closes (`str`, *optional*): Tags that may stand around the list; both of them, or none.
    """

    ends: tuple[str, ...]
    stops: tuple[str, ...]
    tags: tuple[str, ...]
    opens: str = ""
    closes: str = ""


_EOT, _EOM = "<|eot_id|>", "<|eom_id|>"
_LLAMA3 = _Tokens(ends=(_EOT,), stops=(_EOT, _EOM), tags=("<|python_tag|>",))
_ENDS_4, _TAGS_4 = ("<|eot|>", "<|eom|>"), ("<|python_start|>", "<|python_end|>")
_LLAMA4 = _Tokens(_ENDS_4, _ENDS_4, _TAGS_4, *_TAGS_4)

# Longer than any turn: the time that `ast` takes is not always linear.
_MAX_LENGTH = 100_000
# Templates that ask for this format have it in their instructions; Llama's own ask for JSON.
ASKS_FOR_PYTHON = "a Python list of calls"
_JSON_NAMES = {"true": True, "false": False, "null": None}

_LIST_OF_CALLS = re.compile(r"\[\s*+(?P<name>[^\W\d]\w*+(?:\.[^\W\d]\w*+)*+)\s*+\(")
# A call out of its list, or behind a tag. Words may begin like one, and code has calls of other functions: only calls
# of tools name their arguments, or have none.
_OTHER_CALL = re.compile(
    r"<\|python_(?:tag|start)\|>.*|[A-Za-z_][\w.]*+\(\s*+(?:\)|[A-Za-z_]\w*+\s*+=(?!=).*\))", re.DOTALL
)
# Strings, whatever they hold, and the brackets outside of them; a quote alone opens a string that does not end.
_PIECE = re.compile(
    r"'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\"|['\"]|[\[({]|[\])}]",
    re.DOTALL,
)
# How texts begin that match vLLM's own expression, which takes exponential time: empty calls, each with a comma after
# it, then calls without commas, of which the last one is empty too, or has all that follows as its arguments.
_SERVED = re.compile(
    r"\[(?:[a-zA-Z]\w*+\(\),\s*+)*+(?:(?:[a-zA-Z]\w*+\(\)\s*+)++\]|"
    r"(?:[a-zA-Z]\w*+\(\)\s*+)*+[a-zA-Z]\w*+\([a-zA-Z]\w*+=)"
)
_SERVED_END = re.compile(r"\)\s*+\]")


def render_pythonic(call: ToolCall, text_before: str = "", *, end: str) -> str:
    """The completion that makes `call`; a turn is a call or text, so there is none before it."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
    return f"[{call.name}({arguments})]{end}"


def render_pythonic_text(text: str, *, end: str) -> str:
    """The completion that says `text`."""
    return text + end


def parse_pythonic(completion: str, tools: str | None = None, *, tokens: _Tokens) -> Parsed:
    """Parse a completion that makes calls as Python does; never raises."""
    end_at, end = first_of(tokens.ends, completion)
    body, after = completion[:end_at], completion[end_at + len(end or "") :]
    start, closes = (len(tokens.opens), tokens.closes) if tokens.opens and body.startswith(tokens.opens) else (0, "")
    opening = _LIST_OF_CALLS.match(body, start)
    if opening is None:
        return Parsed(_diagnosis_of_words(body.strip(), after.strip()), text=body.strip(), end=end)
    diagnosis, calls = _read_list(body[start:], closes)
    if diagnosis == Diagnosis.OK:
        if opening[0] != f"[{calls[0].name}(":  # blanks, or letters that Python takes for others
            diagnosis = Diagnosis.BAD_JSON
        elif after.strip():
            diagnosis = Diagnosis.TRAILING_TEXT
        elif end is None:
            diagnosis = Diagnosis.JSON_INCOMPLETE
    parsed = Parsed(diagnosis, tuple(calls), end=end, call_starts=(start,))
    if not parsed.is_call or end is None:
        return parsed
    return replace(parsed, call_span=(0, end_at + len(end)), name_span=opening.span("name"))


def executed_pythonic(completion: str, tools: str | None = None, *, tokens: _Tokens) -> tuple[ToolCall, ...]:
    """The calls that a server executes, as vLLM's `pythonic` and `llama4_pythonic` parsers find them; never raises.

    The turn must begin with a list of calls, the first of which has a plain name and no positional arguments; those of
    the others are ignored. If one is no call, or has other values than JSON's, the whole turn is shown as text.
    """
    end_at, _ = first_of(tokens.stops, completion)
    body = completion[:end_at]
    for tag in tokens.tags:  # no special token reaches the parser
        body = body.replace(tag, "")
    opening = _SERVED.match(body)
    if opening is None or not (opening[0].endswith("]") or _SERVED_END.search(body, opening.end())):
        return ()
    try:
        calls = [
            executed_call(name, json.loads(json.dumps(arguments, ensure_ascii=False)))
            for name, arguments in map(_served_call, _list_of_calls(body))
        ]
    except (_NoCall, SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()
    return tuple(call for call in calls if call is not None)


def _diagnosis_of_words(text: str, after: str) -> Diagnosis:
    if not text:
        return Diagnosis.EMPTY
    if _OTHER_CALL.fullmatch(text) or bare_call_form(text) is not None:
        return Diagnosis.FUNCTION_SYNTAX
    return Diagnosis.TRAILING_TEXT if after else Diagnosis.TEXT


class _NoCall(Exception):
    """A part of the list is no call with literal arguments."""

    def __init__(self, diagnosis: Diagnosis = Diagnosis.BAD_JSON) -> None:
        super().__init__(diagnosis)
        self.diagnosis = diagnosis


def _read_list(body: str, closes: str) -> tuple[Diagnosis, list[ToolCall]]:
    """Read the list that a text begins with; after it stands `closes`, and nothing else."""
    end = _end_of_list(body)
    if end is None:
        return Diagnosis.JSON_INCOMPLETE, []
    try:
        calls = [_strict_call(call) for call in _list_of_calls(body[:end])]
    except _NoCall as fault:
        return fault.diagnosis, []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Diagnosis.BAD_JSON, []
    if (rest := body[end:].strip()) != closes:
        return Diagnosis.TRAILING_TEXT if rest else Diagnosis.JSON_INCOMPLETE, calls
    return Diagnosis.MULTI_CALL if len(calls) > 1 else Diagnosis.OK, calls


def _end_of_list(body: str) -> int | None:
    """The position after the bracket that closes the first one; `None` if nothing does."""
    depth = 0
    for piece in _PIECE.finditer(body):
        if piece[0] in "'\"":
            return None
        depth += (piece[0] in "[({") - (piece[0] in "])}")
        if depth == 0:
            return piece.end()
    return None


def _list_of_calls(text: str) -> list[ast.Call]:
    if len(text) > _MAX_LENGTH:
        raise _NoCall
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know, and calls of literals
        found = getattr(ast.parse(text).body[0], "value", None)
    items = found.elts if isinstance(found, ast.List) else []
    calls = [item for item in items if isinstance(item, ast.Call)]
    if not calls or len(calls) < len(items):
        raise _NoCall
    return calls


def _strict_call(call: ast.Call) -> ToolCall:
    if call.args:
        raise _NoCall(Diagnosis.FUNCTION_SYNTAX)
    keys = [each.arg for each in call.keywords]
    if len(set(keys)) < len(keys):
        raise _NoCall
    try:
        if None in keys:
            raise ValueError("arguments without names")
        arguments = {str(each.arg): _value(each.value, strict=True) for each in call.keywords}
    except ValueError:
        raise _NoCall(Diagnosis.BAD_ARGUMENTS) from None
    dump_json(arguments).encode()  # fails at infinity, and at half of a surrogate pair
    if is_too_deep(arguments):
        raise _NoCall
    return ToolCall(_name(call.func), arguments)


def _served_call(call: ast.Call) -> tuple[str, dict]:
    return _name(call.func), {each.arg: _value(each.value, strict=False) for each in call.keywords}


def _name(function: ast.expr) -> str:
    """A name with dots, such as `calendar.search`."""
    if isinstance(function, ast.Attribute):
        return f"{_name(function.value)}.{function.attr}"
    if isinstance(function, ast.Name):
        return function.id
    raise _NoCall


def _value(node: ast.expr, strict: bool) -> Any:
    """The value of a literal. Without `strict`, of whatever the server makes JSON of.

    Raises:
        ValueError: If it is another expression.
    """
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _value(operand, strict)
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=items):
            return [_value(item, strict) for item in items]
        case ast.Dict(keys=nodes, values=values):
            keys = [node.value for node in nodes if isinstance(node, ast.Constant)]
            unique = len({*keys}) == len(nodes) and all(isinstance(key, str) for key in keys)
            if unique if strict else len(keys) == len(nodes):
                return {key: _value(value, strict) for key, value in zip(keys, values, strict=True)}
        case ast.Tuple(elts=items) | ast.Set(elts=items) if not strict:
            return [_value(item, strict) for item in items]
        case ast.JoinedStr(values=parts) if not strict:
            texts = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
            if len(texts) == len(parts):  # no braces
                return "".join(texts)
    raise ValueError("no literal that JSON can write")


PYTHONIC = ToolCallFormat(
    name="pythonic",
    call_tag="[",
    call_end=_EOT,
    turn_end=_EOT,
    user_turn=f"{_EOT}<|start_header_id|>user<|end_header_id|>\n\n",
    tokens=_LLAMA3.stops + _LLAMA3.tags,
    begins_like_call=_LIST_OF_CALLS,
    render=partial(render_pythonic, end=_EOT),
    render_text=partial(render_pythonic_text, end=_EOT),
    parse=partial(parse_pythonic, tokens=_LLAMA3),
    executed_calls=partial(executed_pythonic, tokens=_LLAMA3),
    told_by=(_EOT, ASKS_FOR_PYTHON),
    seam="[",  # as in `[get`, one token
    text_before_call=False,
    parallel_calls=True,
    tool_parser="pythonic",
)

PYTHONIC_LLAMA4 = replace(
    PYTHONIC,
    name="pythonic_llama4",
    call_end=_ENDS_4[0],
    turn_end=_ENDS_4[0],
    user_turn=f"{_ENDS_4[0]}<|header_start|>user<|header_end|>\n\n",
    other_ends=_ENDS_4[1:],
    tokens=_LLAMA4.stops + _LLAMA4.tags,
    render=partial(render_pythonic, end=_ENDS_4[0]),
    render_text=partial(render_pythonic_text, end=_ENDS_4[0]),
    parse=partial(parse_pythonic, tokens=_LLAMA4),
    executed_calls=partial(executed_pythonic, tokens=_LLAMA4),
    told_by=("<|header_start|>", _ENDS_4[0]),
    not_told_by=('"parameters": ',),  # Llama 4's own template, which asks for JSON
    tool_parser="llama4_pythonic",
)
