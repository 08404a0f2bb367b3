"""The target's tokenizer: loading it, and deciding what its chat template leaves open.

A recipe decides once, for all of its stages: which tool-call format the model writes, the settings of its template
(`enable_thinking`, `reasoning_effort`), or another template. The decided tokenizer is a folder, which every command
takes in place of the model's own.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import scratch_folder
from ..formats.chat_template import own_templates, with_decisions
from ..template_probe import check_template
from .model_files import loading, read_object


if TYPE_CHECKING:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def check_model(model: str) -> None:
    """Raise if `model` is a local path without a model, before the Hub is queried for it, with retries.

    It counts as a path if it begins with `.`, `/` or `~`, or if its parent folder exists.

    Args:
        model (`str`): Folder of a model, or a Hub id.

    Raises:
        FileNotFoundError: If it is a path and holds no tokenizer.
    """
    path = Path(model)
    if path.is_dir():
        if not any(path.glob("tokenizer*")):
            raise FileNotFoundError(f"{model} is not a model folder: it has no tokenizer.")
    elif path.exists():
        raise FileNotFoundError(f"{model} is a file. Pass the model's folder.")
    elif model.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no folder {model}.")
    elif "/" in model and path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {model}. If you mean a Hub model, run from a directory without a folder "
            f"{path.parent}."
        )


def load_tokenizer(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer, and check that tool prompts can be rendered with it.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        revision (`str`, *optional*): Revision of the Hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run Python code that the model ships.

    Raises:
        FileNotFoundError: If it is no model folder, and the Hub has no such model or cannot be reached.
        ValueError: If it has no chat template, one whose tool-call format is unknown, or one that [`check_template`]
            refuses.
    """
    tokenizer = _load(model, revision, trust_remote_code)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{model} has no chat template; tool prompts cannot be rendered for it. Give it one: "
            "`cb-datasets tokenizer MODEL --chat-template FILE`."
        )
    return _checked(tokenizer, model)


def _load(model: str, revision: str | None = None, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    check_model(model)
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    if trust_remote_code:
        options["trust_remote_code"] = True
    if (config := Path(model) / "tokenizer_config.json").is_file():
        read_object(config)
    with loading(model, "tokenizer (tokenizer.json, chat_template.jinja)"):
        return _tokenizer_class(Path(model)).from_pretrained(model, **options)


def _checked(tokenizer: "PreTrainedTokenizerBase", model: str) -> "PreTrainedTokenizerBase":
    try:
        check_template(tokenizer)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    return tokenizer


def _tokenizer_class(folder: Path) -> "type[AutoTokenizer] | type[PreTrainedTokenizerFast]":
    """`AutoTokenizer`, or the class that it would choose for a folder that names the general one.

    Most do. `AutoTokenizer` imports the whole of text generation, which takes three seconds of every command.
    """
    config = folder / "tokenizer_config.json"
    if config.is_file() and (folder / "tokenizer.json").is_file():
        settings = read_object(config)
        general = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
        if general and "auto_map" not in settings:
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def decided_tokenizer(
    model: str,
    tool_format: str | None = None,
    settings: Mapping[str, object] | None = None,
    chat_template: str | None = None,
) -> "PreTrainedTokenizerBase":
    """A model's tokenizer with what a recipe decides about its chat template, checked as by [`load_tokenizer`].

    Args:
        model (`str`): Folder of the model, or its Hub id.
        tool_format (`str`, *optional*): Name of the tool-call format, for a template that does not tell it.
        settings (`Mapping[str, object]`, *optional*): Values of variables of the template.
        chat_template (`str`, *optional*): A file with another template, or the name of one of the package's.

    Raises:
        FileNotFoundError: If there is no such model or template.
        ValueError: If the template lacks a setting, or [`check_template`] refuses it.
    """
    tokenizer = _load(model)
    template = tokenizer.chat_template if chat_template is None else read_template(chat_template)
    if template is None:
        raise ValueError(f"{model} has no chat template. Pass one with --chat-template.")
    tokenizer.chat_template = with_decisions(template, tool_format, settings or {})
    return _checked(tokenizer, model)


def read_template(name: str) -> str:
    """Text of a chat template: a file, or one of the package's by its name.

    Raises:
        FileNotFoundError: If there is none; the message names the package's.
    """
    own = own_templates()
    if name in own:
        return own[name]
    if not Path(name).is_file():
        raise FileNotFoundError(f"There is no file {name}. Templates of the package: {', '.join(own)}.")
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not UTF-8, so it is no chat template. Name another file.") from None


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a tokenizer to a folder. `tokenizer.json` comes last: where it is, the others are."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent, folder.name) as scratch:
        tokenizer.save_pretrained(scratch)
        folder.mkdir(exist_ok=True)
        for path in sorted(scratch.iterdir(), key=lambda path: path.name == "tokenizer.json"):
            os.replace(path, folder / path.name)
