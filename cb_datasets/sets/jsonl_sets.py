"""Sets in JSON lines, for programs that read no Parquet: written where an output ends in `.jsonl`, read like folders.

    harmful/b4_flips/{train,eval}.parquet, report.json    the form that the pipeline works on
    harmful/b4_flips.jsonl, b4_flips.report.json          the same rows, valid against canonical_sample_schema.json

A file is read through a Parquet copy in a temporary folder, so every check streams it like any other set.
"""

import functools
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..export import export_jsonl, import_jsonl
from ..files import REPORT_FILE, count_rows, dataset_folders, dataset_name, read_json, stream_rows, write_json
from ..sample import SAMPLE_FEATURES
from ..terminal import print_line
from .fill_record import RecordFiller


SUFFIX = ".jsonl"

# The tree of an exported data folder: the folders of samples, and the place of each report.
_MERGED = "stage2"
_SAMPLE_FOLDERS = ("harmful", "retain", _MERGED)
_REPORTS = {
    "reports/validation_report.json": "stage2/validation_report.json",
    "reports/stats.json": "stage2/stats.json",
    "schemas/canonical_sample_schema.json": "schemas/canonical_sample_schema.json",
}

_numbers = itertools.count()


def is_jsonl(path: Path) -> bool:
    """Whether a path names a set in JSON lines."""
    return path.suffix == SUFFIX


def name_of(path: Path) -> str:
    """The name of a set by its folder or file."""
    return path.name.removesuffix(SUFFIX)


def save_jsonl(samples: Iterable[dict], path: Path, report: dict) -> None:
    """Write a set as JSON lines: the rows first, the report last."""
    export_jsonl(samples, path)
    write_json(path.with_suffix(f".{REPORT_FILE}"), report)


def as_folder(path: Path) -> Path:
    """The folder of a set: the path itself, or for JSON lines a copy that lives as long as this process.

    Raises:
        FileNotFoundError, ValueError: If there is no such file, or a line is no sample.
    """
    if not is_jsonl(path):
        return path
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    # Reports name the copy as they name the file.
    folder = Path(_copies().name, str(next(_numbers)), dataset_name(path))
    filler = RecordFiller(name_of(path))
    import_jsonl(path, folder, filler.fill)
    if notice := filler.notice(path):
        print_line(notice, file=sys.stderr)
    return folder


def reports_beside(path: Path) -> Path:
    """The folder of the reports on a merged dataset: `reports/` beside its folder, or where its file is."""
    return path.parent if is_jsonl(path) else path.parent / "reports"


def schemas_beside(path: Path) -> Path:
    """`schemas/` beside a merged dataset, which is a folder, a file, or a file in `stage2/`."""
    merged = path.parent if is_jsonl(path) and path.absolute().parent.name == _MERGED else path
    return merged.parent / "schemas"


def output_of_splits(output: Path, eval_output: Path | None) -> dict[str, Path]:
    """Folder or file of each split of a merged dataset, see `merge --output`."""
    if is_jsonl(output):
        return {"train": output, "eval": eval_output or output.with_name(f"eval{SUFFIX}")}
    return {"train": output / "train", "eval": eval_output or output / "eval"}


@contextmanager
def written_as_jsonl(outputs: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Folders to write splits to; at the end, what was written for a `.jsonl` file is moved there as JSON lines."""
    with tempfile.TemporaryDirectory(prefix="cb-datasets-") as scratch:
        folders = {split: Path(scratch, split) if is_jsonl(path) else path for split, path in outputs.items()}
        yield folders
        for split, folder in folders.items():
            if folder != outputs[split] and (folder / REPORT_FILE).is_file():
                save_jsonl(stream_rows([folder], SAMPLE_FEATURES), outputs[split], read_json(folder / REPORT_FILE))


def export_tree(data: Path, output: Path) -> dict[Path, int | None]:
    """Write the sets and the merged splits of a data folder as JSON lines, and their reports as in `_REPORTS`.

    Returns:
        `dict[Path, int | None]`: The files written, with the number of rows of those that hold samples.
    """
    written: dict[Path, int | None] = {}
    for folder in (folder for name in _SAMPLE_FOLDERS for folder in dataset_folders(data / name)):
        path = output / folder.parent.name / f"{folder.name}{SUFFIX}"
        export_jsonl(stream_rows([folder], SAMPLE_FEATURES), path)
        written[path] = count_rows([folder])
    for source, target in _REPORTS.items():
        if (data / source).is_file():
            write_json(output / target, read_json(data / source))
            written[output / target] = None
    return written


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cb-datasets-")
