"""BFCL, the Berkeley Function Calling Leaderboard: requests with tools, and which calls are right.

`BFCL_v4_<category>.json` has one request per line, and `possible_answer/` has a line with the same id where a call is
right. Both invented and shortened:

    {"id": "simple_python_7", "question": [[{"role": "user", "content": "How high is the tide in Brest at 7?"}]],
     "function": [{"name": "tides.height", "description": "...", "parameters": {"type": "dict", "properties": {
          "port": {"type": "string"}, "hour": {"type": "integer"}, "unit": {"type": "string"}}, "required": [...]}}]}

    {"id": "simple_python_7", "ground_truth": [{"tides.height": {"port": ["Brest", "Brest, France"], "hour": [7],
        "unit": ["", "m"]}}]}

Points that are easy to get wrong:

- An argument has a list of accepted values; `""` among them says that it may be left out. The values of an accepted
  object are such lists, too. `expected_calls` in the metadata has all of them (`alternatives`, `optional`).
- Names of functions have dots, which the APIs of many models forbid: BFCL replaces them by underscores, and so do we.
- Types are those of other languages (`dict`, `float`, `tuple`, `any`), see `json_schema.standard_types`.
- Most functions, and many questions, occur in several rows: those of one function are one group, see [`group_names`].
- In `parallel` and the like, all calls of the answer are wanted in one turn, in any order. Each of the expected calls
  says so (`parallel`), and there is no one `expected_tool`.
- The rows of `simple_java` and `simple_javascript` want arguments in the syntax of another language, `live_relevance`
  has no answers, and the multi-turn, memory and web categories need BFCL's own environments: none of these is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import datasets

from ..base import TraceBuilder, TraceConfig
from ..trace import Dropped
from .groups import group_names
from .rows import ANSWERED, CATEGORIES, bfcl_trace, read_rows


__all__ = ["BFCL", "BFCLConfig"]

# The version that counts and labels were checked with. It pins packages that ours contradict, so it comes without.
_INSTALL = "pip install --no-deps bfcl-eval==2026.3.23"


@dataclass
class BFCLConfig(TraceConfig):
    """Configuration of [`BFCL`].

    Args:
        live (`bool`, *optional*): Read only the categories of real users' requests (`live_...`), or only the others.
    """

    live: bool | None = None


class BFCL(TraceBuilder):
    """Requests of BFCL with the tools offered and all calls that are right, or that need no call."""

    BUILDER_CONFIG_CLASS = BFCLConfig
    BUILDER_CONFIGS = [
        BFCLConfig(name="all"),
        BFCLConfig(name="live", live=True),
        BFCLConfig(name="non_live", live=False),
    ]
    DEFAULT_CONFIG_NAME = "all"
    # At least one of these must exist, with the answers beside it.
    INPUTS = (tuple(f"BFCL_v4_{category}.json" for category in CATEGORIES),)
    PACKAGES = ("bfcl-eval",)
    LICENSE = "apache-2.0"
    REDISTRIBUTABLE = True
    CITATION = "BFCL (Patil et al. 2025, ICML, The Berkeley Function Calling Leaderboard)"
    NOTE = (
        "a benchmark. A model that is trained on a part of it (`retain/tool_capability`, `retain/chat`) can be judged "
        "by the held-out part alone, not by BFCL's own score; `--eval-fraction 1` holds out all of it."
    )
    HOMEPAGE = "https://github.com/ShishirPatil/gorilla/tree/main/berkeley-function-call-leaderboard"

    @classmethod
    def default_data_dir(cls) -> Path:
        spec = find_spec("bfcl_eval")
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise FileNotFoundError(f"BFCL reads the installed benchmark: {_INSTALL}, or pass data_dir.")
        return Path(folders[0]) / "data"

    @classmethod
    def find_inputs(cls, data_dir: Path) -> list[Path]:
        """The files of all categories that are read, and of their answers, sorted.

        Raises:
            FileNotFoundError: If there is none, or the answers of one are missing.
        """
        if not data_dir.is_dir():
            raise FileNotFoundError(f"BFCL reads the files of a folder, and {data_dir} is not a folder.")
        files = [data_dir / name for name in cls.INPUTS[0] if (data_dir / name).is_file()]
        if not files:
            raise FileNotFoundError(
                f"BFCL expects {cls.INPUTS[0][0]} and the like in {data_dir}, but no file there matches. They are in "
                f"the folder bfcl_eval/data of the package: {_INSTALL}."
            )
        answers = [path.parent / "possible_answer" / path.name for path in files if category_of(path) in ANSWERED]
        for path in answers:
            if not path.is_file():
                raise FileNotFoundError(f"BFCL: {path} is missing, the answers to {path.name}. Copy the whole folder.")
        return sorted([*files, *answers])

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        files = [path for path in self.inputs if self._is_read(path)]
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"files": files})]

    def _is_read(self, path: Path) -> bool:
        """Whether a file has requests of the configuration."""
        if path.parent.name == "possible_answer":
            return False
        return self.config.live is None or self.config.live == category_of(path).startswith("live_")

    def _generate_traces(self, files: list[Path]) -> Iterator[dict | Dropped]:
        # Groups join rows of all categories, so that they do not depend on the configuration.
        rows = read_rows(self.inputs)
        groups = group_names(rows)
        for row, group in zip(rows, groups, strict=True):
            if row.file in files:
                yield bfcl_trace(row, group)


def category_of(path: Path) -> str:
    """The category of a file."""
    return path.stem.removeprefix("BFCL_v4_")
