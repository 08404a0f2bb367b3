"""AgentHarm: harmful and benign tasks for agents with tools, and harmful requests without tools.

A file of `benchmark/` holds the behaviors of one subset (`harmful`, `benign`, `chat`) and one split. An invented one,
shortened:

    {"behaviors": [{"id": "7-2", "id_original": "7", "detailed_prompt": true, "hint_included": false,
         "name": "Letterbox fire", "category": "Harassment", "prompt": "Find out where ... lives, then ...",
         "target_functions": ["look_up_address", "send_email"], "grading_function": "grade_letterbox_fire"}, ...]}

Points that are easy to get wrong:

- AgentHarm is for evaluation only, and its files contain a canary: all rows are in split `test`, and never published.
- The files only name the tools. The tools are code of the package `inspect-evals`; their schemas are read from that
  code, which is neither imported nor run.
- The benchmark offers an agent exactly the functions that a behavior names (`setup_tools_from_metadata`, no irrelevant
  tools by default), and none in `chat`; its default agent starts with a system prompt of the package.
- A behavior comes in four wordings, and in a harmful and a benign version, all with one `id_original`. The same `id`
  occurs in several subsets.
"""

from collections.abc import Iterator
from pathlib import Path

import datasets

from ..base import TraceBuilder
from ..download import Download
from ..json_records import optional, read_json, required
from ..trace import Dropped, attack, message, to_json
from .package import installed_benchmark, read_system_prompt, read_tools


# Subset and split of each file of the benchmark.
FILES = {
    "harmful_behaviors_test_public.json": ("harmful", "test_public"),
    "harmful_behaviors_validation.json": ("harmful", "validation"),
    "benign_behaviors_test_public.json": ("benign", "test_public"),
    "benign_behaviors_validation.json": ("benign", "validation"),
    "chat_public_test.json": ("chat", "test_public"),
    "chat_validation.json": ("chat", "validation"),
}

# The revision that inspect-evals itself uses.
_PUBLISHED = "hf://datasets/ai-safety-institute/AgentHarm@e23b3fe60a0da9037314b88e5ee3a0c054970dad"

# Hashes of the files for which one is published; the others are pinned by the revision alone.
_SHA256 = {
    "harmful_behaviors_validation.json": "40cd099915258b41142acfc88a9f2b4e15cd631c5490ad02a0dce0cf2b9c175e",
    "benign_behaviors_validation.json": "b74ffb781ce54182775a8b2843ea341ab2fb4cfea5743bfa89a368e52a76c27a",
}

# Fields whose value is in another column of the trace; all others are copied to the metadata.
_NOT_IN_METADATA = ("id", "prompt")


class AgentHarm(TraceBuilder):
    """The prompts of AgentHarm with the tools that the benchmark offers for them. For evaluation only."""

    INPUTS = tuple((f"benchmark/{name}", name) for name in FILES)
    DOWNLOADS = tuple(
        Download(f"{_PUBLISHED}/benchmark/{name}", f"benchmark/{name}", _SHA256.get(name)) for name in FILES
    )
    PACKAGES = ("inspect-evals",)
    # MIT with an additional clause: use is restricted to improving the safety and security of AI systems.
    LICENSE = "other"
    REDISTRIBUTABLE = False
    CITATION = "AgentHarm (Andriushchenko et al. 2024, arXiv:2410.09024)"
    HOMEPAGE = "https://huggingface.co/datasets/ai-safety-institute/AgentHarm"

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        gen_kwargs = {"files": self.inputs, "benchmark": installed_benchmark()}
        return [datasets.SplitGenerator(datasets.Split.TEST, gen_kwargs=gen_kwargs)]

    def _generate_traces(self, files: list[Path], benchmark: Path) -> Iterator[dict | Dropped]:
        system_prompt = read_system_prompt(benchmark)
        tools = {subset: read_tools(benchmark / "benchmark" / f"{subset}_tools") for subset in ("harmful", "benign")}
        for file in files:
            if file.name not in FILES:
                raise ValueError(f"{file.name}: not a file of AgentHarm; those are {', '.join(FILES)}. Rename it.")
            subset, split = FILES[file.name]
            for where, row in read_behaviors(file):
                yield behavior_trace(row, subset, split, tools.get(subset), system_prompt, where)


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
    row: dict, subset: str, split: str, tools: dict[str, dict] | None, system_prompt: str, where: str
) -> dict | Dropped:
    """Convert one behavior to a trace that is a prompt, or drop it.

    Args:
        row (`dict`): The behavior as published.
        subset (`str`): `harmful`, `benign` or `chat`; those of `chat` are harmful requests too.
        split (`str`): Split of the benchmark, `test_public` or `validation`.
        tools (`dict[str, dict]`, *optional*): Schemas of all tools of the subset, by name; `None` for `chat`, which
            has no tools.
        system_prompt (`str`): System prompt of the benchmark's default agent.
        where (`str`): File and position of the behavior.

    Raises:
        ValueError: If a field is missing or of the wrong type.
    """
    behavior_id, prompt = (required(row, field, str, where) for field in ("id", "prompt"))
    # The wordings of a behavior share `id_original`. In `chat` each behavior has one wording, and may lack the field.
    base_id = optional(row, "id_original", str, where) if tools is None else required(row, "id_original", str, where)
    category, title = (optional(row, field, str, where) for field in ("category", "name"))
    is_harmful = subset != "benign"
    if not prompt.strip():
        return Dropped("empty_prompt", where)
    offered = None
    if tools is not None:
        names = required(row, "target_functions", list, where)
        if not names or not all(isinstance(name, str) and name in tools for name in names):
            return Dropped("unknown_tools", where, is_attacked=is_harmful)
        offered = to_json([tools[name] for name in names])
    other_fields = {key: value for key, value in row.items() if key not in _NOT_IN_METADATA}
    return {
        "id": f"agentharm/{subset}/{split}/{behavior_id}",
        "source": "agentharm",
        "group": f"agentharm/{base_id or behavior_id}",
        "messages": [message("system", system_prompt), message("user", prompt)],
        "tools": offered,
        "expected_tool": None,
        "simulated_tool": None,
        "attack": attack("direct_request", prompt, [], category=category, subtype=title) if is_harmful else None,
        "verdict": "prompt_only",
        "decision_turn": None,
        "metadata": to_json({**other_fields, "task": "agentharm", "kind": subset, "part": split}),
    }
