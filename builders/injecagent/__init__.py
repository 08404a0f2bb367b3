"""InjecAgent: instructions of attackers in the results of tools, one decision of a tool-calling agent per case.

17 users' requests, each with the call that it needs and the result of that call; 30 attackers' instructions that do
direct harm (`dh`), and 32 that steal data and send them away (`ds`). All pairs of a user and an attacker are cases, in
two settings: `base`, and `enhanced` with a sentence before the instruction that tells the agent to ignore all others.

InjecAgent measures attacks, and training on it would invalidate that measurement. All rows are therefore in split
`test`, unless `retain` is set; then all are in `train`, and users' and attackers' cases are held out later.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..base import TraceBuilder, TraceConfig
from ..download import Download
from ..json_records import read_json
from ..trace import Dropped
from .cases import case_trace
from .recorded import FOLDER, case_key, read_recorded
from .tools import read_tools


__all__ = ["InjecAgent"]

SETTINGS = ("base", "enhanced")
_CASES = re.compile(r"test_cases_(dh|ds)_(base|enhanced)\.json")
_TOOLS = "tools.json"

_PUBLISHED = "https://raw.githubusercontent.com/uiuc-kang-lab/InjecAgent/f19c9f2c79a41046eb13c03c51a24c567a8ffa07/data"
_SHA256 = {
    "test_cases_dh_base.json": "0a8186468d21389af432e8c7b399ae42264d1b93a07b65c7a489468508604305",
    "test_cases_dh_enhanced.json": "885602716b72c18af80695ce6c2e1f242fa03163bc90b0788b0c5e4ab6216d50",
    "test_cases_ds_base.json": "4daab35c62a3845e8b9400f4dca58b9c9f37e57cd33b2337552557fbb26282e9",
    "test_cases_ds_enhanced.json": "7bc510868df032511053fc40e8470e68a041fb7148d055112093594bf73ab0ce",
    "tools.json": "e21a8f70b1d5de4677d6d52642936a322655d79b17a72c84f600550384083a1e",
}

_RECORDED = "https://raw.githubusercontent.com/enkryptai/xInjectAgent/21af27703ad4e591b8fc686ab9d79249d299a0e8/results"
_LLAMA = "Meta-Llama-3.1-8B-Instruct-Turbo"
_RECORDED_SHA256 = {
    f"BASE/{_LLAMA}/test_cases_dh_base.json": "52f7911d3690b47982fb052f421a16dacb23c12d5abaf61aeec79fc761fdb008",
    f"BASE/{_LLAMA}/test_cases_ds_base.json": "8051de0f5182a81901aac1e81ae43243783319d14ceb108e3882908f699fe1d9",
    f"ENHANCED/{_LLAMA}/test_cases_dh_enhanced.json": (
        "75690942a347836403707fed5f9e7aba7d941b92efe06a4f3ff9af010e9d8b59"
    ),
    f"ENHANCED/{_LLAMA}/test_cases_ds_enhanced.json": (
        "5b9ab3f6ec057f21391e041f89574f31db11db766ab313a8e74ad0347033b2c8"
    ),
}


@dataclass
class InjecAgentConfig(TraceConfig):
    """Configuration of [`InjecAgent`].

    Args:
        setting (`str`, *optional*): `base` or `enhanced`; by default both.
        retain (`bool`, *optional*, defaults to `False`): Whether rows may be trained on. If so they are in split
            `train`, and a model trained on them can only be measured on the held-out users' and attackers' cases.
    """

    setting: str | None = None
    retain: bool = False


class InjecAgent(TraceBuilder):
    """The cases as prompts: system prompt, request, call of the user's tool, and its result with the injection."""

    BUILDER_CONFIG_CLASS = InjecAgentConfig
    BUILDER_CONFIGS = [
        InjecAgentConfig(name="all"),
        *(InjecAgentConfig(name=setting, setting=setting) for setting in SETTINGS),
    ]
    DEFAULT_CONFIG_NAME = "all"
    INPUTS = tuple((f"data/{name}", name) for name in _SHA256)
    DOWNLOADS = (
        *(Download(f"{_PUBLISHED}/{name}", name, sha256) for name, sha256 in _SHA256.items()),
        *(Download(f"{_RECORDED}/{name}", f"{FOLDER}/{name}", sha256) for name, sha256 in _RECORDED_SHA256.items()),
    )
    LICENSE = "mit"
    REDISTRIBUTABLE = True
    CITATION = "InjecAgent (Zhan et al. 2024, arXiv:2403.02691)"
    NOTE = (
        "17 users' cases in all, so few groups stand behind every rate. The system prompt is this project's; the "
        "benchmark's own asks for ReAct text. Of recorded models only the verdicts are kept, in the metadata "
        "(xInjectAgent, MIT). The result of the first tool in a case of data stealing is made by rules."
    )
    HOMEPAGE = "https://github.com/uiuc-kang-lab/InjecAgent"

    @classmethod
    def find_inputs(cls, data_dir: Path) -> list[Path]:
        # Recorded verdicts are not needed.
        return sorted([*super().find_inputs(data_dir), *data_dir.glob(f"{FOLDER}/*/*/*.json")])

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        recorded = tuple(file for file in self.inputs if file.parent.parent.name in ("BASE", "ENHANCED"))
        cases = [file for file in self.inputs if file.name != _TOOLS and file not in recorded]
        tools = [file for file in self.inputs if file.name == _TOOLS]
        if len(tools) != 1:
            raise ValueError(f"InjecAgent needs one {_TOOLS}, got {len(tools)}. Pass it with the cases.")
        if self.config.setting is not None:
            cases = [file for file in cases if file.stem.endswith(f"_{self.config.setting}")]
        split = datasets.Split.TRAIN if self.config.retain else datasets.Split.TEST
        gen_kwargs = {"files": cases, "tools_file": tools[0], "recorded_files": recorded}
        return [datasets.SplitGenerator(split, gen_kwargs=gen_kwargs)]

    def _generate_traces(
        self, files: list[Path], tools_file: Path, recorded_files: tuple[Path, ...]
    ) -> Iterator[dict | Dropped]:
        tools, recorded = read_tools(tools_file), read_recorded(recorded_files)
        for file in files:
            named = _CASES.fullmatch(file.name)
            if named is None:
                raise ValueError(f"{file.name}: not a file of InjecAgent; those are {', '.join(_SHA256)}. Rename it.")
            kind, setting = named.groups()
            by_case = recorded.get(file.name, {})
            for where, case in read_cases(file):
                yield case_trace(case, kind, setting, tools, by_case.get(case_key(case, where), {}), where)


def read_cases(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield `("test_cases_dh_base.json: case 12", case)`, counted from 0.

    Raises:
        ValueError: If the file is not a JSON list of objects.
    """
    cases = read_json(file)
    if not isinstance(cases, list):
        raise ValueError(f"{file.name}: expected a list, got {type(cases).__name__}. Fetch the file again.")
    for number, case in enumerate(cases):
        where = f"{file.name}: case {number}"
        if not isinstance(case, dict):
            raise ValueError(f"{where}: expected an object, got {type(case).__name__}. Fetch the file again.")
        yield where, case
