"""Damaged input files: damage to one record never changes other records, and never gives it a wrong label.

Files of every source, real and invented ones, are damaged thousands of times with random seeds. A damaged record must
be dropped with a named reason, stop the build with one error that names file and line, or get the verdict that an
oracle (`oracles/`, written only from the descriptions of the formats) gives to its damaged content.

To run a single mutation: `CB_MUTATIONS=417 pytest tests/builders/test_mutations.py -k "real and agentdojo"`.
"""

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import datasets
import pyarrow as pa
import pytest

import builders
from builders.trace import TRACE_FEATURES, VERDICTS, Dropped
from tests.builders import mutations as mutate
from tests.builders.oracles.cases import OF_DOCUMENTS, REAL, SMALL, Case, Input, whole
from tests.builders.oracles.expected import ERROR, SILENT, Unit, drop, parse_json, verdict


Item = dict | Dropped
SCHEMA = TRACE_FEATURES.arrow_schema
logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# Building


@dataclass(frozen=True)
class Built:
    """Result of a build: an item for every record, or the error that stopped it."""

    items: list[Item]
    error: Exception | None = None


def build(case: Case, data_dir: Path) -> Built:
    """Build all items in the order of the records, like `prepare_source` but without a cache."""
    try:
        builder = builders._make_builder(case.source, None, data_dir, None, data_dir / "cache", {})
        splits = builder._split_generators(datasets.DownloadManager())
        items = [item for split in splits for item in builder._generate_traces(**split.gen_kwargs)]
        builder.check_facts(
            Counter(fact for item in items if isinstance(item, dict) for fact in builder.facts_of(item))
        )
        return Built(items)
    except Exception as error:
        return Built([], error)


def prepare(case: Case, data_dir: Path) -> Built:
    """Build with `prepare_source`; the drops come after all traces."""
    cache_dir = data_dir / "cache"
    try:
        builder = builders.prepare_source(case.source, data_dir=data_dir, cache_dir=cache_dir)
        rows = [row for split in builder.as_dataset().values() for row in split.to_list()]
        return Built([*rows, *builder.dropped()])
    except Exception as error:
        return Built([], error)
    finally:
        shutil.rmtree(cache_dir, ignore_errors=True)


def stream(case: Case, data_dir: Path) -> Built:
    """Stream the traces; drops are not part of a stream."""
    try:
        splits = builders.load_source(case.source, data_dir=data_dir, cache_dir=data_dir / "cache", streaming=True)
        return Built([row for split in splits.values() for row in split])
    except Exception as error:
        return Built([], error)


def write(folder: Path, chosen: Input, data: bytes) -> Path:
    """Write the folder of an input, with this content in its target file."""
    data_dir = folder / re.sub(r"\W+", "_", chosen.target)
    for name, content in {**chosen.beside, **chosen.fixed, chosen.target: data}.items():
        path = data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif not path.exists():
            path.symlink_to(content)
    return data_dir


def outcome_of(item: Item) -> str:
    return f"drop:{item.reason}" if isinstance(item, Dropped) else f"{item['verdict']}@{item['decision_turn']}"


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def problems_of_row(row: dict, source: str) -> list[str]:
    """Problems of a trace that are independent of its record: columns, JSON texts, spans and decision turn."""
    if list(row) != list(TRACE_FEATURES):
        return [f"columns {list(row)}"]
    arguments = [call["function"]["arguments"] for turn in row["messages"] for call in turn["tool_calls"]]
    calls = [row["attack"][key] for key in ("expected_calls", "goal_calls")] if row["attack"] else []
    texts = [row["metadata"], *arguments, *(text for text in (row["tools"], *calls) if text is not None)]
    problems = []
    try:
        pa.Table.from_pylist([TRACE_FEATURES.encode_example(row)], schema=SCHEMA)
        for text in texts:
            parse_json(text)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        problems.append(f"no row: {error!r}"[:300])
    is_named = row["id"].startswith(f"{row['source']}/") and source in (row["source"], "jsonl")
    if row["verdict"] not in VERDICTS or not is_named:
        problems.append(f"verdict {row['verdict']}, id {row['id'][:80]}, source {row['source']}")
    for span in row["attack"]["spans"] if row["attack"] else []:
        content = row["messages"][span["message"]]["content"]
        if not 0 <= span["start"] < span["end"] <= len(content):
            problems.append(f"span {span} of {len(content)} characters")
    if row["decision_turn"] is not None and row["messages"][row["decision_turn"]]["role"] != "assistant":
        problems.append(f"decision turn {row['decision_turn']} is not the assistant's")
    return problems


