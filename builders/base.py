"""What all sources share: one row type, counted drops, and a cache that knows the code and the inputs."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import datasets
import pyarrow.compute as pc

from .download import Download, fetch, revision_of
from .trace import TRACE_FEATURES, Dropped


DROPPED_FILE = "dropped.jsonl"

_logger = datasets.logging.get_logger(__name__)


@dataclass
class TraceConfig(datasets.BuilderConfig):
    """Configuration of a [`TraceBuilder`]; a source's own configuration inherits from it.

    Args:
        inputs (`tuple[str, ...]`, *optional*): The files that are read, as [`TraceBuilder.find_inputs`] found them.
        source_revision (`str`, *optional*): What the inputs are: the commit at which they were published, the
            packages that hold them (`some-package 1.2.3`), `local:` and a hash of the files, or, where all rows are
            written by this package, `code:` and a hash of it.
    """

    inputs: tuple[str, ...] = ()
    source_revision: str | None = None


@dataclass
class ShardCounts:
    """How often each verdict was given and each reason of a drop, in one shard of a stream."""

    verdicts: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)


class TraceBuilder(datasets.GeneratorBasedBuilder):
    """A source of traces.

    A subclass states where its records come from (`INPUTS`, `LICENSE`, `REDISTRIBUTABLE`, `CITATION`), implements
    `_split_generators`, and yields a trace or a [`Dropped`] for every record from `_generate_traces`.
    """

    BUILDER_CONFIG_CLASS = TraceConfig
    # Glob patterns below `data_dir`: for each kind of file that must be there, the names it may have, best first.
    INPUTS: tuple[tuple[str, ...], ...] = ()
    # Installed packages, by their name on PyPI, that rows depend on besides the inputs; they need not be there.
    PACKAGES: tuple[str, ...] = ()
    # Where the inputs are fetched from when no local copy is named.
    DOWNLOADS: tuple[Download, ...] = ()
    # Without `DOWNLOADS`: a sentence that says how to get a local copy.
    HOW_TO_GET: str = ""
    # Configurations that the source has and that are not built: patterns of names, and why.
    REFUSED_CONFIGS: dict[str, str] = {}
    # As the Hub names it (`builders/licences.py`), and whether rows may be passed on to a private repository under it.
    LICENSE: str
    REDISTRIBUTABLE: bool
    # The work to cite for the source, in a line.
    CITATION: str | None = None
    _generate_traces: Callable[..., Iterator[dict | Dropped]]
    # The shards of a stream that were read to their end, by a hash of what each was generated from; a builder that
    # streams does not build.
    _streamed: dict[int, ShardCounts] | None = None

    @classmethod
    def find_inputs(cls, data_dir: Path) -> list[Path]:
        """The files that the source reads below `data_dir`, sorted.

        Raises:
            FileNotFoundError: If `data_dir` is missing or a kind of file of `INPUTS` is not below it.
        """
        if not data_dir.is_dir():
            raise FileNotFoundError(f"{cls.__name__} reads the files of a folder, and {data_dir} is none.")
        files: set[Path] = set()
        for patterns in cls.INPUTS:
            found = [[path for path in data_dir.glob(pattern) if path.is_file()] for pattern in patterns]
            matches = next(filter(None, found), None)  # never two layouts of the same records at once
            if matches is None:
                expected = " or ".join(patterns)
                raise FileNotFoundError(f"{cls.__name__} expects {expected} in {data_dir}, and nothing there matches.")
            files.update(matches)
        return sorted(files)

    @classmethod
    def default_data_dir(cls) -> Path:
        """The folder to read when no local copy is named: `DOWNLOADS`, fetched into the cache.

        Raises:
            FileNotFoundError: If the source cannot be had without one.
            ValueError: If a file is not what it must hash to.
        """
        if not cls.DOWNLOADS:
            raise FileNotFoundError(f"{cls.__name__} reads local files: pass data_dir. {cls.HOW_TO_GET}".rstrip())
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "downloads" / cls.__name__ / revision_of(cls.DOWNLOADS)
        fetch(cls.DOWNLOADS, folder)
        return folder

    @classmethod
    def published_revision(cls) -> str | None:
        """What is read when no local copy is named: the commit of `DOWNLOADS`, else the versions of `PACKAGES`."""
        if cls.DOWNLOADS:
            return revision_of(cls.DOWNLOADS)
        versions = {name: _version(name) for name in cls.PACKAGES}
        return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None

    def as_streaming_dataset(
        self, split: str | None = None, base_path: str | None = None
    ) -> datasets.IterableDatasetDict | datasets.IterableDataset:
        """Traces while the files are read; nothing is kept.

        When all of it has been read in one process, drops are logged and `check_verdicts` is called.
        """
        streams = super().as_streaming_dataset(split, base_path)
        parts = streams.values() if isinstance(streams, dict) else [streams]
        self._num_shards = sum(part.num_shards for part in parts)
        self._streamed = {}
        return streams

    @property
    def licence(self) -> str:
        """What the rows are under, where the configuration has no other."""
        return self.LICENSE

    @property
    def redistributable(self) -> bool:
        """Whether the rows may be passed on."""
        return self.REDISTRIBUTABLE

    @property
    def inputs(self) -> list[Path]:
        """The files to read."""
        return [Path(path) for path in self.config.inputs]

    def check_verdicts(self, verdicts: Counter[str]) -> None:
        """Raise a `ValueError` if the verdicts of all traces, taken together, cannot be right."""

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=TRACE_FEATURES, license=self.licence)

    def _download_and_prepare(self, *args, **kwargs) -> None:
        # A build that was killed leaves its folder, and the next one goes on in it: its drops must not count twice.
        (Path(self._output_dir) / DROPPED_FILE).unlink(missing_ok=True)
        super()._download_and_prepare(*args, **kwargs)

    def _generate_examples(self, **gen_kwargs) -> Iterator[tuple[str, dict]]:
        return self._build(gen_kwargs) if self._streamed is None else self._stream(gen_kwargs, self._streamed)

    def _build(self, gen_kwargs: dict) -> Iterator[tuple[str, dict]]:
        # `_output_dir` is the directory that `datasets` renames into the cache when the build has succeeded, so the
        # drops are cached with the rows they belong to. Appending line by line keeps several processes apart.
        with open(Path(self._output_dir) / DROPPED_FILE, "a", buffering=1, encoding="utf-8") as dropped_file:
            for item in self._generate_traces(**gen_kwargs):
                if isinstance(item, Dropped):
                    dropped_file.write(json.dumps(vars(item)) + "\n")
                else:
                    yield item["id"], item

    def _stream(self, gen_kwargs: dict, finished: dict[int, ShardCounts]) -> Iterator[tuple[str, dict]]:
        # The library calls this once for each shard, in any order and as often as the stream is read.
        counts = ShardCounts()
        for item in self._generate_traces(**gen_kwargs):
            if isinstance(item, Dropped):
                counts.drops[item.reason] += 1
            else:
                counts.verdicts[item["verdict"]] += 1
                yield item["id"], item
        finished[hash(repr(gen_kwargs))] = counts
        if len(finished) == self._num_shards:
            self._end_stream(list(finished.values()))
            finished.clear()

    def _end_stream(self, shards: list[ShardCounts]) -> None:
        drops = sum((shard.drops for shard in shards), Counter[str]())
        if drops:
            _logger.warning(f"{self.dataset_name}: dropped {dict(sorted(drops.items()))}")
        self.check_verdicts(sum((shard.verdicts for shard in shards), Counter[str]()))

    def dropped(self) -> list[Dropped]:
        """The records that did not become traces, of all splits."""
        path = Path(self.cache_dir) / DROPPED_FILE
        dropped = [Dropped(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        return sorted(dropped, key=lambda drop: (drop.where, drop.reason))


def source_hash(inputs: list[Path], packages: tuple[str, ...] = ()) -> str:
    """Hash of everything a source's rows depend on: the code and the assets of this package, the versions of other
    packages, and the input files.

    `datasets` itself would serve cached rows after an edit of any: it hashes no code, and inputs only by name.
    """
    package = Path(__file__).parent
    code = [*sorted(package.rglob("*.py")), *sorted(package.glob("assets/*.json"))]
    digest = hashlib.sha256(repr([(name, _version(name)) for name in packages]).encode())
    digest.update(content_hash([*code, *inputs]).encode())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def content_hash(paths: list[Path]) -> str:
    """Hash of files by name and content, without holding one in memory."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def verdicts_of(traces: datasets.DatasetDict) -> Counter[str]:
    """How often each verdict was given."""
    counts: Counter[str] = Counter()
    for split in traces.values():
        counted = pc.value_counts(split.data["verdict"]).to_pylist()
        counts.update({each["values"]: each["counts"] for each in counted})
    return counts


def report_of(traces: datasets.DatasetDict, dropped: list[Dropped]) -> dict:
    """`{records, attacked, verdicts, groups, drops}` of one source: every record is in one verdict or one drop."""
    verdicts = verdicts_of(traces)
    return {
        "records": sum(verdicts.values()) + sum(drop.is_record for drop in dropped),
        "attacked": sum(len(split) - split.data["attack"].null_count for split in traces.values())
        + sum(drop.is_attacked for drop in dropped),
        "verdicts": dict(sorted(verdicts.items())),
        "groups": len({group for split in traces.values() for group in pc.unique(split.data["group"]).to_pylist()}),
        "drops": dict(sorted(Counter(drop.reason for drop in dropped).items())),
    }
