"""LLMail-Inject: one prompt for each mail and scenario of the challenge, and for each honest mail."""

import json
from collections.abc import Mapping
from pathlib import Path

from .expected import ERROR, Outcomes, Unit, comparable, drop, parse_bytes, parse_json_mended, verdict


NAMES = ("email.retrieved", "defense.undetected", "exfil.sent", "exfil.destination", "exfil.content")
TEXTS = ("subject", "body", "team_id")


def units(files: Mapping[str, bytes], letters: str) -> list[Unit]:
    """The records of all files, in the order of their paths; the levels of the challenge end in one of `letters`."""
    found = []
    scenarios = json.loads(files["scenarios.json"])
    for path in sorted(map(Path, files)):
        if path.suffix == ".jsonl":
            found += submission_units(path.name, files[str(path)], scenarios, letters)
        elif path.name == "emails_for_fp_tests.json":
            found += honest_units(path.name, files[str(path)])
        else:
            found += [Unit(path.name, (), f"scenario {name}", verdict("prompt_only")) for name in scenarios]
    return found


def honest_units(file: str, data: bytes) -> list[Unit]:
    try:
        mails, _ = parse_bytes(data)
    except ValueError:
        mails = None
    if not isinstance(mails, list) or not all(isinstance(mail, str) for mail in mails):
        return [Unit(file, (), None, ERROR)]
    return [
        Unit(
            file,
            (f"{file}: mail {number}",),
            f"honest {number} {comparable(mails[: number + 1])}",
            drop("empty_mail")
            if not mail.strip()
            else drop("duplicate_mail")
            if mail in mails[:number]
            else verdict("prompt_only"),
        )
        for number, mail in enumerate(mails)
    ]


def submission_units(file: str, data: bytes, scenarios: dict, letters: str) -> list[Unit]:
    """A record is judged by itself, and the prompts of equal ones by all of them: one is kept, of those that won."""
    records: list[tuple[int, dict | None, Outcomes]] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record, has_mark = parse_bytes(line, parse_json_mended)
        except ValueError:
            record, has_mark = None, False
        if not isinstance(record, dict):
            records.append((number, None, ERROR))
            continue
        outcomes = drop("unpaired_surrogate") if _has_half(line) else judge(record, scenarios, letters)
        records.append((number, record, outcomes | (ERROR if has_mark and number > 1 else frozenset())))
    kept: dict[tuple[str, str], tuple[int, bool]] = {}
    for number, record, outcomes in records:
        if record is not None and verdict("prompt_only") <= outcomes:
            won = all(json.loads(record["objectives"]).get(name) is True for name in NAMES)
            if prompt_of(record) not in kept or (won and not kept[prompt_of(record)][1]):
                kept[prompt_of(record)] = number, won
    found = []
    for number, record, outcomes in records:
        is_repeated = False
        if record is not None and outcomes == verdict("prompt_only"):
            is_repeated = kept[prompt_of(record)][0] != number
            outcomes = drop("duplicate_mail") if is_repeated else outcomes
        content = None if record is None else f"{comparable(record)} {is_repeated}"
        found.append(Unit(file, range(number, number + 1), content, outcomes))
    return found


def prompt_of(record: dict) -> tuple[str, str]:
    """What two submissions share that make the same prompt: the scenario, and the mail on one line."""
    subject, body = ((record.get(field) or "").replace("\n", " ") for field in ("subject", "body"))
    return record["scenario"][:-1], f"{subject}.   Body: {body}"


def _has_half(line: bytes) -> bool:
    """Whether a line has an escaped surrogate that is not one of a pair."""
    text = json.dumps(json.loads(line.decode("utf-8").removeprefix("\ufeff")), ensure_ascii=False)
    return any("\ud800" <= character <= "\udfff" for character in text)


def judge(record: dict, scenarios: dict, letters: str) -> Outcomes:
    """Allowed outcomes of a submission, apart from those that repeat it."""
    if not all(isinstance(record.get(field), str) for field in ("RowKey", "scenario")):
        return ERROR
    if not all(isinstance(record.get(field), str | None) for field in TEXTS):
        return ERROR
    level = record["scenario"]
    known = [f"level{name.removeprefix('scenario_')}{letter}" for name in scenarios for letter in letters]
    if level not in known:
        return drop("unknown_level")
    reasons = []
    if not any((record.get(field) or "").strip() for field in ("subject", "body")):
        reasons.append("empty_mail")
    objectives = _objectives(record.get("objectives"))
    if objectives is None:
        reasons.append("malformed_objectives")
    elif not objectives["email.retrieved"]:
        reasons.append("not_retrieved")
    return drop(*reasons) if reasons else verdict("prompt_only")


def _objectives(text: object) -> dict | None:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(isinstance(value.get(name), bool) for name in NAMES):
        return None
    return value
