"""Throughput of AgentDojo's dumps to traces, and whether memory stays flat as the input grows.

    python benchmarks/ingest_agentdojo.py --data raw/agentdojo --json ingest.json

The dumps are copied 1, 10 and 100 times under the names of further pipelines. Each size is built in its own process
with two workers, alternating with `load_dataset("json")`, which computes no verdicts, and with `json.loads` alone on
the same files; the fastest of three rounds counts. Times exclude the start of Python and imports. Peak memory is the
main process's plus twice the larger worker's, so memory that they share is counted more than once.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
WORKERS = 2
SIZES = (1, 10, 100)
TURNS = 3


class Measured(NamedTuple):
    """One job: rows made, seconds taken, seconds of all processors together, peak memory in MiB."""

    rows: int
    seconds: float
    processor_seconds: float
    memory: float

    @property
    def speed(self) -> float:
        return self.rows / self.seconds


# ---------------------------------------------------------------------------------------------------------------------
# In a process of its own


def build_traces(folder: Path, cache: Path) -> int:
    """Build the traces as a user does; the number of traces."""
    from builders import prepare_source

    return prepare_source(
        "agentdojo", data_dir=folder, num_proc=WORKERS, cache_dir=cache
    ).info.splits.total_num_examples


def load_as_json(folder: Path, cache: Path) -> int:
    """Load the lines as they are with the library's own reader; the number of lines."""
    from datasets import load_dataset

    files = [str(path) for path in sorted(folder.glob("dumps/*.jsonl"))]
    return load_dataset("json", data_files=files, split="train", num_proc=WORKERS, cache_dir=str(cache)).num_rows


def parse(folder: Path, cache: Path) -> int:
    """Parse every line and keep nothing; the number of lines."""
    lines = 0
    for path in sorted(folder.glob("dumps/*.jsonl")):
        with open(path, "rb") as file:
            for line in file:
                json.loads(line)
                lines += 1
    return lines


JOBS: dict[str, Callable[[Path, Path], int]] = {job.__name__: job for job in (build_traces, load_as_json, parse)}


def run_job(name: str, folder: Path) -> Measured:
    """Run one job in this process."""
    import datasets

    import builders  # noqa: F401  (a part of starting up)

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        start, start_of_processors = time.perf_counter(), _processor_seconds()
        rows = JOBS[name](folder, Path(cache))
        seconds, processor_seconds = time.perf_counter() - start, _processor_seconds() - start_of_processors
    main, workers = (resource.getrusage(who).ru_maxrss for who in _PROCESSES)
    return Measured(rows, seconds, processor_seconds, (main + WORKERS * workers) / 1024)


_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _processor_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _PROCESSES))


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def repeat(data: Path, times: int, folder: Path) -> Path:
    """A folder with every dump `times` times, each time as another pipeline's, and links to the reference files."""
    (folder / "dumps").mkdir(parents=True)
    (folder / "reference").symlink_to((data / "reference").resolve())
    for path in sorted(data.glob("dumps/agentdojo-*.jsonl")):
        content = path.read_bytes()
        for number in range(times):
            (folder / "dumps" / f"{path.stem}-{number}.jsonl").write_bytes(content)
    return folder


def measure(name: str, folder: Path) -> Measured:
    """Run one job in a process of its own."""
    command = [sys.executable, __file__, "--job", name, "--data", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True)
    return Measured(*json.loads(done.stdout))


def compare(data: Path) -> dict[str, dict[str, float]]:
    """All figures by the name of their row; prints them as they come."""
    print(f"{'':16}{'input':>8}{'rows':>10}{'seconds':>10}{'CPU s':>10}{'rows/s':>10}{'peak MiB':>10}")
    small, middle, large = SIZES
    with tempfile.TemporaryDirectory() as temporary:
        at_once = show("build_traces", small, repeat(data, small, Path(temporary) / "small"))
        folder = repeat(data, middle, Path(temporary) / "middle")
        turns = [{name: show(name, middle, folder) for name in JOBS} for _ in range(TURNS)]
        at_length = show("build_traces", large, repeat(data, large, Path(temporary) / "large"))
    best = {name: max((turn[name] for turn in turns), key=lambda measured: measured.speed) for name in JOBS}
    ours = best["build_traces"].speed
    return {
        'traces per second, against load_dataset("json")': row(ours, best["load_as_json"].speed),
        "traces per second, against json.loads alone": row(ours, best["parse"].speed),
        f"traces per second, input x {large} against x {middle}": row(at_length.speed, ours),
        f"peak MiB, input x {middle} against x {small}": row(best["build_traces"].memory, at_once.memory),
        f"peak MiB, input x {large} against x {small}": row(at_length.memory, at_once.memory),
    }


def show(name: str, times: int, folder: Path) -> Measured:
    """Measure a job and print the line for it."""
    measured = measure(name, folder)
    size, figures = f"x {times}", (measured.seconds, measured.processor_seconds)
    texts = (
        f"{measured.rows:,}",
        *(f"{each:.2f}" for each in figures),
        f"{measured.speed:,.0f}",
        f"{measured.memory:,.0f}",
    )
    print(f"{name:16}{size:>8}" + "".join(f"{text:>10}" for text in texts), flush=True)
    return measured


def row(ours: float, theirs: float) -> dict[str, float]:
    return {"ratio": ours / theirs, "ours": ours, "theirs": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "raw" / "agentdojo", help="folder with dumps/ and reference/"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_job(options.job, options.data)))
        return
    rows = compare(options.data)
    print()
    for name, figures in rows.items():
        print(f"{name:52}{figures['ratio']:>8.2f}   {figures['ours']:,.0f} : {figures['theirs']:,.0f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
