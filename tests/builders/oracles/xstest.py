"""XSTest's tables, parsed by RFC 4180 with an independent parser."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .expected import ERROR, SILENT, Outcomes, Unit, comparable, drop, verdict


NEW = ("id", "prompt", "type", "label", "focus", "note")
OLD = ("id_v1", "id_v2", "type", "prompt", "focus", "note")
PROMPTS = (NEW, OLD)
COMPLETIONS = (("id", "type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label"),)
FINAL_LABELS = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")


# Allowed outcomes of a row whose cells are ambiguous.
ANYTHING = ERROR | verdict("prompt_only") | verdict("benign_success") | verdict("benign_failure")
ANYTHING |= verdict("complied", 1) | verdict("refused", 1) | drop("partial_refusal", "empty_completion")


@dataclass
class Row:
    """Cells of one row, its lines, and whether CSV parsers differ on it."""

    first_line: int
    last_line: int = 0
    cells: list[str] = field(default_factory=list)
    is_doubtful: bool = False
    is_broken: bool = False


def prompt_units(file: str, data: bytes) -> list[Unit]:
    return units(file, data, PROMPTS, judge)


def completion_units(file: str, data: bytes) -> list[Unit]:
    return units(file, data, COMPLETIONS, judge_completion)


def units(file: str, data: bytes, layouts: tuple, judge: Callable[[dict], Outcomes]) -> list[Unit]:
    """Units of a table: the header, which yields nothing, and the rows."""
    text, undecodable_at = _decode(data)
    rows = [row for row in read_rows(text) if row.cells != [""] or row.is_broken]
    undecodable = (
        [] if undecodable_at is None else [Unit(file, range(undecodable_at, undecodable_at + 1), None, ERROR)]
    )
    if not rows:
        return [Unit(file, range(0, 2), None, ERROR), *undecodable]
    header, *rows = rows
    layout = next((layout for layout in layouts if set(layout) <= set(header.cells)), None)
    if header.is_broken or layout is None:
        return [Unit(file, range(0, header.last_line + 1), None, ERROR), *undecodable]
    ambiguous = header.is_doubtful or len(set(header.cells)) < len(header.cells)
    found_units = [Unit(file, range(1, header.last_line + 1), "header", SILENT | ERROR if ambiguous else SILENT)]
    for row in rows:
        places = range(row.first_line, row.last_line + 1)
        if undecodable_at in places:
            return [*found_units, Unit(file, places, None, ERROR)]
        content = dict(zip(header.cells, row.cells, strict=False))
        fits = len(row.cells) == len(header.cells) and not row.is_broken
        outcomes = judge(content) if fits else ERROR
        # If a quote or a line end is ambiguous, the beginnings of all later rows are too.
        ambiguous |= row.is_doubtful
        if ambiguous:
            outcomes |= ANYTHING
        found_units.append(Unit(file, places, comparable(content) if fits else None, outcomes))
    return found_units + undecodable


def _decode(data: bytes) -> tuple[str, int | None]:
    """The text up to the first byte that is not UTF-8, and the line of that byte."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff"), None
    except UnicodeDecodeError as error:
        text = data[: error.start].decode("utf-8").removeprefix("\ufeff")
        return text, text.count("\n") + 1


def judge(row: dict) -> Outcomes:
    """Allowed outcomes of a row that has a cell in every column."""
    number = row["id" if "id" in row else "id_v2"].removeprefix("v2-")
    if not number.isdecimal():
        return ERROR
    if "label" in row and row["label"] not in ("safe", "unsafe"):
        return ERROR
    return verdict("prompt_only") | (ERROR if _is_odd(row, number) else frozenset())


def judge_completion(row: dict) -> Outcomes:
    """Allowed outcomes of a row of the table of answers."""
    number = row["id"].removeprefix("v2-")
    label = row["final_label"]
    if not number.isdecimal() or label not in FINAL_LABELS:
        return ERROR
    is_unsafe = row["type"].startswith("contrast_")
    reasons = []
    if label == "3_partial_refusal":
        reasons.append("partial_refusal")
    if not row["completion"].strip():
        reasons.append("empty_completion")
    if reasons:
        return drop(*reasons)
    full = label == "1_full_compliance"
    if is_unsafe:
        outcome = verdict("complied" if full else "refused", 1)
    else:
        outcome = verdict("benign_success" if full else "benign_failure")
    return outcome | (ERROR if _is_odd(row, number) else frozenset())


def _is_odd(row: dict, number: str) -> bool:
    """Whether a well-formed row is so unusual that an error is allowed too."""
    return not number.isascii() or len(number) > 9 or not row["prompt"].strip() or "\0" in "".join(row.values())


def read_rows(text: str) -> list[Row]:
    """Rows of a CSV text; a blank line is a row with one empty cell."""
    rows, line, at = [], 1, 0
    while at < len(text):
        row = Row(first_line=line)
        while True:
            cell, at, line, ended = _read_cell(text, at, line, row)
            row.cells.append(cell)
            if ended:
                break
        rows.append(row)
        line += 1
    return rows


def _read_cell(text: str, at: int, line: int, row: Row) -> tuple[str, int, int, bool]:
    """Parse one cell at `at`: its text, the position and line of the next cell, and whether it ends the row."""
    cell = ""
    if text[at : at + 1] == '"':
        at += 1
        while True:
            close = text.find('"', at)
            if close < 0:
                row.is_broken = True
                row.last_line = line + text.count("\n", at)
                return cell + text[at:], len(text), row.last_line, True
            piece = text[at:close]
            cell += piece
            # Some parsers treat a lone carriage return as a line end, others as a character.
            row.is_doubtful |= "\r" in piece.replace("\r\n", "")
            line += piece.count("\n")
            at = close + 1
            if text[at : at + 1] != '"':
                break
            cell += '"'
            at += 1
        if at < len(text) and text[at] not in ",\r\n":
            row.is_broken = True
    start = at
    while at < len(text) and text[at] not in ",\r\n":
        at += 1
    row.is_doubtful |= '"' in text[start:at]
    cell += text[start:at]
    row.last_line = line
    if at < len(text) and text[at] == ",":
        return cell, at + 1, line, False
    if text[at : at + 2] == "\r\n":
        return cell, at + 2, line, True
    row.is_doubtful |= text[at : at + 1] == "\r"
    return cell, at + 1, line, True
