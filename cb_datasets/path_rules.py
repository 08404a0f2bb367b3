"""Rules for the paths that a command reads and writes; each error names the flag.

    --prompts: there is no folder data/promts.
    --output: data/demo/prompts lies in data/demo, which --prompts reads. Name a place outside it.

Paths are compared as the disk has them, through links. A model's or adapter's folder may hold other folders, such as
the report on it, but no file is written beside its own.
"""

import os
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import NamedTuple


# The folders of a data folder that commands read. Reports, releases and completions are written beside them.
_DATA_PARTS = ("traces", "harmful", "retain", "ds", "dr", "prompts", "stage2/train", "stage2/eval")

# Endings of the files that commands write; a path without one is a folder's.
_FILE_SUFFIXES = (".json", ".jsonl", ".parquet")


class Role(StrEnum):
    """What a command does with a path."""

    READ = "reads"
    DATA = "reads from"  # the folders of a data folder
    RESULT = "reads the result"  # of another command, which may lie in the folder that is written to
    MODEL = "loads"
    WRITE = "writes"
    CACHE = "writes completions to"  # of all commands, under names of its own


class NamedPath(NamedTuple):
    """A path, the flag or argument that it was given as, and its role."""

    flag: str
    path: Path
    role: Role


def check_exists(flag: str, path: Path, kind: str) -> None:
    """Check that an input is there, and a file or a folder.

    Args:
        flag (`str`): The flag that names it.
        path (`Path`): The input.
        kind (`str`): `file`, `folder`, or `path` for either.

    Raises:
        FileNotFoundError: If it is not.
    """
    if not path.exists():
        what = "folder and no file" if kind == "path" else kind
        raise FileNotFoundError(f"{flag}: there is no {what} {path}.")
    if kind == "file" and path.is_dir():
        raise FileNotFoundError(f"{flag}: {path} is a folder. Name a file.")
    if kind == "folder" and not path.is_dir():
        raise FileNotFoundError(f"{flag}: {path} is a file. Name a folder.")


def check_writable(flag: str, path: Path, kind: str) -> None:
    """Check that an output can be made: it is not below a file, and what is there already is of the same kind.

    Args:
        flag (`str`): The flag that names it.
        path (`Path`): The output.
        kind (`str`): `file`, `folder`, or `path` for either.

    Raises:
        FileExistsError: If it cannot.
    """
    if file := next((parent for parent in path.parents if parent.is_file()), None):
        raise FileExistsError(f"{flag}: {path} cannot be made, because {file} is a file. Name another place.")
    if path.is_dir() and kind == "file":
        raise FileExistsError(f"{flag}: {path} is a folder. Name a file, or one that is not there yet.")
    if path.is_file() and kind == "folder":
        raise FileExistsError(f"{flag}: {path} is a file. Name a folder, or one that is not there yet.")


def check_all_apart(paths: Iterable[NamedPath]) -> None:
    """Check all pairs of paths, see [`check_apart`]."""
    for first, second in combinations(paths, 2):
        check_apart(first, second)


def check_apart(first: NamedPath, second: NamedPath) -> None:
    """Check that what a command writes is not what it reads, nor in it, nor around it.

    Raises:
        ValueError: If it is.
    """
    writes = (Role.WRITE, Role.CACHE)
    if (first.role in writes) == (second.role in writes):
        return
    output, source = (first, second) if first.role in writes else (second, first)
    written = _real(output.path)
    for read in _parts(source):
        if relation := _relation(written, read, output.role, source.role):
            raise ValueError(
                f"{output.flag}: {output.path} {relation} {source.path}, which {source.flag} {source.role}. Name "
                "another place."
            )


def _parts(source: NamedPath) -> Iterator[Path]:
    """The folder itself, or for a data folder those in it that are read."""
    folder = _real(source.path)
    parts = [folder / name for name in _DATA_PARTS]
    yield from parts if source.role == Role.DATA else [part for part in parts if part.is_dir()] or [folder]


def _relation(written: Path, read: Path, output: Role, source: Role) -> str | None:
    if written == read:
        return "is"
    if read in written.parents:
        beside = written.parent == read and written.suffix in _FILE_SUFFIXES
        return "lies in" if source != Role.MODEL or beside else None
    if written in read.parents:
        return "contains" if source != Role.RESULT and output != Role.CACHE else None
    return None


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