def problems_of_error(error: Exception, units: list[Unit]) -> list[str]:
    """Problems of an error, which must be one readable line that names a record for which an error is allowed."""
    text = str(error)
    if type(error) not in (ValueError, FileNotFoundError):
        return [f"bare {error!r}"[:300]]
    if "\n" in text or "Traceback" in text or len(text) > 500:
        return [f"not one readable line ({len(text)} characters): {text[:200]!r}"]
    if not any(names(text, unit) and unit.outcomes >= ERROR for unit in units):
        return [f"names no record that is malformed: {text!r}"]
    return []


def names(text: str, unit: Unit) -> bool:
    if unit.file not in text:
        return False
    if isinstance(unit.places, tuple):
        return not unit.places or any(place in text for place in unit.places)
    line = re.search(re.escape(unit.file) + r":(\d+)(?!\d)", text)
    return line is not None and int(line[1]) in unit.places


def problems_of_items(items: list[Item], units: list[Unit], before: dict[str, Item], source: str) -> list[str]:
    """Problems of the items: one per record, in order, unchanged for an unchanged record, or an allowed outcome."""
    units = [unit for unit in units if unit.outcomes != SILENT]
    if len(items) != len(units):
        return [f"{len(items)} items of {len(units)} records"]
    problems = []
    for item, unit in zip(items, units, strict=True):
        at = f"{unit.file}:{unit.places}: "
        if outcome_of(item) not in unit.outcomes:
            problems.append(f"{at}{outcome_of(item)}, but allowed is {' or '.join(sorted(unit.outcomes))}")
        if isinstance(item, Dropped) and not names(item.where, unit):
            problems.append(f"{at}dropped as {item.where}")
        if unit.content in before:
            if not is_same(item, before[unit.content]):
                problems.append(f"{at}an untouched record came out different")
        elif isinstance(item, dict):
            problems += [at + problem for problem in problems_of_row(item, source)]
    return problems


def is_same(item: Item, other: Item) -> bool:
    if isinstance(item, Dropped) or isinstance(other, Dropped):
        return outcome_of(item) == outcome_of(other)
    return item == other


def problems_of_public(built: Built, cached: Built, streamed: Built) -> list[str]:
    """Differences between `build`, `prepare_source` and a stream.

    Only `prepare_source` refuses sources without any trace and repeated ids.
    """
    rows = [item for item in built.items if isinstance(item, dict)]
    drops = sorted(outcome_of(item) for item in built.items if isinstance(item, Dropped))
    encoded = pa.Table.from_pylist([TRACE_FEATURES.encode_example(row) for row in rows], SCHEMA).to_pylist()
    problems = []
    if str(streamed.error) != str(built.error):
        problems.append(f"streamed: {streamed.error!r} instead of {built.error!r}"[:600])
    elif streamed.items != encoded:
        problems.append("streamed: other rows")
    repeated = [id for id, count in Counter(row["id"] for row in rows).items() if count > 1]
    if built.error:
        expected = str(built.error)
    elif repeated:
        expected = f"have the id '{repeated[0]}'"
    else:
        expected = "None" if rows else "no record became a trace"
    if expected not in str(cached.error) or "\n" in str(cached.error):
        problems.append(f"prepared: {cached.error!r} instead of {expected!r}"[:600])
    elif cached.error is None:
        prepared = [item for item in cached.items if isinstance(item, dict)]
        dropped = sorted(outcome_of(item) for item in cached.items if isinstance(item, Dropped))
        if sorted(prepared, key=_id) != sorted(encoded, key=_id) or dropped != drops:
            problems.append("prepared: other rows or drops")
    return problems


def _id(row: dict) -> str:
    return row["id"]


# ---------------------------------------------------------------------------------------------------------------------
# The tests


