"""Faults of a disk, in one line that a user can act on, whatever library raised them."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# Faults of a disk, and the texts by which libraries that raise errors of their own tell of them.
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FAULTS = (*DISK_IS_FULL, errno.EROFS, errno.EIO)
_DISK_TEXTS = re.compile(
    "|".join(rf"{re.escape(os.strerror(code))}|\bos error {code}\b" for code in _DISK_FAULTS)
    + "|Not enough disk space"  # of `datasets`
)
# `torch.save` says nothing else of a file that it cannot write.
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container")


def error_line(error: Exception) -> str | None:
    """The message of an error that a user can act on; `None` for one that is a fault of this program."""
    if isinstance(error, OSError):
        return disk_fault(error) or str(error)
    return str(error) if isinstance(error, ValueError) else disk_fault(error)


def disk_fault(error: BaseException) -> str | None:
    """One line on a full, read-only or broken disk, if that is what an error comes from; else `None`.

    Libraries wrap the system's error, in a cause or in a text: `datasets`, safetensors, `torch.save`.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK_FAULTS:
            reason = os.strerror(seen.errno)
            place = f" ({seen.filename})" if seen.filename else ""
            return f"{reason}{place}. Free space, or write elsewhere, and run the same command again."
        if _DISK_TEXTS.search(str(seen)) or _TORCH_WRITER.search(str(seen)):
            reason = " ".join(str(seen).split())[:200]
            return f"{reason}. Free space, or write elsewhere, and run the same command again."
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def naming_broken_parquet(path: Path) -> Iterator[None]:
    """Name the file in an error about Parquet that is not whole or lacks a column: the library leaves that out."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, pyarrow.ArrowTypeError) as error:
        raise ValueError(f"{path}: not a whole Parquet file ({error}). Run the step that makes it again.") from error


def rows_in(path: Path) -> int:
    """Number of rows of a Parquet file, from its metadata."""
    import pyarrow.parquet

    with naming_broken_parquet(path):
        return pyarrow.parquet.read_metadata(path).num_rows


@contextmanager
def as_written(path: Path, remedy: str) -> Iterator[None]:
    """Name the file in an error about a JSON object that is not of the shape in which it was written.

    Args:
        path (`Path`): The file that the object was read from.
        remedy (`str`): What to do about it.

    Raises:
        ValueError: In place of the errors of code that finds another value, or none, where it expects one.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, LookupError) as error:
        raise ValueError(
            f"{path}: not as this version writes it ({type(error).__name__}: {error}). {remedy}"
        ) from error
