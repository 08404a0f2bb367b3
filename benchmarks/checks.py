"""Throughput of rules, gates, merge and preflight, and whether memory stays flat as the number of samples grows.

    python benchmarks/checks.py --tokenizer .tokenizers/llama-3.1 --json checks.json

The samples are look-alike prompts as in the demo, with distinct words and completions written by rule: flips with
their two siblings, refusals and chat. A tenth is held out, one in a hundred is broken and one in a hundred duplicated.
Every step runs in one process of its own, on a tenth of the rows and on all of them. Rates are per second of processor
time, which other work on the machine does not change; a step that uses two cores is charged for both.

The rules are compared with `jsonschema.validate` of the call alone, which parses the schema for every row. Preflight
is compared with the bare tokenizer on the rendered text, the least that encoding the rows can take. The two alternate
on the same rows.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the rows that tests have too
SET_NAMES = (
    "harmful/b4_flips",
    "retain/adversarial_safe",
    "retain/b4_benign_twins",
    "retain/refusals",
    "retain/chat",
    "retain/more_chat",
)
PREFLIGHT_ROWS, TURN_ROWS = 3000, 250
RULES_ROWS = 30_000


class Measured(NamedTuple):
    """One job: rows, seconds, seconds of processor time, those of what it stands beside, peak memory in MiB."""

    rows: int
    seconds: float
    processor_seconds: float
    their_seconds: float
    memory: float

    @property
    def speed(self) -> float:
        return self.rows / self.processor_seconds

    @property
    def their_speed(self) -> float:
        return self.rows / self.their_seconds


# ---------------------------------------------------------------------------------------------------------------------
# The samples


def write_samples(folder: Path, rows: int) -> None:
    """Write about `rows` samples as sets, and evaluation prompts, a few thousand rows in memory at a time."""
    from contextlib import ExitStack

    import pyarrow

    from cb_datasets.files import ROWS_FILE, parquet_writer, save_rows
    from cb_datasets.row_groups import STREAM_ROWS
    from cb_datasets.sample import SAMPLE_FEATURES
    from cb_datasets.sets.prompts import prompts_for_task
    from cb_datasets.splits import choose

    traces = lookalike_traces(folder / "cache")
    for task in ("tool_flip", "refusal", "chat"):
        save_rows(choose(prompts_for_task(traces["test"], task), 400, 0), folder / "prompts" / task, {})
    train = list(traces["train"])
    samples = {name: sample_stream(train, name) for name in SET_NAMES}
    with ExitStack() as stack:
        for name in SET_NAMES:
            write = stack.enter_context(parquet_writer(folder / name / ROWS_FILE, SAMPLE_FEATURES))
            left = rows // len(SET_NAMES)
            while left > 0:
                some = list(islice(samples[name], min(left, STREAM_ROWS)))
                write(pyarrow.Table.from_pylist(some, schema=SAMPLE_FEATURES.arrow_schema))
                left -= len(some)


def lookalike_traces(cache: Path):
    import datasets

    from builders import load_source

    datasets.disable_progress_bars()
    return load_source("lookalike", cache_dir=cache)


def sample_stream(traces: list[dict], name: str) -> Iterator[dict]:
    """Samples of a set without end. The same number gives siblings in every set of attacked prompts."""
    from cb_datasets.sets.prompts import asked_prompt, clean_prompt, is_attacked, task_of

    if name in KINDS:
        attacked = [trace for trace in traces if is_attacked(trace)]
        flipped = [trace for trace in attacked if trace["expected_tool"] != trace["simulated_tool"]]
        prompts = [clean_prompt(trace) if name.endswith("twins") else asked_prompt(trace) for trace in flipped]
        tool = "simulated_tool" if name.startswith("harmful") else "expected_tool"
        texts = [call_text(trace[tool]) for trace in flipped]
        kind, seed = KINDS[name], "pairs"
    else:
        kind, text = TEXTS[name]
        task = "refusal" if kind == "refusal" else "chat"
        prompts = [asked_prompt(trace) for trace in traces if task_of(trace) == task]
        texts, seed = [text] * len(prompts), name
    for number in count():
        # One in a hundred is the one before, once more.
        draw = random.Random(f"{seed}/{number - (number % 100 == 1)}")
        chosen = draw.randrange(len(prompts))
        sample = sample_of(prompts[chosen], texts[chosen], name, kind, draw)
        yield sample | {"id": f"{sample['id']}/{number}"}


TEXTS = {
    "retain/refusals": ("refusal", "I can't help with @.<|eot_id|>"),
    "retain/chat": ("general_conversation", "That is so, @.<|eot_id|>"),
    "retain/more_chat": ("general_conversation", "So they say, @.<|eot_id|>"),
}
KINDS = {
    "harmful/b4_flips": "harmful_flip",
    "retain/adversarial_safe": "adversarial_safe",
    "retain/b4_benign_twins": "benign_twin",
}


def call_text(tool: str) -> str:
    """A call of a tool with fitting arguments; `@` is where the words of the row go."""
    from builders.fujitsu import B4_STANDARD

    [schema] = [each["function"]["parameters"] for each in B4_STANDARD["tools"] if each["function"]["name"] == tool]
    arguments = {}
    for key in schema.get("required", ()):
        allowed = schema["properties"][key]
        value = {"number": 7, "integer": 7, "boolean": True}.get(allowed["type"], "@")
        arguments[key] = allowed["enum"][0] if "enum" in allowed else value
    body = json.dumps({"name": tool, "parameters": arguments})
    return f"<|python_tag|>{body}<|eom_id|>"


def sample_of(prompt: dict, text: str, name: str, kind: str, draw: random.Random) -> dict:
    """The sample, with words of its own in request and completion."""
    from cb_datasets.formats import FORMATS
    from cb_datasets.sets.make_sample import make_sample
    from cb_datasets.splits import is_held_out
    from tools.fake_samples import sampled_provenance

    words = " ".join("".join(draw.choices("bdklmnrstvaeiou", k=7)) for _ in range(5))
    *first, request = prompt["messages"]
    at = min((span["start"] for span in prompt["injection"]), default=len(request["content"]))
    request = {**request, "content": f"{request['content'][:at]}{words}. {request['content'][at:]}"}
    moved = len(words) + 2
    spans = [{**span, "start": span["start"] + moved, "end": span["end"] + moved} for span in prompt["injection"]]
    pair = f"{prompt['pair']}/{words}"
    told = {"id": f"{prompt['id']}/{words}", "pair": pair, "group": words, "messages": [*first, request]}
    target = {**prompt["target"], "expected_calls": None, "goal_calls": None}
    completion = text.replace("@", words)
    sample = make_sample(
        {**prompt, **told, "injection": spans, "target": target},
        completion,
        id_prefix=name,
        split="eval" if is_held_out(words, 0.1) else "train",
        priority_class=kind,
        tool_format=FORMATS["llama3_json"],
        provenance=sampled_provenance(record_id=pair),
    )
    return sample | ({"assistant_raw": completion + "!"} if draw.random() < 0.01 else {})


# ---------------------------------------------------------------------------------------------------------------------
# In a process of its own


# Rows, and the processor seconds of two things that took turns.
Turns = tuple[int, tuple[float, float] | None]


def sets(folder: Path) -> list[Path]:
    return [folder / name for name in SET_NAMES]


def validate(folder: Path, tokenizer: Path) -> Turns:
    """Rules on every row, from Parquet to the quarantine."""
    from cb_datasets.checks.validate import validate as validate_sets

    report = validate_sets(sets(folder), folder / "quarantine", 0.95, num_proc=1)
    assert report["passed"] and all(part["quarantined"] for part in report["sets"].values())
    return sum(part["rows"] for part in report["sets"].values()), None


def gates(folder: Path, tokenizer: Path) -> Turns:
    """The counts of all sets, and the gates over them."""
    from cb_datasets.checks.gates import format_gates, harmful_gates, retain_gates
    from cb_datasets.checks.row_counts import RowCounts, count_profiles
    from cb_datasets.checks.thresholds import Thresholds
    from cb_datasets.files import stream_rows

    found, bad = RowCounts(), quarantined(folder)
    for path in sets(folder):
        found += count_profiles(stream_rows([path]), path.name, bad)
    for gate in (*format_gates(found, Thresholds()), *harmful_gates(found, Thresholds())):
        assert gate.passed, gate
    assert all(gate.passed for gate in retain_gates(found, Thresholds()))
    return found.total(), None


def merge(folder: Path, tokenizer: Path) -> Turns:
    """Merge, with the gates over what it wrote."""
    from cb_datasets.checks.thresholds import MergedThresholds
    from cb_datasets.files import count_rows
    from cb_datasets.merge.merge import MergeOptions
    from cb_datasets.merge.merge import merge as merge_sets

    outputs = {split: folder / "stage2" / split for split in ("train", "eval")}
    prompts = sorted((folder / "prompts").iterdir())
    options = (MergeOptions(), MergedThresholds())
    left_out = folder / "left_out.parquet"
    report = merge_sets(sets(folder), quarantined(folder), prompts, outputs, *options, left_out=left_out, num_proc=1)
    assert report["passed"], [gate for gate in report["gates"] if not gate["passed"]]
    print(report["drops"], file=sys.stderr)
    return count_rows(sets(folder)), None


def quarantined(folder: Path) -> set[str]:
    from cb_datasets.files import load_rows

    return set(load_rows(folder / "quarantine")["id"])


def rules(folder: Path, tokenizer: Path) -> Turns:
    """Rules on rows in memory, alternating with the call's schema alone, parsed for every row."""
    import jsonschema

    from cb_datasets.checks.rules import check
    from cb_datasets.files import stream_rows

    every = RULES_ROWS // len(SET_NAMES)
    rows = [row for path in sets(folder) for row in islice(stream_rows([path]), every)]

    def check_all(some: list[dict]) -> None:
        for row in some:
            check(row)

    def only_schema(some: list[dict]) -> None:
        for row in some:
            for call in row["tool_calls_structured"]:
                [schema] = [t["function"] for t in json.loads(row["tools"]) if t["function"]["name"] == call["name"]]
                jsonschema.validate(json.loads(call["arguments"]), schema["parameters"])

    return len(rows), in_turn(rows, check_all, only_schema)