@pytest.fixture(autouse=True)
def no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize(
    ("error", "is_accepted"),
    [
        (ValueError("runs.jsonl:3: not a JSON object. Delete the line."), True),
        (ValueError("runs.jsonl:2: not a JSON object. Delete the line."), False),  # another record
        (ValueError("runs.jsonl:31: not a JSON object. Delete the line."), False),
        (ValueError("not a JSON object"), False),
        (ValueError("runs.jsonl:3: no\nJSON object."), False),
        (KeyError("runs.jsonl:3"), False),
        (UnicodeDecodeError("utf-8", b"runs.jsonl:3", 0, 1, "runs.jsonl:3"), False),
        (RecursionError("runs.jsonl:3"), False),
    ],
)
def test_only_an_error_that_names_the_malformed_record_is_accepted(error: Exception, is_accepted: bool):
    units = [
        Unit("runs.jsonl", range(number, number + 1), None, outcomes)
        for number, outcomes in ((2, verdict("resisted", 4)), (3, ERROR), (31, drop("empty")))
    ]
    assert (problems_of_error(error, units) == []) is is_accepted


WHOLE = {
    ("agentdojo dumps, banking", "agentdojo/dumps/*.jsonl"): {
        "benign_success": 455,
        "benign_failure": 314,
        "compromised": 137,
        "resisted": 426,
        "attempted": 40,
        "not_exposed": 132,
        "drop:empty": 34,
        "drop:aborted": 14,
        "drop:header": 8,
    },
    ("agentdojo runs", "agentdojo/runs/*/*/*/*/*.json"): {
        "benign_success": 5,
        "benign_failure": 2,
        "compromised": 8,
        "unverified": 1,
        "resisted": 3,
        "not_exposed": 1,
        "drop:attacker_as_user": 5,
        "drop:no_security": 2,
        "drop:non_native_calls": 1,
    },
    ("fujitsu_b4", "fujitsu/b4_*.jsonl"): {"prompt_only": 16, "drop:degenerate": 9},
    ("xstest", "xstest/xstest_prompts.csv"): {"prompt_only": 450},
    ("xstest", "xstest/xstest_v2_prompts.csv"): {"prompt_only": 450},
    ("xstest_completions", "xstest/xstest_v2_completions_*.csv"): {
        "benign_success": 246,
        "benign_failure": 2,
        "complied": 128,
        "refused": 47,
        "drop:partial_refusal": 27,
    },
    ("ultrachat", "ultrachat/*.jsonl"): {"benign_success": 20},
    ("tau2 trajectories", "tau2/taubench*.json"): {
        "benign_success": 2,
        "drop:reward_below_one": 16,
        "drop:unknown_tools": 2,
    },
    ("injecagent", "injecagent/test_cases_*.json"): {"prompt_only": 2108},
}


@pytest.mark.parametrize(("layout", "files"), WHOLE)
def test_oracle_and_builder_agree_on_every_real_record(real_data: Path, tmp_path: Path, layout: str, files: str):
    case = whole(real_data, REAL[layout](real_data), files)
    items = records_of(case, case.inputs[0], tmp_path)
    assert Counter(outcome_of(item).split("@")[0] for item in items.values()) == WHOLE[layout, files]


@pytest.mark.parametrize("layout", REAL)
def test_damaged_real_files(real_data: Path, tmp_path: Path, layout: str):
    check(layout, REAL[layout](real_data), tmp_path)


@pytest.mark.parametrize("layout", SMALL)
def test_damaged_small_files(tmp_path: Path, layout: str):
    check(layout, SMALL[layout](), tmp_path)


REFERENCES = {
    "agentdojo": SMALL["agentdojo dumps"],
    "agentdojo, tools alone": SMALL["agentdojo runs"],
    "tau2": SMALL["tau2 results"],
    "injecagent": SMALL["injecagent"],
}


