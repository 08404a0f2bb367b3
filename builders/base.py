"""What all sources share: one row type, counted drops, and a cache that knows the code and the inputs."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets

from .trace import TRACE_FEATURES, Dropped


DROPPED_FILE = "dropped.jsonl"


class TraceBuilder(datasets.GeneratorBasedBuilder):
    """A source of traces.

    A subclass states where its records come from (`INPUTS`, `LICENSE`, `REDISTRIBUTABLE`), implements
    `_split_generators`, and yields a trace or a [`Dropped`] for every record from `_generate_traces`.
    """

    # Glob patterns below `data_dir`: for each kind of file that must be there, the names it may have, best first.
    INPUTS: tuple[tuple[str, ...], ...] = ()
    LICENSE: str
    REDISTRIBUTABLE: bool
    _generate_traces: Callable[..., Iterator[dict | Dropped]]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=TRACE_FEATURES, license=self.LICENSE)

    def _generate_examples(self, **gen_kwargs) -> Iterator[tuple[str, dict]]:
        # `_output_dir` is the directory that `datasets` renames into the cache when the build has succeeded, so the
        # drops are cached with the rows they belong to. Appending line by line keeps several processes apart.
        with open(Path(self._output_dir) / DROPPED_FILE, "a", buffering=1, encoding="utf-8") as dropped_file:
            for item in self._generate_traces(**gen_kwargs):
                if isinstance(item, Dropped):
                    dropped_file.write(json.dumps(vars(item)) + "\n")
                else:
                    yield item["id"], item

    def dropped(self) -> list[Dropped]:
        """The records that did not become traces, of all splits."""
        path = Path(self.cache_dir) / DROPPED_FILE
        dropped = [Dropped(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        return sorted(dropped, key=lambda drop: (drop.where, drop.reason))


def find_inputs(builder: type[TraceBuilder], data_dir: Path | None) -> list[Path]:
    """The files a builder reads, sorted.

    Raises:
        FileNotFoundError: If `data_dir` is missing or a kind of file of `INPUTS` is not below it.
    """
    if not builder.INPUTS:
        return []
    if data_dir is None or not data_dir.is_dir():
        raise FileNotFoundError(f"{builder.__name__} reads local files: pass data_dir (got {data_dir}).")
    files: set[Path] = set()
    for patterns in builder.INPUTS:
        found = [[path for path in data_dir.glob(pattern) if path.is_file()] for pattern in patterns]
        matches = next(filter(None, found), None)  # never two layouts of the same records at once
        if matches is None:
            expected = " or ".join(patterns)
            raise FileNotFoundError(f"{builder.__name__} expects {expected} in {data_dir}, and nothing there matches.")
        files.update(matches)
    return sorted(files)


def source_hash(inputs: list[Path]) -> str:
    """Hash of everything a source's rows depend on: the code and the assets of this package, and the input files.

    `datasets` itself would serve cached rows after an edit of either: it hashes no code, and inputs only by name.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(package.glob("*.py")), *sorted(package.glob("assets/*.json")), *inputs]:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def report_of(traces: datasets.DatasetDict, dropped: list[Dropped]) -> dict:
    """`{records, attacked, verdicts, drops}` of one source: every record is in one verdict or one drop."""
    verdicts = Counter(verdict for split in traces.values() for verdict in split["verdict"])
    return {
        "records": sum(verdicts.values()) + sum(drop.is_record for drop in dropped),
        "attacked": sum(attack is not None for split in traces.values() for attack in split["attack"])
        + sum(drop.is_attacked for drop in dropped),
        "verdicts": dict(sorted(verdicts.items())),
        "drops": dict(sorted(Counter(drop.reason for drop in dropped).items())),
    }
