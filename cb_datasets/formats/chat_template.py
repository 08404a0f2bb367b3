"""A chat template with what a recipe decides about it: the tool-call format, and the template's own settings.

    {#- tool-call format: hermes #}{#- setting #}{%- set enable_thinking = false %}    <- before the model's template

So they are part of the template. Every stage that renders with it, a server and the saved tokenizer of a breaker
included, has the same ones, and the hash of the template tells them apart.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import TemplateError


# What is raised for messages that a chat template cannot write.
RENDER_ERRORS = (TemplateError, ValueError, TypeError, KeyError)

# Settings are marked, because many templates begin with a `set` of their own.
_HEAD = re.compile(r"\{#- tool-call format: (\w*) #\}((?:\{#- setting #\}\{%- set \w+ = [^\n]*? %\})*)")
_SETTING = re.compile(r"\{%- set (\w+) = ([^\n]*?) %\}")

# Chat templates of the package, for models whose own shows no tools or asks for another format. A tokenizer has one
# text as its template, so what they include is put in place.
_TEMPLATES = Path(__file__).with_name("templates")
_INCLUDE = re.compile(r'\{%- include "([\w/]+\.jinja)" %\}\n')


def own_templates() -> dict[str, str]:
    """The chat templates of the package, by name."""
    return {path.stem: _INCLUDE.sub(_included, path.read_text("utf-8")) for path in sorted(_TEMPLATES.glob("*.jinja"))}


def _included(include: re.Match[str]) -> str:
    return (_TEMPLATES / include[1]).read_text("utf-8")


def with_decisions(template: str, tool_format: str | None, settings: Mapping[str, object]) -> str:
    """A template with its tool-call format and settings, in place of those that it has; as it is without any.

    Args:
        template (`str`): A chat template.
        tool_format (`str`, *optional*): Name of its format, for a template that does not tell it.
        settings (`Mapping[str, object]`): Values of variables of the template, such as `enable_thinking`.

    Raises:
        ValueError: If the template has no such variable.
    """
    head = _HEAD.match(template)
    own = template[head.end() :] if head else template
    for name in settings:
        if not re.search(rf"\b{re.escape(name)}\b", own):
            raise ValueError(f"The chat template has no setting {name!r}.")
    tool_format = tool_format or named_format(template)
    settings = {**settings_of(template), **settings}
    if not tool_format and not settings:
        return template
    values = "".join(
        f"{{#- setting #}}{{%- set {name} = {_literal(value)} %}}" for name, value in sorted(settings.items())
    )
    return f"{{#- tool-call format: {tool_format or ''} #}}{values}{own}"


def named_format(template: str) -> str | None:
    """Name of the tool-call format that was decided for a template; `None` if none was."""
    head = _HEAD.match(template)
    return (head[1] or None) if head else None


def settings_of(template: str) -> dict[str, object]:
    """The settings that were decided for a template."""
    head = _HEAD.match(template)
    return {name: json.loads(_json(value)) for name, value in _SETTING.findall(head[2])} if head else {}


def _literal(value: object) -> str:
    return {"null": "none"}.get(text := json.dumps(value), text)


def _json(literal: str) -> str:
    return {"none": "null"}.get(literal, literal)
