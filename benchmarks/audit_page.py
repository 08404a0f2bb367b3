"""Time of a search on the audit page, compared with reading every row, and of pages with and without a search.

    python benchmarks/audit_page.py --rows 1000000 --json audit_page.json

The rows are those of `checks.py`, saved as sets. Times are processor time in milliseconds, summed over all threads;
each is the median of three. A search alternates with `pyarrow.compute.match_substring` over the same Parquet files,
which is a search without an index; a page alternates with the same page of a tenth of the rows.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import pyarrow.compute as pc
from checks import row, write_samples

from cb_datasets.audit.marks import Marks
from cb_datasets.audit.row_store import RowStore
from cb_datasets.audit.view import AuditServer
from cb_datasets.row_groups import stream_file


# Words, parts of words, across words, common and rare, a single letter, and what is nowhere.
SEARCHES = ("search_web", "arch_we", '{"name": "search_web"', "that is so, ", "<|eom_id|>", "a", "zzqqx")
PAGES = ({}, {"class": "refusal"}, {"q": "search_web", "class": "harmful_flip"})
TURNS = 3


def in_turn(ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of processor time of two jobs that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for job, taken in zip((ours, theirs), times, strict=True):
            before = time.process_time()
            job()
            taken.append(1000 * (time.process_time() - before))
    return row(*map(statistics.median, times))


def read_every_row(files: list[Path], text: str) -> int:
    """Number of texts that contain a text, ignoring case."""
    found = 0
    for file in files:
        for table in stream_file(file, ["id", "assistant_raw", "messages"]):
            said = pc.struct_field(pc.list_flatten(table["messages"]), "content")
            for column in (table["id"], table["assistant_raw"], said):
                found += pc.sum(pc.match_substring(column, text, ignore_case=True)).as_py() or 0
    return found


def served(folder: Path, rows: int) -> AuditServer:
    """The audit page of so many rows, its index built; says what that took."""
    # Without the prompts: what has them is taken for a data folder, of which the merged rows are shown.
    folder = folder / str(rows)
    if not folder.is_dir():
        write_samples(folder, rows)
        shutil.rmtree(folder / "prompts")
    before = time.process_time()
    store = RowStore(folder)
    opened = time.process_time() - before
    store.search.batches(seconds=3600)
    print(f"{len(store):,} rows opened in {opened:.1f} s of CPU, index built in {time.process_time() - before:.1f} s")
    return AuditServer(store, Marks(folder / "marks.parquet"))


def compare(folder: Path, rows: int) -> dict[str, dict[str, float]]:
    """All figures by the name of their row."""
    large, small = served(folder, rows), served(folder, rows // 10)
    search, files, figures = large.store.search, large.store.files, {}
    for text in SEARCHES:
        both = partial(search.rows_with, text), partial(read_every_row, files, text)
        figures[f"search {text!r}, ms, against reading every row"] = in_turn(*both)
    for query in PAGES:
        for what in ("rows", "counts"):
            both = (partial(getattr(server, what), query) for server in (large, small))
            figures[f"{what} of {query or 'all'}, ms, against a tenth of the rows"] = in_turn(*both)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to look at")
    parser.add_argument("--folder", type=Path, help="folder for the rows, which are kept there; else they are deleted")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        datasets.config.HF_DATASETS_CACHE = Path(temporary) / "cache"
        rows = compare(options.folder or Path(temporary), options.rows)
    print()
    for name, figures in rows.items():
        print(f"{name:84}{figures['ratio']:>8.3f}   {figures['ours']:>8,.1f} : {figures['theirs']:,.1f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
