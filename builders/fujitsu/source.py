"""Base class of the benchmark's parts: JSON Lines files, one licence, and the refusal of augmented files."""

from collections.abc import Iterator
from pathlib import Path

import datasets

from ..base import TraceBuilder
from ..json_records import read_json_lines


# Locations of the files: the data folder itself, `fujitsu/`, or the layout of the benchmark's repository.
_FOLDERS = ("", "fujitsu/", "data/attack_types/")

WHY_AUGMENTED_IS_REFUSED = (
    "augmented configurations hold rows of public benchmarks (gandalf, injecagent, harmbench, jailbreakbench), and "
    "training on them would invalidate every evaluation on those benchmarks"
)


def files_named(*patterns: str) -> tuple[str, ...]:
    """Glob patterns for the files of a part, by priority."""
    return tuple(folder + pattern for folder in _FOLDERS for pattern in patterns)


class FujitsuSource(TraceBuilder):
    """A part of the benchmark; a subclass sets `INPUTS` and converts the records of its files to traces."""

    LICENSE = "cc-by-4.0"
    # The licence allows passing rows on with attribution. The gate on the Hub asks readers to identify themselves, but
    # adds no terms to the licence; releases go to private repositories only.
    REDISTRIBUTABLE = True
    CITATION = "Fujitsu/agentic-rag-redteam-bench"
    HOMEPAGE = "https://huggingface.co/datasets/Fujitsu/agentic-rag-redteam-bench"

    HOW_TO_GET = (
        "Accept the terms on https://huggingface.co/datasets/Fujitsu/agentic-rag-redteam-bench, run `hf auth login`, "
        "then `hf download Fujitsu/agentic-rag-redteam-bench --repo-type dataset --local-dir FOLDER`."
    )
    REFUSED_CONFIGS = {"B?_augmented_*": WHY_AUGMENTED_IS_REFUSED}

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        for file in self.inputs:
            if "augmented" in file.name.casefold():
                raise ValueError(f"{file.name}: {WHY_AUGMENTED_IS_REFUSED}. Move the file elsewhere.")
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"files": self.inputs})]


def read_records(files: list[Path]) -> Iterator[tuple[str, dict]]:
    """Yield `("file.jsonl:12", record)` for every record of all files."""
    for file in files:
        yield from read_json_lines(file)
