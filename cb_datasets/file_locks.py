"""Locks between processes that write one file or folder.

    audit/.marks.parquet.lock      held while a mark is saved: another process waits, then adds to what it finds
    runs/.settings.json.lock       held while the benchmark runs: another process is refused

The lock is the system's (`flock`), so that it goes with its process, even by `kill -9`. The file is removed with it.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


# Some file systems of clusters have no locks. There, what is written is still whole, and the last to finish wins.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file against all other holders, in this process and others.

    Args:
        path (`Path`): The file, which need not exist.
        wait (`bool`, *optional*, defaults to `True`): Wait while another holds it.

    Raises:
        BlockingIOError: If another holds it, without `wait`; the message names the folder and the remedy.
    """
    path = Path(os.path.realpath(path))
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = _acquire(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"Another process is writing to {path.parent}: wait for it to end, or name another folder."
        ) from None
    try:
        yield
    finally:
        # Before it is released: a later file of this name is another lock.
        with suppress(OSError):
            lock.unlink()
        os.close(file)


def _acquire(lock: Path, operation: int) -> int:
    """An open file that has the lock."""
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, operation)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return file
            os.close(file)
            raise
        # The holder that this one waited for has removed the file: then it locks nothing any more.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                return file
        os.close(file)
