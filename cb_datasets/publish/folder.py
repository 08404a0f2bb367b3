"""The release folder of a dataset, exactly as it will be on the Hub, written from a data folder.

    README.md                                   the card
    manifest.json                               hash of every file; number and hash of the rows of every split
    harmful/{train,test}-00000-of-00001.parquet Ds
    retain/{train,test}-00000-of-00001.parquet  Dr
    eval/<task>-00000-of-00001.parquet          evaluation prompts
    reports/, schemas/, class_balance.png       sources, rules, gates, merge statistics, preflight; the JSON Schema

The same data give the same bytes, so pushing them a second time changes nothing.

Rows are samples and prompts in the form of `released_rows.py`, which `datasets` and `transformers` read without this
package.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pyarrow
import pyarrow.compute
from datasets import Features

from ..export import json_schema
from ..files import (
    count_rows,
    parquet_writer,
    read_json,
    scratch_folder,
    sha256,
    stream_tables,
    write_json,
    write_text,
)
from ..public_name import model_label, public_name
from ..sample import PROMPT_FEATURES, READ_BY_SCHEMA, SAMPLE_FEATURES
from .released_rows import (
    RELEASED_PROMPT_FEATURES,
    RELEASED_SAMPLE_FEATURES,
    released_row,
    released_table,
    rows_of,
)


MANIFEST = "manifest.json"
# What a manifest says that its folder is: only a folder of the same kind is ever replaced.
DATASET_RELEASE, SOURCE_RELEASE, ADAPTER_RELEASE = (
    "release of a dataset",
    "release of a source",
    "release of an adapter",
)
PLOT = "class_balance.png"
REPORTS = ("sources", "validation_report", "quality_gates", "stats", "preflight")
SCHEMA = "canonical_sample_schema.json"
# Files in a repository that belong to a release: those that a new release does not have are deleted.
_OWNED = ("harmful/", "retain/", "eval/", "reports/", "schemas/", "data/")

# Splits of the merged dataset, and their names on the Hub.
SPLITS = {"train": "train", "eval": "test"}
SETS = {"harmful": "circuit_breaker", "retain": "retain"}

# Size categories of the Hub, with their exclusive upper bounds in rows.
SIZE_CATEGORIES = {
    "n<1K": 10**3,
    "1K<n<10K": 10**4,
    "10K<n<100K": 10**5,
    "100K<n<1M": 10**6,
    "1M<n<10M": 10**7,
    "10M<n<100M": 10**8,
}

# The Hub's viewer reads at most 300 MB for a page and wants row groups below 100 MB; loading is by file.
ROW_GROUP_BYTES = 64 * 2**20
SHARD_BYTES = 500 * 10**6
# Granularity in rows at which row groups are filled.
PIECE_ROWS = 100


class Writer(StrEnum):
    """Who wrote a completion."""

    TARGET = "target"
    OTHER = "another model"
    SOURCE = "source, no model"


@dataclass
class WrittenSplit:
    """Files and counts of one written split."""

    rows: int = 0
    num_bytes: int = 0  # in Arrow
    max_row_bytes: int = 0  # of a row's JSON text
    files: list[str] = field(default_factory=list)
    rows_sha256: str = ""
    counts: dict[str, Counter] = field(default_factory=dict)
    example: dict | None = None


class RowsHash:
    """Hash of rows in order, independent of file layout, library version and machine."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.longest = 0

    def update(self, row: dict) -> None:
        line = json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"
        self.longest = max(self.longest, len(line))
        self._digest.update(line)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def hash_rows(rows: Iterable[dict]) -> str:
    """The [`RowsHash`] of all rows."""
    digest = RowsHash()
    for row in rows:
        digest.update(row)
    return digest.hexdigest()


def write_release(data: Path, folder: Path) -> dict[str, dict[str, WrittenSplit]]:
    """Write everything except card and manifest.

    Args:
        data (`Path`): The data folder of a recipe, with `stage2/`, `prompts/`, `reports/` and `schemas/`.
        folder (`Path`): The release folder; it must be empty.

    Returns:
        `dict[str, dict[str, WrittenSplit]]`: The written splits by configuration.

    Raises:
        FileNotFoundError: If a step of the pipeline has not been run; it names the file.
        ValueError: If Ds or Dr has no training rows, or there are no evaluation prompts.
    """
    configs: dict[str, dict[str, WrittenSplit]] = {"harmful": {}, "retain": {}, "eval": {}}
    for config, name in SETS.items():
        for merged_split, split in SPLITS.items():
            tables = _tables_of_set(data / "stage2" / merged_split, name)
            written = write_split(tables, RELEASED_SAMPLE_FEATURES, folder, f"{config}/{split}", _count_row)
            if written.rows:
                configs[config][split] = written
        if "train" not in configs[config]:
            raise ValueError(f"{data / 'stage2' / 'train'}: no rows of {config}. A release needs Ds and Dr.")
    for prompts in sorted(path for path in (data / "prompts").glob("*") if path.is_dir()):
        if count_rows([prompts]):
            tables = (_released(table, RELEASED_PROMPT_FEATURES) for table in stream_tables(prompts, PROMPT_FEATURES))
            name = f"eval/{prompts.name}"
            configs["eval"][prompts.name] = write_split(tables, RELEASED_PROMPT_FEATURES, folder, name, _count_row)
    if not configs["eval"]:
        raise ValueError(f"{data / 'prompts'}: no evaluation prompts. Run `make prompts`.")
    _copy_reports(data, folder)
    return configs


