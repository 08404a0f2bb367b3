"""The files of a model or an adapter, checked before anything is loaded: whole, and nothing that runs code.

config.json, adapter_config.json     JSON objects
model.safetensors                    8 bytes: length of the header; the header: JSON; the tensors, to the last byte
model.safetensors.index.json         names the shards, which are all there
pytorch_model.bin                    a pickle. Unpickling runs what a stranger wrote; `torch.load` tries to prevent it
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..disk_faults import disk_fault


INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_logger = logging.getLogger(__name__)

# A longer header than any model's, as in the safetensors library.
_MAX_HEADER = 100_000_000


def check_model_files(model: str, allow_pickles: bool = False) -> None:
    """Check the config and the weights in a folder. A Hub id passes: its files are checked when they are loaded.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        allow_pickles (`bool`, *optional*, defaults to `False`): Whether weights may be pickles.

    Raises:
        FileNotFoundError: If the config or weights are missing.
        ValueError: If one of them is broken, or the weights are pickles.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    if "model_type" not in read_object(folder / "config.json"):
        raise ValueError(f"{folder / 'config.json'}: it has no `model_type`, so it is no config of a model.")
    index = folder / INDEX
    if not index.is_file():
        check_weights(folder, allow_pickles)
        return
    for name in sorted(set(read_object(index).get("weight_map", {}).values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, which {INDEX} names. Copy the whole model again.")
        check_safetensors(folder / name)


def check_weights(folder: Path, allow_pickles: bool = False) -> None:
    """Check the safetensors files in a folder; without any, pickles are refused by name unless they are allowed.

    Raises:
        FileNotFoundError, ValueError: As for [`check_model_files`].
    """
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        check_safetensors(path)
    if files:
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        raise FileNotFoundError(f"{folder} is not a model folder: it has no .safetensors file.")
    if not allow_pickles:
        raise ValueError(refused_pickle(f"{folder}: the only weights are a pickle, {pickles[0]}"))


def refused_pickle(fault: str) -> str:
    """What is said about weights that are a pickle."""
    return (
        f"{fault}: loading it can run code of whoever wrote it. Take a copy with .safetensors files, or, if you trust "
        "its author, train with --allow_pickled_weights true."
    )


def check_safetensors(path: Path) -> None:
    """Check that a safetensors file is whole, from its header and its size.

    Raises:
        ValueError: If it is not.
    """
    broken = ValueError(f"{path}: not a whole safetensors file. Copy or download it again.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise broken
        try:
            header = json.loads(file.read(length))
            tensors = [value for name, value in header.items() if name != "__metadata__"]
            end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            raise broken from None
    if 8 + length + end != size:
        raise broken


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that a model is described by.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no JSON object; the message names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a whole model folder: {path.name} is missing.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError) as error:
        fault = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "nested too deeply"
        raise ValueError(f"{path}: {fault}. Copy or download it again.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}). Copy or download it again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object. Copy or download it again.")
    return value


@contextmanager
def loading(model: str, part: str) -> Iterator[None]:
    """Name the model, and its part that is being loaded, in an error of the libraries that load it, on one line.

    Raises:
        FileNotFoundError: If there is no such folder, and the Hub has no such model or cannot be reached.
        ValueError: In place of any other error but those of a disk. Libraries raise all kinds for a broken file,
            `tokenizers` even a bare `Exception`.
    """
    try:
        yield
    except Exception as error:
        if disk_fault(error):
            raise
        if isinstance(error, OSError) and not Path(model).exists():
            raise FileNotFoundError(
                f"{model} is neither a model folder nor available on the Hub: {str(error).splitlines()[0]}"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{model}: its {part} cannot be loaded: {_short(reason)}") from error


def check_loaded(model: str, info: Mapping[str, Any]) -> None:
    """Check that all weights of a model were in its files: the library fills in random ones, with a warning.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        info (`Mapping`): What `from_pretrained` returns with `output_loading_info=True`.

    Raises:
        ValueError: If one was not; the first are named.
    """
    if missing := sorted(info["missing_keys"]):
        more = ", ..." if len(missing) > 3 else ""
        raise ValueError(
            f"{model}: {len(missing)} weights that config.json describes are not in its files: "
            f"{', '.join(missing[:3])}{more}. Copy or download the whole model again."
        )


def _short(reason: str, length: int = 300) -> str:
    return reason if len(reason) <= length else f"{reason[:length]}..."


def check_remote_code(model: str, revision: str | None) -> None:
    """Check that the Python code that a model ships is pinned, and name it in a warning.

    It is whatever the model's repository holds on that day.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        revision (`str`, *optional*): Revision of the Hub id.

    Raises:
        ValueError: If it is a Hub id without a commit, or names code of another repository.
    """
    folder = Path(model)
    if not folder.is_dir() and not _is_commit(revision):
        raise ValueError(
            f"`trust_remote_code` runs Python code of {model}: read it, and set `model_revision` to the commit that "
            "you read, all 40 digits."
        )
    run: set[str] = set()
    for name in ("config.json", "tokenizer_config.json"):
        classes = json.dumps(_described(folder, model, name, revision).get("auto_map", {}))
        if "--" in classes:
            raise ValueError(
                f"{model}: {name} names code of another repository, which no revision pins. Copy the model and that "
                "code into one folder, read it, and train from there."
            )
        run.update(re.findall(r'"(\w+)\.\w+"', classes))
    if run:
        files = ", ".join(f"{module}.py" for module in sorted(run))
        _logger.warning("`trust_remote_code`: Python code of %s runs: %s.", model, files)


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _described(folder: Path, model: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a model; empty if it has none."""
    if folder.is_dir():
        return read_object(folder / name) if (folder / name).is_file() else {}
    from transformers.utils import cached_file

    path = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return {} if path is None else read_object(Path(path))
