"""Offline checks of a release folder: faults that the Hub's validator or viewer would find, and leaked secrets.

>>> folder_faults(Path("data/demo/release"))
['README.md: unknown licence "apache2"', 'harmful/train-00000-of-00001.parquet: holds a Hugging Face token']
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
import yaml
from datasets import Features
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from builders.licenses import LICENCES

from ..files import read_json, sha256
from ..row_groups import stream_file
from .folder import MANIFEST, SIZE_CATEGORIES, list_files
from .secrets import SECRETS, Secret


MAX_ROW_GROUP_BYTES = 100 * 2**20
MAX_ROW_BYTES = 2 * 10**6
REQUIRED_KEYS = ("license", "pretty_name", "size_categories", "tags", "configs", "dataset_info", "extra_gated_prompt")
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")


def folder_faults(folder: Path, token: str | None = None) -> list[str]:
    """Return all faults of a release folder; an empty list is a pass.

    Args:
        folder (`Path`): The release folder.
        token (`str`, *optional*): The token in use, which no file may contain, whatever its form.
    """
    readme = folder / "README.md"
    if not readme.is_file():
        return ["README.md: missing"]
    faults, data = _card_faults(readme.read_text(encoding="utf-8"))
    faults += _file_faults(folder)
    faults += secret_faults(folder, token)
    # The data are compared with the card only if the card can be parsed and every file is intact.
    if data is not None and not faults:
        faults += _data_faults(folder, data)
    return faults


# ------------------------------------------------------------------------------------------------------------ the card


class _StrictLoader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys: by default the second silently wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        duplicates = sorted({str(key) for key in keys if keys.count(key) > 1})
        if duplicates:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: duplicate key {', '.join(duplicates)}")
        return super().construct_mapping(node, deep=deep)


def _card_faults(text: str) -> tuple[list[str], dict[str, Any] | None]:
    """Faults of the card, and its YAML, which is `None` if it cannot be parsed."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        return ["README.md: no YAML header between two lines of ---"], None
    try:
        data = yaml.load(match[1], _StrictLoader)
    except yaml.YAMLError as error:
        return [f"README.md: {' '.join(str(error).split())}"], None
    if not isinstance(data, dict):
        return ["README.md: the YAML header is not a mapping"], None
    faults = [f"README.md: {key} is missing" for key in REQUIRED_KEYS if not data.get(key)]
    faults += [f'README.md: unknown licence "{name}"' for name in _list(data.get("license")) if name not in LICENCES]
    sizes = _list(data.get("size_categories"))
    faults += [f'README.md: unknown size category "{size}"' for size in sizes if size not in SIZE_CATEGORIES]
    faults += (
        ["README.md: a section is not filled in: More Information Needed"] if "More Information Needed" in text else []
    )
    splits = re.findall(r"^ *- split: (.+)$", match[1], re.MULTILINE)
    faults += [
        f"README.md: {split!r} is not a valid split name" for split in splits if not SPLIT_NAME.fullmatch(split)
    ]
    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCardData(**data))
        configs.get_default_config_name()
    except (ValueError, TypeError, AttributeError) as error:
        return [*faults, f"README.md: configs: {' '.join(str(error).split())[:200]}"], None
    faults += [f"README.md: {config}: no split" for config, info in configs.items() if not info.get("data_files")]
    return faults, data


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


# ----------------------------------------------------------------------------------------------------------- the files


def _file_faults(folder: Path) -> list[str]:
    if not (folder / MANIFEST).is_file():
        return [f"{MANIFEST}: missing"]
    recorded, files = read_json(folder / MANIFEST)["files"], list_files(folder)
    faults = [f"{name}: not in {MANIFEST}" for name in files if name not in recorded]
    faults += [f"{name}: missing, though in {MANIFEST}" for name in recorded if name not in files]
    faults += [f"{name}: old clients would run a script in the root" for name in files if _is_script(name)]
    both = [name for name in files if name in recorded]
    return faults + [
        f"{name}: changed since it was written" for name in both if _is_changed(folder / name, recorded[name])
    ]


def _is_script(name: str) -> bool:
    return "/" not in name and name.endswith(".py")


def _is_changed(path: Path, recorded: dict) -> bool:
    return path.stat().st_size != recorded["bytes"] or sha256(path) != recorded["sha256"]


def secret_faults(folder: Path, token: str | None = None) -> list[str]:
    """Files that contain a credential, the token in use, or a path of this machine; the messages do not contain it."""
    forms = [*SECRETS, *_machine_forms()]
    forms += [Secret("the token in use", re.escape(token))] if token else []
    any_form = "|".join(f"(?:{form.pattern})" for form in forms)
    faults = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found = _forms_in(path, forms, any_form)
        faults += [f"{path.relative_to(folder)}: holds {form.name}" for form in forms if form in found]
    return faults