def union(configs: dict[str, dict[str, WrittenSplit]]) -> dict[str, WrittenSplit]:
    """The splits of the configuration `train`: Ds and Dr together, from the same files."""
    sets = [configs["harmful"], configs["retain"]]
    return {
        split: WrittenSplit(
            rows=sum(splits[split].rows for splits in sets if split in splits),
            num_bytes=sum(splits[split].num_bytes for splits in sets if split in splits),
            files=[file for splits in sets if split in splits for file in splits[split].files],
        )
        for split in SPLITS.values()
        if any(split in splits for splits in sets)
    }


def write_manifest(folder: Path, configs: dict[str, dict[str, WrittenSplit]], kind: str) -> dict:
    """Write `manifest.json`, after all other files, and return it; it says what `kind` of folder this is."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in list_files(folder)
    }
    keys = ("rows", "max_row_bytes", "rows_sha256", "files")
    manifest = {
        "kind": kind,
        "configs": {
            config: {split: {key: getattr(written, key) for key in keys} for split, written in splits.items()}
            for config, splits in configs.items()
        },
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def is_dataset_file(path: str) -> bool:
    """Whether a file of a dataset repository belongs to a release, of a dataset or of a source."""
    return path.startswith(_OWNED)


def list_files(folder: Path) -> list[str]:
    """Paths of the files of a release, relative to its folder, without the manifest."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MANIFEST)


def check_replaceable(output: Path, kind: str, marker: str = MANIFEST) -> None:
    """Raise if [`replacing_folder`] would refuse a folder, for commands that work long before they write it.

    Raises:
        FileExistsError: If `output` is a file, or has files but no mark of this kind.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    # Whatever the user may have in a folder without it, it is not ours to delete.
    if output.exists() and _kind_of(output / marker) != kind:
        raise FileExistsError(
            f"{output} exists and is no {kind} (no {marker} says so), so it is not replaced: name another folder."
        )


def _kind_of(marker: Path) -> str | None:
    """The kind of folder that a file marks; `None` if it is missing, or somebody else's."""
    try:
        value = json.loads(marker.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value.get("kind") if isinstance(value, dict) else None


@contextmanager
def replacing_folder(output: Path, kind: str, marker: str = MANIFEST) -> Iterator[Path]:
    """An empty folder to fill, which replaces `output` at the end and is deleted if anything fails.

    Args:
        output (`Path`): The folder.
        kind (`str`): What the folder is, which its marker says under the key `kind`.
        marker (`str`, *optional*, defaults to `MANIFEST`): The JSON file by which such a folder is known.

    Raises:
        FileExistsError: If `output` exists and is none.
    """
    output = Path(os.path.realpath(output))  # a link stays, and the folder it names is replaced
    check_replaceable(output, kind, marker)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output.parent, output.name) as scratch:
        (scratch / "new").mkdir()
        yield scratch / "new"
        # Moved, not deleted: of a folder that is half deleted, nobody could tell any more that it was ours.
        if output.exists():
            output.rename(scratch / "old")
        (scratch / "new").rename(output)


def _tables_of_set(folder: Path, name: str) -> Iterator[pyarrow.Table]:
    for table in stream_tables(folder, SAMPLE_FEATURES):
        yield _released(table.filter(pyarrow.compute.equal(table["set"], name)), RELEASED_SAMPLE_FEATURES)


def _released(table: pyarrow.Table, features: Features) -> pyarrow.Table:
    rows = (row for batch in _without_paths(table).to_batches(PIECE_ROWS) for row in batch.to_pylist())
    return released_table(map(released_row, rows), features)


