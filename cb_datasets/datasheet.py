"""The data sheet: the contents of each source, for people to read before they trust it.

reports/sources.json    the numbers
reports/sources.md      the same as tables: records, verdicts, groups, drops by reason, tokens, licence, revision
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from .chat import MAX_LENGTH, encode_prompt, spells_control_token
from .counts import listed
from .files import REPORT_FILE, read_json
from .formats.chat_template import RENDER_ERRORS
from .ingest import load_split
from .markdown import Markdown, markdown_table
from .terminal import shown_line


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Keys of the report of an ingested source that are read here.
_KEYS = (
    "records",
    "attacked",
    "groups",
    "verdicts",
    "drops",
    "sides",
    "licence",
    "redistributable",
    "source_revision",
)


def source_sheets(folders: Iterable[Path], tokenizer: "PreTrainedTokenizerBase | None" = None) -> dict[str, dict]:
    """The report of each ingested source, by name.

    Args:
        folders (`Iterable[Path]`): Folders of traces, with `train/` and `eval/`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The target's; with it the reports have the
            token lengths of whole traces, tools included, and the number of those whose text spells a control token.
    """
    sheets = {}
    for folder in sorted(folders):
        sheets[folder.name] = read_sheet(folder / REPORT_FILE)
        if tokenizer is not None:
            sheets[folder.name] |= _measured(folder, tokenizer)
    return sheets


def read_sheet(path: Path) -> dict:
    """The report of an ingested source.

    Raises:
        FileNotFoundError, ValueError: If there is none, or it is not of this version.
    """
    sheet = read_json(path)
    if missing := [key for key in _KEYS if key not in sheet]:
        raise ValueError(
            f"{path}: not a report of this version ({', '.join(missing)} is missing). Ingest the source again."
        )
    return sheet


def read_sheets(path: Path) -> dict[str, dict]:
    """The data sheet: the reports of sources, by name.

    Raises:
        FileNotFoundError, ValueError: If there is none, or it is another file.
    """
    sheets = read_json(path)
    if not all(isinstance(sheet, dict) for sheet in sheets.values()):
        raise ValueError(
            f"{path}: no data sheet, which has an object for each source. Run `cb-datasets sources` again."
        )
    return sheets


def by_source(sheets: dict[str, dict]) -> dict[str, dict]:
    """The data sheet by the source named in rows: JSONL traces may name other sources than their folder.

    If two sheets have one name, the stricter one counts, whose rows may not be redistributed.
    """
    strict_last = sorted(sheets.items(), key=lambda item: not item[1]["redistributable"])
    return {name: sheet for folder, sheet in strict_last for name in sheet.get("names", [folder])}


def _measured(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> dict:
    splits = [load_split(folder, split) for split in ("train", "eval")]
    traces = (trace for rows in splits for trace in rows)
    bar = tqdm(traces, desc=shown_line(f"Measuring {folder.name}"), total=sum(map(len, splits)), unit="trace")
    lengths, refused, spells = [], 0, 0
    for trace in bar:
        spells += spells_control_token(tokenizer, trace)
        try:
            lengths.append(len(encode_prompt(tokenizer, trace)))
        except RENDER_ERRORS:  # some templates refuse a recorded turn that says nothing
            refused += 1
    tokens = {"not rendered": refused} if refused else {}
    if lengths:
        p50, p95 = (int(np.percentile(lengths, percent)) for percent in (50, 95))
        over = sum(length > MAX_LENGTH for length in lengths)
        tokens = {"p50": p50, "p95": p95, "max": max(lengths), f"over {MAX_LENGTH}": over, **tokens}
    return {"tokens": tokens, "spell_control_tokens": spells}


def sheet_markdown(sheets: dict[str, dict]) -> str:
    """The data sheet as Markdown."""
    counts = [
        [
            name,
            sheet["records"],
            sheet["attacked"],
            sheet["groups"],
            listed(sheet["verdicts"]),
            listed(sheet["drops"]) or "none",
            listed(sheet["sides"]),
            listed(_left_out(sheet)) or "none",
        ]
        for name, sheet in sheets.items()
    ]
    origins = [
        [
            name,
            sheet["licence"],
            "yes" if sheet["redistributable"] else Markdown("**no**"),
            sheet["source_revision"],
            listed(sheet.get("tokens", {})) or "not measured",
            sheet.get("spell_control_tokens", "not measured"),
        ]
        for name, sheet in sheets.items()
    ]
    works = [
        [name, origin["name"], origin["licence"], origin["traces"], origin["citation"], origin["homepage"]]
        for name, sheet in sheets.items()
        for origin in sheet.get("origins", ())
    ]
    notes = [f"- {name}: {sheet['note']}" for name, sheet in sheets.items() if sheet.get("note")]
    parts = [
        "# Sources",
        "Every record of a source is in one verdict or in one drop. Every trace is on one side or left out: it is of "
        "another split of the source, or was not chosen.",
        markdown_table(["source", "records", "attacked", "groups", "verdicts", "drops", "sides", "left out"], counts),
        "Tokens are those of whole traces, tools included, as the target's chat template writes them. A control token "
        "of the target that the text of a trace spells is read as plain text.",
        markdown_table(
            ["source", "licence", "redistributable", "revision", "tokens", "traces that spell control tokens"], origins
        ),
        *(["Some sources hold traces of several works.", _works_table(works)] if works else []),
        *(["\n".join(notes)] if notes else []),
    ]
    return "\n\n".join(parts) + "\n"


def _left_out(sheet: dict) -> dict[str, int]:
    """Traces on neither side; sheets of older versions do not count all of them."""
    return {
        name: count
        for name, count in {**sheet.get("other_splits", {}), "not chosen": sheet.get("not_chosen", 0)}.items()
        if count
    }


def _works_table(works: list[list]) -> str:
    return markdown_table(["source", "work", "licence", "traces", "citation", "homepage"], works)
