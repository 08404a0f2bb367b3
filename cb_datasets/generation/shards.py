"""Finished shards on disk: whole or not there, of one configuration, whatever killed the process that made them.

    completions/3f9c21ab77e0d415/manifest.json                      the settings that this folder is the hash of
    completions/3f9c21ab77e0d415/shard-00000-of-00004.parquet       finished
    completions/3f9c21ab77e0d415/.shard-00001-of-00004.parquet.4711@node7.tmp       being written by process 4711

A name that says which process writes lets two tasks work on one shard without meeting: the last to finish wins. What a
dead process left behind is told from what a live one is writing by that name too.
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

    Opening it makes the folder, writes its manifest, and removes what dead processes left half-written.

    Args:
        work_dir (`Path`): Folder of such folders.
        settings (`dict`): Everything that decides the completions.
        prompt_ids (`list[str]`): Ids of all prompts, in order.
        size (`int`): Prompts in a shard.
        num_samples (`int`): Completions of each prompt.

    Raises:
        ValueError: If the manifest in the folder is of other settings.
    """

    def __init__(self, work_dir: Path, settings: dict, prompt_ids: list[str], size: int, num_samples: int) -> None:
        self.folder = work_dir / _name_of(settings)
        self.parts = [range(start, min(start + size, len(prompt_ids))) for start in range(0, len(prompt_ids), size)]
        self._settings = settings
        self._prompt_ids = prompt_ids
        self._num_samples = num_samples
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_manifest()
        remove_orphans(self.folder)
        self._write_manifest()

    def __len__(self) -> int:
        return len(self.parts)

    def path(self, index: int) -> Path:
        """File of a shard."""
        return self.folder / f"shard-{index:05d}-of-{len(self):05d}.parquet"

    def finished(self) -> int:
        """How many shards are there, whoever made them."""
        return sum(self.path(index).is_file() for index in range(len(self)))

    def has(self, index: int) -> bool:
        """Whether a shard is there and whole; one that is not whole is reported and deleted."""
        if not self.path(index).is_file():
            return False
        try:
            self.read(index)
        except ValueError as error:
            _logger.warning("%s It is made again.", error)
            self.path(index).unlink(missing_ok=True)
            return False
        return True

    def read(self, index: int) -> pyarrow.Table:
        """The rows of a finished shard.

        Raises:
            ValueError: If the file cannot be read, or is not this shard.
        """
        path = self.path(index)
        try:
            table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path} cannot be read ({error}).") from error
        if not self._is_whole(table, index):
            raise ValueError(f"{path} does not hold this shard's rows.")
        return table

    def save(self, index: int, rows: Dataset) -> None:
        """Put a shard in its place in one move, and count it in the manifest."""
        # The rows say themselves which run they are of, so that a file copied between folders is noticed.
        table = rows.with_format("arrow")[:].replace_schema_metadata({"run": self.folder.name})
        with in_one_move(self.path(index)) as temporary:
            pyarrow.parquet.write_table(table, temporary, write_page_checksum=True)
        self._write_manifest()

    def _is_whole(self, table: pyarrow.Table, index: int) -> bool:
        of_run = (table.schema.metadata or {}).get(b"run")
        if of_run != self.folder.name.encode() or not table.schema.equals(COMPLETION_FEATURES.arrow_schema):
            return False
        columns = (table[name].to_pylist() for name in ("prompt_id", "sample_index", "stop_reason"))
        found = list(zip(*columns, strict=True))
        unasked = {id for id, _, reason in found if reason == PROMPT_TOO_LONG}
        ids = [self._prompt_ids[at] for at in self.parts[index]]
        expected = [(id, k) for id in ids for k in range(1 if id in unasked else self._num_samples)]
        return [(id, k) for id, k, _ in found] == expected

    def _manifest(self) -> dict | None:
        path = self.folder / "manifest.json"
        return read_json(path) if path.is_file() else None

    def _check_manifest(self) -> None:
        manifest = self._manifest()
        if manifest is not None and _name_of(manifest.get("settings")) != self.folder.name:
            raise ValueError(
                f"{self.folder / 'manifest.json'} is not of this folder: it was changed, or copied from another one. "
                "Move the folder away and run the same command again."
            )

    def _write_manifest(self) -> None:
        """Parallel tasks each write what they see; the task that reads all the shards has the last word."""
        shards = {"finished": self.finished(), "total": len(self)}
        manifest = {"settings": self._settings, "prompts": len(self._prompt_ids), "shards": shards}
        if manifest == self._manifest():
            return
        write_json(self.folder / "manifest.json", manifest)


def _name_of(settings: object) -> str:
    return hashlib.sha256(to_json(settings).encode()).hexdigest()[:16]