def _without_paths(table: pyarrow.Table) -> pyarrow.Table:
    """The rows with models named as for readers, and without paths of this machine in their provenance."""
    origins = table["provenance"].combine_chunks()
    columns = {field.name: origins.field(field.name) for field in origins.type}
    for name in ("generator_model", "generator_revision"):
        # Together for a model with an adapter: `/models/base+/runs/adapter`.
        parts = [None if value is None else value.split("+") for value in columns[name].to_pylist()]
        names = [None if each is None else "+".join(map(public_name, each)) for each in parts]
        columns[name] = pyarrow.array(names, pyarrow.string())
    models = zip(*(columns[name].to_pylist() for name in ("generator_model", "generator_revision")), strict=True)
    labels = [None if model is None else model_label(model, revision) for model, revision in models]
    columns["generator_model"] = pyarrow.array(labels, pyarrow.string())
    changed = pyarrow.StructArray.from_arrays(
        list(columns.values()), fields=list(origins.type), mask=origins.is_null()
    )
    return table.set_column(table.column_names.index("provenance"), table.schema.field("provenance"), changed)


def write_split(
    tables: Iterable[pyarrow.Table],
    features: Features,
    folder: Path,
    name: str,
    count: Callable[[WrittenSplit, dict], None] | None = None,
) -> WrittenSplit:
    """Write tables as shards `<name>-00000-of-0000N.parquet`; `count` counts what the card says of the rows."""
    written, digest, shard_bytes = WrittenSplit(), RowsHash(), 0
    # Shards are renamed at the end: their names contain the number of shards, which is not known before.
    shards: list[Path] = []
    with ExitStack() as open_shard:
        for group in _row_groups(tables):
            if not shards or shard_bytes > SHARD_BYTES:
                open_shard.close()
                shards.append(folder / f"{name}-{len(shards):05}.part")
                write, shard_bytes = open_shard.enter_context(parquet_writer(shards[-1], features)), 0
            write(group)
            shard_bytes += group.nbytes
            written.rows += len(group)
            written.num_bytes += group.nbytes
            for row in rows_of(group):
                digest.update(row)
                if count is not None:
                    count(written, row)
    for number, shard in enumerate(shards):
        written.files.append(f"{name}-{number:05}-of-{len(shards):05}.parquet")
        shard.rename(folder / written.files[-1])
    written.rows_sha256, written.max_row_bytes = digest.hexdigest(), digest.longest
    return written


def _row_groups(tables: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Regroup rows into tables of at most [`ROW_GROUP_BYTES`], unless [`PIECE_ROWS`] rows are larger than that."""
    pieces: list[pyarrow.Table] = []
    num_bytes = 0
    for table in tables:
        for start in range(0, len(table), PIECE_ROWS):
            piece = table.slice(start, PIECE_ROWS)
            if pieces and num_bytes + piece.nbytes > ROW_GROUP_BYTES:
                yield pyarrow.concat_tables(pieces)
                pieces, num_bytes = [], 0
            pieces.append(piece)
            num_bytes += piece.nbytes
    if pieces:
        yield pyarrow.concat_tables(pieces)


def _count_row(written: WrittenSplit, row: dict) -> None:
    """Count the properties of a row that the card reports."""
    provenance = row["provenance"]
    fitted = provenance["fitted"]
    values = {
        "source": provenance["source_dataset"],
        "class": row.get("priority_class"),
        "outcome": row.get("outcome"),
        "category": row["category"],
        "completion": provenance["completion_source"],
        "generator": _generator(provenance),
        "format": provenance["prompt_format"],
        "template": provenance["template_hash"],
        "date": provenance["date_string"],
        "fitted": "fitted" if fitted and not fitted.startswith(READ_BY_SCHEMA) else None,
        "read_by_schema": "read" if fitted and READ_BY_SCHEMA in fitted else None,
        "redacted": "redacted" if provenance["redacted"] else None,
    }
    for key, value in values.items():
        if value is not None:
            written.counts.setdefault(key, Counter())[value] += 1
    written.example = written.example or row


def _generator(provenance: dict) -> tuple | None:
    if provenance["generator_model"] is None:
        return None
    keys = ("generator_model", "generator_revision", "temperature", "top_p")
    return (*(provenance[key] for key in keys), _writer(provenance))


def _writer(provenance: dict) -> Writer:
    if provenance["completion_source"] != "recorded":
        return Writer.TARGET
    # A call that the source says is right is in its rows under the source's name.
    is_of_source = provenance["generator_model"] == provenance["source_dataset"]
    return Writer.SOURCE if is_of_source else Writer.OTHER


def _copy_reports(data: Path, folder: Path) -> None:
    for name in REPORTS:
        report = read_json(data / "reports" / f"{name}.json")
        if report.get("tokenizer"):
            report["tokenizer"] = public_name(report["tokenizer"])
        write_json(folder / "reports" / f"{name}.json", report)
    write_text(folder / "reports" / "sources.md", (data / "reports" / "sources.md").read_text(encoding="utf-8"))
    write_json(folder / "schemas" / SCHEMA, json_schema())
