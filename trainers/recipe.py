"""
Recipes, read strictly: a flat YAML file of `key: value` whose keys and types are those of the script's settings.

    recipes/demo.yaml: `learning_rat` is no setting. Did you mean `learning_rate`?
    recipes/demo.yaml: `lora_r` must be a whole number, got [8].
"""

import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


# Words that the command line takes for a switch, in a recipe in quotes
_SWITCH_WORDS = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")

# A message names no more choices than these
MAX_CHOICES_LISTED = 15

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}


def read_recipe(path: Path) -> dict[str, Any]:
    """
    Read the settings of a recipe.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML mapping of settings; the message names the line.
    """
    import yaml

    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder. Name the recipe's .yaml file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Name a recipe with --config, e.g. recipes/demo.yaml.")
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.compose(text, yaml.SafeLoader)
        recipe = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8. Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise ValueError(_yaml_fault(path, text, error)) from None
    if recipe is None:
        raise ValueError(f"{path}: there are no settings in it. Write `key: value`, as in recipes/demo.yaml.")
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: not a mapping of settings. Write `key: value`, as in recipes/demo.yaml.")
    _refuse_repeated_keys(document, path)
    if not isinstance(recipe.get("env", {}), dict):
        raise ValueError(f"{path}: `env` must be a mapping of environment variables, `NAME: value`.")
    return recipe


def _yaml_fault(path: Path, text: str, error: Any) -> str:
    """One line on what the YAML parser says, with the line that it says it about."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    # Its reader knows the position only
    line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
    problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", error)).split())
    if "'\\t'" in problem:
        return f"{path}:{line}: a tab, which YAML does not allow there. Indent with spaces."
    return f"{path}:{line}: not YAML of settings ({problem}). Write `key: value`, odd texts in quotes."


def _refuse_repeated_keys(document: Any, path: Path) -> None:
    lines: dict[str, int] = {}
    for key, _ in document.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ValueError(
                f"{path}:{line}: `{key.value}` is set twice, also in line {lines[key.value]}. Keep one of them."
            )
        lines[key.value] = line


def check_recipe(recipe: Mapping[Any, Any], settings: Iterable[type], path: Path) -> None:
    """
    Check that the keys of a recipe are settings, and its values of their types.

    Args:
        recipe (`Mapping`): What [`read_recipe`] returned.
        settings (`Iterable[type]`): Dataclasses of the script's settings.
        path (`Path`): The recipe's file, for the message.

    Raises:
        ValueError: If a key or a value is none; the message names it and the nearest key.
    """
    hints: dict[str, Any] = {}
    for cls in settings:
        own = get_type_hints(cls)
        hints |= {field.name: (own[field.name], field.default) for field in fields(cls) if field.init}
    for key, value in recipe.items():
        if key == "env":
            continue
        if key not in hints:
            raise ValueError(f"{path}: `{key}` is no setting. {_nearest(str(key), hints)}")
        hint, default = hints[key]
        if key == "resume_from_checkpoint" and isinstance(value, bool):  # `true` is the newest checkpoint
            continue
        if value is None and (default is None or default is MISSING):
            continue  # an empty value stands for the default
        if not _fits(value, hint):
            quotes = "; put it in quotes" if not isinstance(value, str | list | dict) and _takes(hint, str) else ""
            similar = nearest(value, _choices(hint)) if isinstance(value, str) else None
            meant = f" Did you mean {similar}?" if similar else ""
            raise ValueError(f"{path}: `{key}` must be {_described(hint)}, got {_brief(value)}{quotes}.{meant}")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name, if one is similar."""
    plain = name.strip("-").replace("-", "_").lower()
    return next(iter(difflib.get_close_matches(plain, list(names), n=1, cutoff=0.7)), None)


def _nearest(name: str, names: Iterable[str]) -> str:
    found = nearest(name, names)
    return f"Did you mean `{found}`?" if found else "`python -m trainers.train --help` lists the settings."


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _takes(hint: Any, kind: type) -> bool:
    return kind in _alternatives(hint)


def _choices(hint: Any) -> list[str]:
    """Values of a setting that is one of an enumeration."""
    return [
        member.value
        for each in _alternatives(hint)
        if isinstance(each, type) and issubclass(each, Enum)
        for member in each
    ]


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("{") and _described(hint).startswith("a mapping"):
        return _is_json(value)  # as on the command line
    if choices := _choices(hint):
        return isinstance(value, str) and value in choices
    return any(_fits_one(value, each) for each in _alternatives(hint))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _fits_one(value: Any, kind: Any) -> bool:
    if kind is type(None):
        return value is None
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if kind is dict or origin is dict:
        return isinstance(value, dict)
    if origin is list:
        [item] = get_args(kind)
        # One text stands for a list of one
        return (item is str and isinstance(value, str)) or (
            isinstance(value, list) and all(_fits(each, item) for each in value)
        )
    if kind is bool:
        return isinstance(value, bool) or (isinstance(value, str) and value.lower() in _SWITCH_WORDS)
    if kind in (int, float):
        return is_number(value, kind)
    return isinstance(value, kind) if isinstance(kind, type) else True


def is_number(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind, or a text that is one."""
    if isinstance(value, bool):
        return False
    if isinstance(value, str):  # YAML reads 1e-4 as a text
        try:
            kind(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int) or (kind is float and isinstance(value, float))


def _described(hint: Any) -> str:
    if choices := _choices(hint):
        listed = len(choices) <= MAX_CHOICES_LISTED
        return f"one of {', '.join(choices)}" if listed else f"one of {len(choices)} names"
    kinds = []
    for each in _alternatives(hint):
        if get_origin(each) is list:
            kinds.append(f"a list, each item {_described(get_args(each)[0])}")
        elif name := _KINDS.get(get_origin(each) or each):
            kinds.append(name)
    return " or ".join(kinds) or str(hint)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