@pytest.mark.parametrize("layout", REFERENCES)
def test_damaged_reference_files(tmp_path: Path, layout: str):
    """Reference files with goals and tools: damage may change the content, but must not cause an unreadable error."""
    case = REFERENCES[layout]()
    chosen = case.inputs[-1]
    num_items = len(build(case, write(tmp_path, chosen, chosen.data)).items)
    problems = []
    for seed in range(100):
        rng = Random(f"{layout} {seed}")
        path = rng.choice(sorted(chosen.fixed))
        mutation = rng.choice(rng.choice(OF_DOCUMENTS))
        fixed = {**chosen.fixed, path: mutation(rng, chosen.fixed[path])}
        built = build(case, write(tmp_path, replace(chosen, fixed=fixed), chosen.data))
        if built.error:
            new_problems = problems_of_error(built.error, [Unit(Path(path).name, (), None, ERROR)])
        else:
            rows = [item for item in built.items if isinstance(item, dict)]
            new_problems = [problem for row in rows for problem in problems_of_row(row, case.source)]
            if len(built.items) != num_items:
                new_problems.append(f"{len(built.items)} items of {num_items} records")
        problems += [f"seed {seed}, {mutation.__name__} of {path}: {problem}" for problem in new_problems]
    assert not problems, "\n".join(problems[:25])


def check(layout: str, case: Case, folder: Path) -> None:
    """Apply the case's mutations, build each, and compare with the oracle and with the undamaged file's items."""
    only = os.environ.get("CB_MUTATIONS")
    seeds = [int(seed) for seed in only.split(",")] if only else range(case.count)
    before = [records_of(case, chosen, folder) for chosen in case.inputs]
    outcomes: Counter[str] = Counter()
    mutation_counts: Counter[str] = Counter()
    problems = []
    for seed in seeds:
        rng = Random(f"{layout} {seed}")
        chosen = case.inputs[seed % len(case.inputs)]
        mutation = rng.choice(rng.choice(case.mutations))
        data = mutation(rng, chosen.data)
        units = case.units(chosen.records(data))
        data_dir = write(folder, chosen, data)
        built = build(case, data_dir)
        new_problems = check_built(built, units, before[seed % len(case.inputs)], case.source)
        if seed % 40 == 0 or (seed % 4 == 0 and mutation in (mutate.repeated_line, mutate.empty_file)):
            new_problems += problems_of_public(built, prepare(case, data_dir), stream(case, data_dir))
        problems += [f"seed {seed}, {mutation.__name__}: {problem}" for problem in new_problems]
        mutation_counts[mutation.__name__] += 1
        outcomes += count_outcomes(built, units, before[seed % len(case.inputs)])
    logger.info("%s: %d mutations %s, outcomes %s", layout, len(seeds), dict(mutation_counts), dict(outcomes))
    assert not problems, f"{len(problems)} of {len(seeds)} mutations\n" + "\n".join(problems[:25])
    if not only:
        assert outcomes["undetermined"] <= len(seeds) / 10
        assert min(outcomes[outcome] for outcome in ("untouched", "verdict", "error")) > 0


def records_of(case: Case, chosen: Input, folder: Path) -> dict[str, Item]:
    """Content of each record of the undamaged file -> its item."""
    built = build(case, write(folder, chosen, chosen.data))
    units = case.units(chosen.records(chosen.data))
    assert built.error is None
    assert all(unit.is_determined for unit in units)
    assert problems_of_items(built.items, units, {}, case.source) == []
    contents = [unit.content for unit in units if unit.outcomes != SILENT]
    return dict(zip(contents, built.items, strict=True))


def check_built(built: Built, units: list[Unit], before: dict[str, Item], source: str) -> list[str]:
    if built.error:
        return problems_of_error(built.error, units)
    missed = [f"{unit.file}:{unit.places}: must be an error" for unit in units if unit.outcomes == ERROR]
    return missed or problems_of_items(built.items, units, before, source)


def count_outcomes(built: Built, units: list[Unit], before: dict[str, Item]) -> Counter[str]:
    """Count a mutation by its outcome; it is `undetermined` if the oracle allows several."""
    touched = [unit for unit in units if unit.content not in before and unit.outcomes != SILENT]
    counts = Counter({"undetermined": not all(unit.is_determined for unit in touched)})
    if built.error:
        counts["error"] += 1
    elif not touched:
        counts["untouched"] += 1
    elif all(outcome.startswith("drop:") for unit in touched for outcome in unit.outcomes):
        counts["drop"] += 1
    else:
        counts["verdict"] += 1
    return counts
