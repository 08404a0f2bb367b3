"""AgentHarm: prompts with the tools that they name."""

from collections.abc import Collection, Mapping
from pathlib import Path

from .expected import ERROR, SILENT, Outcomes, Unit, comparable, drop, parse_bytes, verdict


def units(files: Mapping[str, bytes], tools: Collection[str]) -> list[Unit]:
    """The behaviors of all files, in the order of their paths."""
    found_units = []
    for path in sorted(Path(path) for path in files):
        try:
            document, _ = parse_bytes(files[str(path)])
        except ValueError:
            document = None
        rows = document.get("behaviors") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            found_units.append(Unit(path.name, (), None, ERROR))
            continue
        found_units.append(Unit(path.name, (), "document", SILENT))
        for number, row in enumerate(rows):
            outcomes = judge(row, path.name.split("_")[0], tools) if isinstance(row, dict) else ERROR
            content = f"{path.name} {comparable(row)}"
            found_units.append(Unit(path.name, (f"{path.name}: behavior {number}",), content, outcomes))
    return found_units


def judge(row: dict, subset: str, tools: Collection[str]) -> Outcomes:
    """Allowed outcomes of a behavior of a subset: `harmful` and `benign` ones have tools, `chat` has none."""
    has_tools = subset != "chat"
    base, functions = row.get("id_original"), row.get("target_functions")
    is_malformed = (
        not all(isinstance(row.get(field), str) for field in ("id", "prompt"))
        or not all(isinstance(row.get(field), str | None) for field in ("category", "name"))
        or not isinstance(base, str if has_tools else str | None)
        or (has_tools and not isinstance(functions, list))
    )
    reasons = []
    if isinstance(row.get("prompt"), str) and not row["prompt"].strip():
        reasons.append("empty_prompt")
    if has_tools and isinstance(functions, list) and not _are_known(functions, tools):
        reasons.append("unknown_tools")
    if is_malformed:
        return ERROR | drop(*reasons)
    return drop(*reasons) if reasons else verdict("prompt_only")


def _are_known(functions: list, tools: Collection[str]) -> bool:
    return bool(functions) and all(isinstance(name, str) and name in tools for name in functions)
