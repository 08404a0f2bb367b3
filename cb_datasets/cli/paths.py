"""Callbacks of options that take a path: it is checked, and kept apart from the command's other paths.

Every option and argument with a path has one of them, which a test holds. They run before the command does, so that a
wrong path is an error before anything is read.
"""

from collections.abc import Callable
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
        values = value if isinstance(value, list) else [] if value is None else [value]
        if twice := next((each for each in values if values.count(each) > 1), None):
            raise ValueError(f"{flag}: {twice} is given twice. Give it once.")
        for given in values:
            named = NamedPath(flag, _path_of(given, role), role)
            if role in (Role.WRITE, Role.CACHE):
                check_writable(flag, named.path, kind or ("file" if named.path.suffix == ".jsonl" else "folder"))
            elif kind is not None:
                check_exists(flag, named.path, kind)
            _register(ctx, named)
            if check is not None:
                check(flag, named.path)
        return value

    return callback


def _check_png(flag: str, path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
            raise ValueError(f"{flag}: {path} is no PNG file. Name the curves.png that the trainer wrote.")


def _path_of(value: str | Path, role: Role) -> Path:
    # An extra adapter is NAME=PATH.
    name, separator, path = str(value).partition("=")
    return Path(path) if role == Role.MODEL and separator and "/" not in name else Path(value)


def _register(ctx: typer.Context, named: NamedPath) -> None:
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
# A folder, or a .jsonl file.
output_path = _callback(Role.WRITE)
output_file = _callback(Role.WRITE, "file")
output_of_either_kind = _callback(Role.WRITE, "path")
cache_folder = _callback(Role.CACHE)
