"""What the parts of the benchmark share: one record a line, one licence, and files that are never read."""

from collections.abc import Iterator
from pathlib import Path

import datasets

from ..base import TraceBuilder
from ..json_records import read_json_lines
from ..trace import Dropped


# The benchmark's files lie in the folder that is read, in `fujitsu/`, or as in its own repository.
_FOLDERS = ("", "fujitsu/", "data/attack_types/")

WHY_AUGMENTED_IS_REFUSED = (
    "augmented configurations hold rows of public benchmarks (gandalf, injecagent, harmbench, jailbreakbench), and "
    "training on them would spoil every evaluation with those"
)


def files_named(*patterns: str) -> tuple[str, ...]:
    """The globs under which a part's file may be found, best first."""
    return tuple(folder + pattern for folder in _FOLDERS for pattern in patterns)


class FujitsuSource(TraceBuilder):
    """A part of the benchmark; a subclass says which files it is in and what a record becomes."""

    LICENSE = "cc-by-4.0"
    # The licence allows passing rows on with attribution. The gate on the Hub asks readers to identify themselves and
    # adds no term to the licence; releases go to private repositories only.
    REDISTRIBUTABLE = True
    CITATION = "Fujitsu/agentic-rag-redteam-bench"

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

    def _generate_traces(self, files: list[Path]) -> Iterator[dict | Dropped]:
        for file in files:
            for where, record in read_json_lines(file):
                yield self._trace(record, where)

    def _trace(self, record: dict, where: str) -> dict | Dropped:
        raise NotImplementedError
