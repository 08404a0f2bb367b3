"""Finished shards on disk: each complete or absent, even after a crash, and all of the same settings.

    completions/3f9c21ab77e0d415/manifest.json                      the settings; their hash names the folder
    completions/3f9c21ab77e0d415/shard-00000-of-00004.parquet       finished
    completions/3f9c21ab77e0d415/.shard-00001-of-00004.parquet.4711@node7.tmp       being written by process 4711

Temporary names hold the process and its host. So two tasks can write the same shard without conflict (the last to
finish wins), and files left by a dead process are distinguished from those that a live one is writing.
"""

import hashlib
import logging
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset

from builders.trace import to_json

from ..files import in_one_move, read_json, remove_orphans, write_json
from .shard import COMPLETION_FEATURES, PROMPT_TOO_LONG


_logger = logging.getLogger(__name__)


class Shards:
    """The shards of one dataset of completions, in a folder named by the hash of its settings.

    The constructor creates the folder, writes its manifest, and removes temporary files of dead processes.

    Args:
        work_dir (`Path`): Parent of the folder.
        settings (`dict`): Everything the completions depend on.
        prompt_ids (`list[str]`): Ids of all prompts, in order.
        shard_size (`int`): Prompts per shard.
        num_samples (`int`): Completions per prompt.

    Raises:
        ValueError: If the manifest in the folder holds other settings.
    """

    def __init__(
        self, work_dir: Path, settings: dict, prompt_ids: list[str], shard_size: int, num_samples: int
    ) -> None:
        self.folder = work_dir / _settings_hash(settings)
        starts = range(0, len(prompt_ids), shard_size)
        self.prompt_ranges = [range(start, min(start + shard_size, len(prompt_ids))) for start in starts]
        self._settings = settings
        self._prompt_ids = prompt_ids
        self._num_samples = num_samples
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_manifest()
        remove_orphans(self.folder)
        self._write_manifest()

    def __len__(self) -> int:
        return len(self.prompt_ranges)

    def shard_path(self, index: int) -> Path:
        """Path of a shard's file, finished or not."""
        return self.folder / f"shard-{index:05d}-of-{len(self):05d}.parquet"

    def count_finished(self) -> int:
        """Number of finished shards, by this task or any other."""
        return sum(self.shard_path(index).is_file() for index in range(len(self)))

    def has_shard(self, index: int) -> bool:
        """Whether a shard is finished and valid. An invalid file is deleted, with a warning."""
        if not self.shard_path(index).is_file():
            return False
        try:
            self.read_shard(index)
        except ValueError as error:
            _logger.warning("%s The shard is regenerated.", error)
            self.shard_path(index).unlink(missing_ok=True)
            return False
        return True

    def read_shard(self, index: int) -> pyarrow.Table:
        """Rows of a finished shard.

        Raises:
            ValueError: If the file cannot be read, or does not hold this shard's rows.
        """
        path = self.shard_path(index)
        try:
            table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path} cannot be read ({error}).") from error
        if not self._is_valid(table, index):
            raise ValueError(f"{path} does not hold this shard's rows.")
        return table

    def save_shard(self, index: int, rows: Dataset) -> None:
        """Write a shard atomically, and update the manifest."""
        # The run's name is stored in the file, so that a shard copied from another folder is detected.
        table = rows.with_format("arrow")[:].replace_schema_metadata({"run": self.folder.name})
        with in_one_move(self.shard_path(index)) as temporary:
            pyarrow.parquet.write_table(table, temporary, write_page_checksum=True)
        self._write_manifest()

    def _is_valid(self, table: pyarrow.Table, index: int) -> bool:
        """Whether the rows are of this run and of exactly this shard's prompts and samples."""
        run = (table.schema.metadata or {}).get(b"run")
        if run != self.folder.name.encode() or not table.schema.equals(COMPLETION_FEATURES.arrow_schema):
            return False
        columns = (table[name].to_pylist() for name in ("prompt_id", "sample_index", "stop_reason"))
        rows = list(zip(*columns, strict=True))
        too_long = {id for id, _, stop_reason in rows if stop_reason == PROMPT_TOO_LONG}
        ids = [self._prompt_ids[position] for position in self.prompt_ranges[index]]
        # An overlong prompt has one row, whatever the number of samples.
        expected = [(id, k) for id in ids for k in range(1 if id in too_long else self._num_samples)]
        return [(id, k) for id, k, _ in rows] == expected

    def _manifest(self) -> dict | None:
        path = self.folder / "manifest.json"
        return read_json(path) if path.is_file() else None

    def _check_manifest(self) -> None:
        manifest = self._manifest()
        if manifest is not None and _settings_hash(manifest.get("settings")) != self.folder.name:
            raise ValueError(
                f"{self.folder / 'manifest.json'} does not match its folder: it was edited, or copied from another "
                "one. Move the folder away and rerun the same command."
            )

    def _write_manifest(self) -> None:
        """Write settings and counts. Parallel tasks overwrite each other's counts; the next run corrects them."""
        shards = {"finished": self.count_finished(), "total": len(self)}
        manifest = {"settings": self._settings, "prompts": len(self._prompt_ids), "shards": shards}
        if manifest == self._manifest():
            return
        write_json(self.folder / "manifest.json", manifest)


def _settings_hash(settings: object) -> str:
    return hashlib.sha256(to_json(settings).encode()).hexdigest()[:16]
