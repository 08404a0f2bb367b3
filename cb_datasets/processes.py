"""Work on batches of rows in several processes, with the results of one: the same order, the same first error.

    batches  1  2  3  4  5          results  1  2  3  4  5
    process  a  b  a  b  a                   in this order, whichever is finished first

The processes are forked, so that they share what is loaded: a tokenizer is not loaded again in each.
"""

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import pyarrow


Item = TypeVar("Item")
Result = TypeVar("Result")

# Rows in a batch: a process takes some hundredths of a second for one, and has the next at hand.
BATCH_ROWS = 250

# What this process does with each batch, if another one started it for that.
_work: list[Callable[[Any], Any]] = []


def processes_for(items: int, num_proc: int | None = None) -> int:
    """Number of processes for some items: as wanted, by default one for each core, but at most one for each item."""
    # Where processes are not forked by nature (macOS, Windows), one does it all unless more are wanted.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, min(num_proc or cores, items))


def batches_of(rows: int) -> int:
    """Number of batches of [`BATCH_ROWS`] that some rows make."""
    return -(-rows // BATCH_ROWS)


def in_batches(rows: Iterable[Item]) -> Iterator[list[Item]]:
    """Rows in lists of [`BATCH_ROWS`]."""
    batch: list[Item] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def slices_of(table: pyarrow.Table) -> Iterator[pyarrow.Table]:
    """A table in tables of [`BATCH_ROWS`], to convert few rows at a time. Not to be sent: a slice is sent whole."""
    for start in range(0, len(table), BATCH_ROWS):
        yield table.slice(start, BATCH_ROWS)


def map_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in order. A few items are read ahead.

    Args:
        work (`Callable`): What to do with an item. It is inherited by the processes and may be a closure; items and
            results are sent.
        items (`Iterable`): The items.
        processes (`int`): Number of processes; with 1 everything happens in this one.

    Raises:
        ChildProcessError: If a process was killed.
    """
    if processes == 1:
        gc.freeze()  # as in `_start`: what was there before is no garbage of the work
        try:
            yield from ((item, work(item)) for item in items)
        finally:
            gc.unfreeze()
        return
    pool = ProcessPoolExecutor(processes, get_context("fork"), _start, (work,))
    try:
        for item, future in _submitted(pool, items, 2 * processes):
            yield item, future.result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "A process was killed, perhaps because memory ran out: pass --num-proc 1, or a smaller number than now."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def map_rows(work: Callable[[Item], Result], rows: Iterable[Item], processes: int) -> Iterator[tuple[Item, Result]]:
    """Each row with its result, in order. Rows are sent in batches; see [`map_in_order`] for the rest."""

    def work_on(batch: list[Item]) -> list[Result]:
        return [work(row) for row in batch]

    for batch, results in map_in_order(work_on, in_batches(rows), processes):
        yield from zip(batch, results, strict=True)


def _submitted(pool: ProcessPoolExecutor, items: Iterable[Item], ahead: int) -> Iterator[tuple[Item, Future]]:
    """Each item with the future of its result, `ahead` items at a time."""
    pending: deque[tuple[Item, Future]] = deque()
    items, fault, left = iter(items), None, True
    while left or pending:
        while left and len(pending) < ahead:
            try:
                item = next(items)
            except StopIteration:
                left = False
            except Exception as error:  # comes after errors of the items before it
                left, fault = False, error
            else:
                pending.append((item, pool.submit(_run, item)))
        if pending:
            yield pending.popleft()
    if fault is not None:
        raise fault


def _start(work: Callable[[Any], Any]) -> None:
    """Prepare a process: it ends when the one that started it does, and leaves Ctrl-C, which all get, to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    gc.freeze()  # what is inherited is no garbage, and is not looked through again and again
    _work[:] = [work]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(item: Any) -> Any:
    return _work[0](item)