def preflight(folder: Path, tokenizer: Path) -> Turns:
    """Preflight, in turn with encoding the rendered rows."""
    from transformers import AutoTokenizer

    from cb_datasets.chat import render_prompt
    from cb_datasets.checks.preflight import preflight as check_rows
    from cb_datasets.files import stream_rows
    from cb_datasets.template_probe import template_hash

    target = AutoTokenizer.from_pretrained(tokenizer)
    every = PREFLIGHT_ROWS // len(SET_NAMES)
    rows = [row for path in sets(folder) for row in islice(stream_rows([path]), every)]
    for row in rows:
        row["provenance"]["template_hash"] = template_hash(target)
    random.Random(0).shuffle(rows)
    texts = {row["id"]: render_prompt(target, row) for row in rows}

    def check_all(some: list[dict]) -> None:
        check_rows(some, target, 8192)

    def only_encode(some: list[dict]) -> None:
        for row in some:
            target(texts[row["id"]], add_special_tokens=False)
            target(row["assistant_raw"], add_special_tokens=False)

    return len(rows), in_turn(rows, check_all, only_encode)


def in_turn(
    rows: list[dict], ours: Callable[[list[dict]], None], theirs: Callable[[list[dict]], None]
) -> tuple[float, float]:
    """Processor seconds of two things that take turns on the same rows, a few hundred at a time."""
    taken = [0.0, 0.0]
    for start in range(0, len(rows), TURN_ROWS):
        for which, job in enumerate((ours, theirs)):
            before = time.process_time()
            job(rows[start : start + TURN_ROWS])
            taken[which] += time.process_time() - before
    return taken[0], taken[1]


