"""Several processes give what one gives, errors included."""

import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest

from cb_datasets import processes
from cb_datasets.files import load_parquet, read_json
from cb_datasets.merge.dropped_rows import DROPPED_ROWS_FILE
from cb_datasets.processes import batches_of, in_batches, map_in_order, processes_for, slices_of

from .release_data import SETS, run


TINY_AGENT = Path(__file__).parents[2] / "demo" / "tiny_agent"


def test_results_come_in_order():
    offset = 100
    for number in (1, 2, 3):
        results = list(map_in_order(lambda item: (item + offset, os.getpid()), range(20), number))
        assert [(item, value) for item, (value, _) in results] == [(item, item + offset) for item in range(20)]
        assert (os.getpid() in {process for _, (_, process) in results}) == (number == 1)


def test_the_garbage_collector_is_as_before_also_after_an_error():
    before = gc.get_freeze_count()
    assert [result > before for _, result in map_in_order(lambda item: gc.get_freeze_count(), [1], 1)] == [True]
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda item: 1 // item, [0], 1))
    assert gc.get_freeze_count() == before == 0


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_error_is_raised_after_the_results_before_it(number: int):
    """Also if a later item, which was read ahead, cannot be read."""

    def items() -> Iterator[int]:
        yield from (1, 2, 0, 4)
        raise OSError("the disk is gone")

    def work(item: int) -> int:
        if not item:
            raise ValueError("row 2 is 0")
        return item

    results = []
    with pytest.raises(ValueError, match=r"^row 2 is 0$"):
        results += map_in_order(work, items(), number)
    results = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item, result in map_in_order(lambda item: item, items(), number):
            results.append((item, result))
    assert results == [(item, item) for item in (1, 2, 0, 4)]


def test_a_killed_process_is_an_error_with_a_remedy():
    with pytest.raises(ChildProcessError, match="pass --num-proc 1"):
        list(map_in_order(lambda item: os.kill(os.getpid(), signal.SIGKILL), range(4), 2))


def test_slices_are_the_table():
    table = pyarrow.table({"number": range(2 * processes.BATCH_ROWS + 1)})
    parts = list(slices_of(table))
    assert [len(part) for part in parts] == [processes.BATCH_ROWS] * 2 + [1]
    assert pyarrow.concat_tables(parts) == table


def test_small_work_stays_in_this_process():
    assert processes_for(0) == processes_for(batches_of(processes.BATCH_ROWS)) == 1
    assert processes_for(batches_of(9 * processes.BATCH_ROWS + 1), 20) == 10 and processes_for(10, 3) == 3
    assert [len(batch) for batch in in_batches(range(2 * processes.BATCH_ROWS + 1))] == [processes.BATCH_ROWS] * 2 + [
        1
    ]


def test_commands_report_the_same(release_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "BATCH_ROWS", 4)
    monkeypatch.setattr("cb_datasets.merge.write.STREAM_ROWS", 4)  # rows of a row group
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    made = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        number_flag, sets = ("--num-proc", number), [release_data / name for name in SETS]
        quarantine = ("--quarantine", folder / "quarantine")
        run("validate", *sets, *quarantine, "--report", folder / "validation.json", *number_flag)
        files = (*quarantine, "--output", folder / "stage2", "--prompts", release_data / "prompts")
        run("merge", *sets, *files, "--min-adversarial-safe", 1, "--model", TINY_AGENT, *number_flag)
        run("preflight", "--train-data", folder / "stage2", "--model", TINY_AGENT, *number_flag)
        names = ("validation", "reports/stats", "reports/preflight")
        reports = [read_json(folder / f"{name}.json") for name in names]
        made.append((json.dumps(reports), load_parquet(folder / "reports" / DROPPED_ROWS_FILE).to_list()))
    assert made[0] == made[1]
