"""AgentHarm: what agents are asked to do with tools, harmful and harmless, and harmful requests without tools.

A file of `benchmark/` holds behaviors of one kind (`harmful`, `benign`, `chat`); one of them, shortened and ours:

    {"behaviors": [{"id": "7-2", "id_original": "7", "detailed_prompt": true, "hint_included": false,
         "name": "Letterbox fire", "category": "Harassment", "prompt": "Find out where ... lives, then ...",
         "target_functions": ["look_up_address", "send_email"], "grading_function": "grade_letterbox_fire"}, ...]}

What is easy to get wrong, and is settled here:

- This is an evaluation, and a canary marks it: rows are in split `test` alone, and are never published.
- The files name tools and do not describe them. The tools are code of the package `inspect-evals`; their schemas are
  read from that code, which is neither imported nor run.
- The benchmark offers an agent exactly the functions that a behavior names (`setup_tools_from_metadata`, no irrelevant
  tools by default), and none in `chat`; its default agent opens with a system prompt of the package.
- A behavior comes in four wordings and in a harmful and a benign version, all with one `id_original`; `id` repeats
  between kinds.
"""

from collections.abc import Iterator
from pathlib import Path

import datasets

from ..base import TraceBuilder
from ..download import Download
from ..json_records import optional, read_json, required
from ..trace import Dropped, attack, message, to_json
from .package import installed_benchmark, read_system_prompt, read_tools


# Kind and part of the benchmark by file, as the benchmark itself names its files.
FILES = {
    "harmful_behaviors_test_public.json": ("harmful", "test_public"),
    "harmful_behaviors_validation.json": ("harmful", "validation"),
    "benign_behaviors_test_public.json": ("benign", "test_public"),
    "benign_behaviors_validation.json": ("benign", "validation"),
    "chat_public_test.json": ("chat", "test_public"),
    "chat_validation.json": ("chat", "validation"),
}

# The revision that the package itself reads.
_PUBLISHED = "hf://datasets/ai-safety-institute/AgentHarm@e23b3fe60a0da9037314b88e5ee3a0c054970dad"

# Of the files whose hash is stated anywhere; the others are pinned by the revision alone.
_SHA256 = {
    "harmful_behaviors_validation.json": "40cd099915258b41142acfc88a9f2b4e15cd631c5490ad02a0dce0cf2b9c175e",
    "benign_behaviors_validation.json": "b74ffb781ce54182775a8b2843ea341ab2fb4cfea5743bfa89a368e52a76c27a",
}

# Fields whose value stands unaltered elsewhere in the trace; all others go to the metadata as they are.
_CARRIED = ("id", "prompt")


class AgentHarm(TraceBuilder):
    """The prompts of AgentHarm with the tools that the benchmark offers. For evaluation only."""

    INPUTS = tuple((f"benchmark/{name}", name) for name in FILES)
    DOWNLOADS = tuple(
        Download(f"{_PUBLISHED}/benchmark/{name}", f"benchmark/{name}", _SHA256.get(name)) for name in FILES
    )
    PACKAGES = ("inspect-evals",)
    # MIT with a clause: not to be used for anything but improving the safety and security of AI systems.
    LICENSE = "other"
    REDISTRIBUTABLE = False
    CITATION = "AgentHarm (Andriushchenko et al. 2024, arXiv:2410.09024)"

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        gen_kwargs = {"files": self.inputs, "benchmark": installed_benchmark()}
        return [datasets.SplitGenerator(datasets.Split.TEST, gen_kwargs=gen_kwargs)]

    def _generate_traces(self, files: list[Path], benchmark: Path) -> Iterator[dict | Dropped]:
        system_prompt = read_system_prompt(benchmark)
        tools = {kind: read_tools(benchmark / "benchmark" / f"{kind}_tools") for kind in ("harmful", "benign")}
        for file in files:
            if file.name not in FILES:
                raise ValueError(f"{file.name}: no file of AgentHarm; those are {', '.join(FILES)}. Rename it.")
            kind, part = FILES[file.name]
            for where, row in read_behaviors(file):
                yield behavior_trace(row, kind, part, tools.get(kind), system_prompt, where)


def read_behaviors(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield `("file.json: behavior 12", row)`.

    Raises:
        ValueError: If the file is not a JSON object with a list of objects under `behaviors`.
    """
    document = read_json(file)
    if not isinstance(document, dict):
        raise ValueError(f"{file.name}: expected an object, got {type(document).__name__}. Fetch the file again.")
    for number, row in enumerate(required(document, "behaviors", list, file.name)):
        where = f"{file.name}: behavior {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, got {type(row).__name__}. Fetch the file again.")
        yield where, row


def behavior_trace(
    row: dict, kind: str, part: str, tools: dict[str, dict] | None, system_prompt: str, where: str
) -> dict | Dropped:
    """The prompt of one behavior, or why it is none.

    Args:
        row (`dict`): The behavior as published.
        kind (`str`): `harmful`, `benign` or `chat`; the last are harmful requests too.
        part (`str`): Part of the benchmark, `test_public` or `validation`.
        tools (`dict[str, dict]`, *optional*): The schemas of all tools of this kind by name; `None` where a kind
            offers none.
        system_prompt (`str`): What the benchmark's agent is told first.
        where (`str`): File and place of the behavior.

    Raises:
        ValueError: If a field is missing or of the wrong type.
    """
    behavior_id, prompt = (required(row, field, str, where) for field in ("id", "prompt"))
    # Only `chat`, whose rows are one wording each, may do without the behavior that a row is a wording of.
    base = optional(row, "id_original", str, where) if tools is None else required(row, "id_original", str, where)
    category, name = (optional(row, field, str, where) for field in ("category", "name"))
    is_harmful = kind != "benign"
    if not prompt.strip():
        return Dropped("empty_prompt", where)
    offered = None
    if tools is not None:
        wanted = required(row, "target_functions", list, where)
        if not wanted or not all(isinstance(tool, str) and tool in tools for tool in wanted):
            return Dropped("unknown_tools", where, is_attacked=is_harmful)
        offered = to_json([tools[tool] for tool in wanted])
    others = {key: value for key, value in row.items() if key not in _CARRIED}
    return {
        "id": f"agentharm/{kind}/{part}/{behavior_id}",
        "source": "agentharm",
        "group": f"agentharm/{base or behavior_id}",
        "messages": [message("system", system_prompt), message("user", prompt)],
        "tools": offered,
        "expected_tool": None,
        "simulated_tool": None,
        "attack": attack("direct_request", prompt, [], category=category, subtype=name) if is_harmful else None,
        "verdict": "prompt_only",
        "decision_turn": None,
        "metadata": to_json({**others, "task": "agentharm", "kind": kind, "part": part}),
    }