def _machine_forms() -> list[Secret]:
    """The places of this machine that tell who works on it; not such as `/root`, which texts of anyone may name."""
    places = {"the path of your home folder": Path.home(), "the path of your working directory": Path.cwd()}
    return [Secret(name, rf"{re.escape(str(path))}\b") for name, path in places.items() if len(path.parts) > 2]


def _forms_in(path: Path, forms: list[Secret], any_form: str) -> set[Secret]:
    """The forms of credentials in a file. `any_form` matches what at least one of them does."""
    # Parquet is compressed, so its bytes do not show the text.
    texts = _matching_texts(path, any_form) if path.suffix == ".parquet" else [_text_of(path)]
    found: set[Secret] = set()
    for text in texts:
        found.update(form for form in forms if form not in found and form.is_in(text))
    return found


def _text_of(path: Path) -> str:
    """The text of a file; of weights only the header, since numbers are no text."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else -1
        file.seek(0 if size < 0 else 8)
        return file.read(size).decode("utf-8", errors="replace")


def _matching_texts(path: Path, pattern: str) -> Iterator[str]:
    """The texts in a Parquet file that match a pattern. RE2 reads all columns; few are left to look at closely."""
    for table in stream_file(path):
        parts = [texts for column in table.columns for chunk in column.chunks for texts in _texts(chunk)]
        # Each call compiles the pattern, which takes as long as the texts of a hundred rows.
        texts = pyarrow.concat_arrays([part.cast(pyarrow.large_string()) for part in parts])
        yield from texts.filter(pyarrow.compute.match_substring_regex(texts, f"(?m:{pattern})")).to_pylist()


def _texts(array: pyarrow.Array) -> Iterator[pyarrow.Array]:
    """All string arrays of a column, at any depth of structs, lists and JSON."""
    if pyarrow.types.is_struct(array.type):
        for field in array.flatten():
            yield from _texts(field)
    elif pyarrow.types.is_list(array.type) or pyarrow.types.is_large_list(array.type):
        yield from _texts(array.flatten())
    elif isinstance(array.type, pyarrow.JsonType):
        # JSON text may write any letter of a path or a token as an escape.
        yield pyarrow.array(
            [text for each in array.to_pylist() for text in _strings(json.loads(each))], pyarrow.string()
        )
    elif pyarrow.types.is_string(array.type) or pyarrow.types.is_large_string(array.type):
        yield array


def _strings(value: Any) -> Iterator[str]:
    """All strings of a JSON value, the keys of objects among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(item)


# ------------------------------------------------------------------------------------------------------------ the data


def _data_faults(folder: Path, data: dict[str, Any]) -> list[str]:
    """Disagreements between card, manifest and Parquet files, and rows that the viewer cannot show."""
    manifest = read_json(folder / MANIFEST)
    # The configuration `default` has no name there if it is the only one.
    infos = {info.get("config_name", "default"): info for info in _list(data["dataset_info"])}
    faults = []
    for config in data["configs"]:
        name = config["config_name"]
        if name not in infos:
            faults.append(f"README.md: no dataset_info of {name}")
            continue
        features = Features._from_yaml_list(infos[name]["features"])
        rows = {split["name"]: split["num_examples"] for split in infos[name]["splits"]}
        for entry in config["data_files"]:
            split, files = entry["split"], _list(entry["path"])
            missing = [file for file in files if not (folder / file).is_file()]
            faults += [f"README.md: {name}: {file} does not exist" for file in missing]
            parquets = {file: pyarrow.parquet.ParquetFile(folder / file) for file in files if file not in missing}
            for file, parquet in parquets.items():
                faults += [f"{file}: {fault}" for fault in _parquet_faults(parquet, features)]
            num_rows = sum(parquet.metadata.num_rows for parquet in parquets.values())
            if num_rows != rows.get(split):
                faults.append(f"README.md: {name}: {split} has {num_rows} rows, the card says {rows.get(split)}")
    for name, splits in manifest["configs"].items():
        long = [split for split, record in splits.items() if record["max_row_bytes"] > MAX_ROW_BYTES]
        faults += [f"{name}/{split}: a row is longer than 2 MB; the viewer cannot show it" for split in long]
    return faults


def _parquet_faults(parquet: pyarrow.parquet.ParquetFile, features: Features) -> Iterator[str]:
    if parquet.schema_arrow != features.arrow_schema:
        yield "its features differ from those of the card"
    groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
    if any(group.total_byte_size > MAX_ROW_GROUP_BYTES for group in groups):
        yield "a row group is larger than 100 MB; the viewer cannot page through it"
    if not all(group.column(0).has_offset_index for group in groups):
        yield "no page index"