JOBS: dict[str, Callable[[Path, Path], Turns]] = {
    job.__name__: job for job in (validate, gates, merge, rules, preflight)
}


def run_job(name: str, folder: Path, tokenizer: Path) -> Measured:
    """Run one job in this process."""
    import cb_datasets.merge.merge  # noqa: F401  (a part of starting up)

    start, start_of_processor = time.perf_counter(), time.process_time()
    rows, turns = JOBS[name](folder, tokenizer)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - start_of_processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measured(rows, seconds, *(turns or (processor_seconds, 0.0)), memory)


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def measure(name: str, folder: Path, tokenizer: Path) -> Measured:
    """Run one job in a process of its own, and print the line for it."""
    command = [sys.executable, __file__, "--job", name, "--folder", str(folder), "--tokenizer", str(tokenizer)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    measured = Measured(*json.loads(done.stdout))
    figures = (measured.rows, measured.seconds, measured.processor_seconds, measured.speed, measured.memory)
    print(f"{name:12}" + "".join(f"{figure:>12,.0f}" for figure in figures), flush=True)
    return measured


def compare(rows: int, tokenizer: Path, scratch: Path) -> dict[str, dict[str, float]]:
    """All figures by the name of their row; prints them as they come."""
    print(f"{'':12}{'rows':>12}{'seconds':>12}{'CPU s':>12}{'rows/CPU s':>12}{'peak MiB':>12}")
    figures = {}
    steps: dict[int, dict[str, Measured]] = {}
    for size in (rows // 10, rows):
        with tempfile.TemporaryDirectory(dir=scratch) as temporary:
            folder = Path(temporary)
            command = [sys.executable, __file__, "--write", str(size), "--folder", str(folder)]
            subprocess.run(command, cwd=ROOT, check=True)
            steps[size] = {name: measure(name, folder, tokenizer) for name in ("validate", "gates", "merge")}
            if size < rows:
                by_turns = {name: measure(name, folder, tokenizer) for name in ("rules", "preflight")}
    small, large = steps.values()
    figures["rules, samples/s, against jsonschema.validate alone"] = speeds(by_turns["rules"])
    figures["preflight, samples/s, against the bare tokenizer"] = speeds(by_turns["preflight"])
    for name in large:
        figures[f"{name}, samples/s, {rows:,} rows against a tenth"] = row(large[name].speed, small[name].speed)
        figures[f"{name}, peak MiB, {rows:,} rows against a tenth"] = row(large[name].memory, small[name].memory)
    return figures


def speeds(measured: Measured) -> dict[str, float]:
    return row(measured.speed, measured.their_speed)


def row(ours: float, theirs: float) -> dict[str, float]:
    return {"ratio": ours / theirs, "ours": ours, "theirs": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="samples of the large run")
    parser.add_argument(
        "--tokenizer", type=Path, default=ROOT / "demo" / "tiny_agent", help="the target's, for preflight"
    )
    parser.add_argument("--scratch", type=Path, help="folder on a disk with some gigabytes to spare")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_samples(options.folder, options.write)
        return
    if options.job:
        print(json.dumps(run_job(options.job, options.folder, options.tokenizer)))
        return
    rows = compare(options.rows, options.tokenizer.resolve(), options.scratch)
    print()
    for name, figures in rows.items():
        print(f"{name:56}{figures['ratio']:>8.2f}   {figures['ours']:,.0f} : {figures['theirs']:,.0f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
