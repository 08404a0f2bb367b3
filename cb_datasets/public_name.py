"""Names of models and folders that may be published: paths tell of a machine and of who works on it.

meta-llama/Llama-3.1-8B-Instruct, demo/tiny_agent           as they are: a Hub id, a path inside the project
/home/jane/runs/adapter                                     adapter
/data/jane/llama-3.1-8b/checkpoint-9                        llama-3.1-8b/checkpoint-9: its licence follows from it
~/.cache/huggingface/hub/models--org--name/snapshots/4c1f   org/name

What is released, or written for readers, names no folder at all: `demo/tiny_agent` would be read as an id of the Hub,
under which anybody may publish a model.

demo/tiny_agent with the weights 4c1f9a0733be51d2           local model tiny_agent (weights 4c1f9a0733be51d2)
"""

import json
import os
import re
from pathlib import Path

from .model_licences import licence_of


# As `generation.backend.weights_revision` writes it; a commit has 40 digits. Weights loaded in 8 bits are marked.
_HASH_OF_WEIGHTS = re.compile(r"[0-9a-f]{16}(?:@\w+)?")
_LOCAL = "local model "
_IN_CACHE = re.compile(r"(?:models|datasets)--(.+?)--(.+)")


def public_name(name: str) -> str:
    """The name of a model, a tokenizer or a data set without the place where it lies on this machine.

    Args:
        name (`str`): A path, or an id of the Hub. Only a path that is absolute or leaves the working directory
            changes.
    """
    path = Path(name)
    if not name or not (path.is_absolute() or name.startswith("~") or ".." in path.parts or not path.name):
        return name
    parts = path.parts[1:] if name.startswith("~") else Path(os.path.abspath(path)).parts[1:]
    for part in parts:
        if cached := _IN_CACHE.fullmatch(part):
            return f"{cached[1]}/{cached[2]}"
    # The licence of outputs and adapters is recognised by the model's name, which may be that of a parent folder.
    named = [number for number, part in enumerate(parts) if licence_of(part)]
    return "/".join(parts[named[-1] :] if named else parts[-1:])


def folder_name(name: str) -> str:
    """The last part of a path, or a Hub id of the cache, whatever the path is relative to."""
    return public_name(os.path.join("/", name))


def hub_id(name: str) -> str | None:
    """The Hub id that a model was loaded by; `None` for a folder of this machine.

    Args:
        name (`str`): A path, or an id of the Hub.
    """
    public = public_name(name)
    if public == name:
        return None if not name or Path(name).is_dir() else name
    return public if any(_IN_CACHE.fullmatch(part) for part in Path(name).parts) else None


def local_label(name: str, revision: str | None) -> str:
    """What readers are told of a model that lies in a folder of this machine; a label stays as it is."""
    if is_local(name):
        return name
    return f"{_LOCAL}{folder_name(name)} (weights {revision or 'not recorded'})"


def is_local(label: str) -> bool:
    """Whether a label is that of a local model."""
    return label.startswith(_LOCAL)


def model_label(name: str, revision: str | None) -> str:
    """What readers are told of a model: its Hub id, or that it is a local one, with the hash of its weights.

    Args:
        name (`str`): Public name of the model, or of the model and its adapters, which are local: `base+adapter`.
        revision (`str`, *optional*): The revision of each, likewise: a commit of the Hub, or a hash of weights.
    """
    base, *adapters = name.split("+")
    hashed = (revision or "").split("+")[0]
    if _HASH_OF_WEIGHTS.fullmatch(hashed):
        base = local_label(base, hashed)
    return "+".join([base, *map(folder_name, adapters)])


def publish_adapter_config(folder: Path, name: str | None = None) -> None:
    """Replace the path of the base model in an adapter's config by its public name, or by another name."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    base = config.get("base_model_name_or_path")
    if base is not None and (name or public_name(base)) != base:
        config["base_model_name_or_path"] = name or public_name(base)
        # As PEFT writes it.
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
