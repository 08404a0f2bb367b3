"""Names of models and folders that may be published: paths tell of a machine and of who works on it.

meta-llama/Llama-3.1-8B-Instruct, demo/tiny_agent           as they are: a Hub id, a path inside the project
/home/jane/runs/adapter                                     adapter
/data/jane/llama-3.1-8b/checkpoint-9                        llama-3.1-8b/checkpoint-9: its licence follows from it
~/.cache/huggingface/hub/models--org--name/snapshots/4c1f   org/name
"""

import json
import os
import re
from pathlib import Path

from .model_licences import licence_of


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


def publish_adapter_config(folder: Path) -> None:
    """Replace the path of the base model in an adapter's config by its public name."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    base = config.get("base_model_name_or_path")
    if base is not None and public_name(base) != base:
        config["base_model_name_or_path"] = public_name(base)
        # As PEFT writes it.
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
