"""Finished parts of a measurement on disk, so that a killed run repeats the part that it was in and no other.

completions/ability/3f9c21ab77e0d415/text-00000-of-00003.parquet
completions/ability/3f9c21ab77e0d415/multiple_choice-breaker.json
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from builders.trace import to_json

from ...chat import RENDERER_HASH
from ...files import load_parquet, read_json, save_parquet, write_json
from ...sample import content_id


# Hash of the source that measures, read at import: what another version measured is not reused.
_CODE_HASH = hashlib.sha256(
    b"".join(
        path.read_bytes()
        for folder in (Path(__file__).parent, Path(__file__).parents[2] / "generation")
        for path in sorted(folder.glob("*.py"))
    )
).hexdigest()[:16]


class FinishedParts:
    """Parts in a folder that is named by the hash of everything they depend on.

    Args:
        work_dir (`Path`): Parent of the folder.
        settings (`dict`): What the parts depend on, beside the code.
    """

    def __init__(self, work_dir: Path, settings: dict) -> None:
        code = {"code": _CODE_HASH, "renderer": RENDERER_HASH}
        self._folder = work_dir / content_id("ability", to_json(settings | code))

    def json(self, name: str, measure: Callable[[], dict]) -> dict:
        """A part as JSON; it is measured if it is not finished."""
        path = self._folder / f"{name}.json"
        if not path.is_file():
            write_json(path, measure())
        return read_json(path)

    def rows(self, name: str, measure: Callable[[], Dataset]) -> Dataset:
        """A part of many numbers as rows; it is measured if it is not finished."""
        path = self._folder / f"{name}.parquet"
        if not path.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            save_parquet(measure(), path)
        return load_parquet(path)
