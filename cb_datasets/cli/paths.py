"""Callbacks of options that take a path: it is checked, and kept apart from the command's other paths.

Every option and argument with a path has one of them, which a test holds. They run before the command does, so that a
wrong path is an error before anything is read.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from ..path_rules import NamedPath, Role, check_apart, check_exists, check_writable


# Key of the paths of a command in the context of its invocation.
_PATHS = f"{__name__}.paths"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Callback = Callable[[typer.Context, typer.CallbackParam, Any], Any]


def _callback(role: Role, kind: str | None = None, check: Callable[[str, Path], None] | None = None) -> Callback:
    def callback(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        flag = param.opts[0] if param.opts[0].startswith("-") else str(param.name).upper()
        for given in value if isinstance(value, list) else [] if value is None else [value]:
            named = NamedPath(flag, _path_of(given, role), role)
            _register(ctx, named, kind)
            if check is not None:
                check(flag, named.path)
        return value

    return callback


def check_not_empty(parameters: Iterable[Any], words: list[str]) -> None:
    """Refuse an empty text in the place of a path, as an unset variable of a script gives: it would be the folder `.`.

    Args:
        parameters (`Iterable`): The options and arguments of a command.
        words (`list[str]`): The words behind its name.

    Raises:
        ValueError: If there is one; the message names the flag, or the argument.
    """
    flags = {flag for option in parameters if option.callback in _CALLBACKS for flag in option.opts}
    for before, word in pairwise(["", *words]):
        flag = word.removesuffix("=") if word.endswith("=") else before if word == "" else None
        if flag in flags:
            raise ValueError(f"{flag}: it is empty. Name a path, or leave the option out.")
        if word == "" and not before.startswith("-"):
            raise ValueError("An argument is empty. Name a path, or leave it out.")


def _check_png(flag: str, path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
            raise ValueError(f"{flag}: {path} is no PNG file. Name the curves.png that the trainer wrote.")


def _path_of(value: str | Path, role: Role) -> Path:
    # An extra adapter is NAME=PATH.
    name, separator, path = str(value).partition("=")
    return Path(path) if role == Role.MODEL and separator and "/" not in name else Path(value)


def _register(ctx: typer.Context, named: NamedPath, kind: str | None) -> None:
    if kind is not None:
        check_exists(named.flag, named.path, kind)
    if named.role in (Role.WRITE, Role.CACHE):
        check_writable(named.flag, named.path)
    others = ctx.meta.setdefault(_PATHS, [])
    for other in others:
        check_apart(named, other)
    others.append(named)


input_file = _callback(Role.READ, "file")
input_folder = _callback(Role.READ, "folder")
data_folder = _callback(Role.DATA, "folder")
input_path = _callback(Role.READ, "path")
# Results of other commands, which lie in the folder of the report that they are added to.
result_file = _callback(Role.RESULT, "file")
curves_file = _callback(Role.RESULT, "file", _check_png)
# A file, or the name of one of the package's own, which its reader knows.
own_or_file = _callback(Role.READ)
# A model or an adapter, whose own check knows a path from a Hub id.
model_path = _callback(Role.MODEL)
output_path = _callback(Role.WRITE)
cache_folder = _callback(Role.CACHE)
_CALLBACKS = (
    *(input_file, input_folder, data_folder, input_path, result_file, curves_file, own_or_file),
    *(model_path, output_path, cache_folder),
)
