"""As many prompts as Fujitsu's B4 has records, from traces to the merged dataset, with the tiny agent.

    python benchmarks/b4_end_to_end.py --data data/b4_end_to_end --json b4.json

13,246 attacked look-alike prompts and their clean twins are asked, the completions labelled, checked, merged and
looked over once more, each step by the command that the Makefile runs. Processor seconds are those of the step's
process. The last ratio sets the first step, Ds, against the same prompts given as token ids to the model's backend:
nothing is rendered, labelled or kept there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# One thread is fastest for a model this small.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

MODEL = str(ROOT / "demo" / "tiny_agent")
PROMPTS = 13_246
MAX_NEW_TOKENS, BATCH_SIZE = 96, 128


class Step(NamedTuple):
    """One command: what it says at the end, wall and processor seconds."""

    name: str
    said: str
    wall: float
    processor: float


def make_traces(data: Path) -> None:
    """Look-alike traces with exactly `PROMPTS` attacked prompts to ask, and some to refuse and to chat about."""
    from builders import load_source
    from cb_datasets.files import save_rows

    # About two in a hundred records are degenerate, and dropped.
    sizes = {"train": {"tool_flip": 13_600, "refusal": 2_000, "chat": 2_000, "irrelevance": 500}}
    sizes["test"] = {"tool_flip": 400, "refusal": 100, "chat": 100, "irrelevance": 100}
    parts = load_source("lookalike", sizes=sizes)
    for side, part in (("train", "train"), ("eval", "test")):
        save_rows(parts[part], data / "traces" / side, {"rows": len(parts[part])})


def commands(data: Path) -> list[list[str]]:
    """The steps, as the Makefile has them."""
    traces, harmful, retain = data / "traces", data / "harmful" / "b4_flips", data / "retain"
    asked = ["--model", MODEL, "--work-dir", data / "completions", "--max-prompts", PROMPTS, "--max-eval-prompts", 100]
    asked += ["--max-new-tokens", MAX_NEW_TOKENS, "--batch-size", BATCH_SIZE]
    twins = retain / "b4_benign_twins"
    sets = [harmful, retain / "adversarial_safe", twins, retain / "refusals", retain / "chat"]
    quarantine, reports = ["--quarantine", data / "quarantine"], data / "reports"
    fill = ["--fill", "twin", "--twins", twins]
    written = ["--reports", reports, "--schemas", data / "schemas", "--min-dr-ratio", 1]
    kinds = [word for kind in ("benign_twins", "refusals", "chat") for word in ("--kinds", kind)]
    return [
        ["generate-ds", "--traces", traces, "--output", harmful, *asked],
        ["generate-dr", "--traces", traces, "--output", retain, *kinds, *asked],
        ["generate-adversarial-safe", "--traces", traces, "--output", retain / "adversarial_safe", *asked, *fill],
        ["validate", *sets, *quarantine, "--output", reports / "validation_report.json"],
        ["generate-eval", traces, "--output", data / "prompts", "--tasks", "tool_flip", "--tasks", "capability"],
        ["merge", *sets, "--prompts", data / "prompts", *quarantine, "--output", data / "stage2", *written],
        ["preflight", "--stage2", data / "stage2", "--model", MODEL, "--output", reports / "preflight.json"],
    ]


def run_step(name: str, *arguments: object) -> Step:
    """Run one command and time it; its progress goes to the terminal."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "cb_datasets.cli", name, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout}")
    said = [
        line.split(" -> ")[0] for line in done.stdout.splitlines() if line.startswith((name, "harmful/", "retain/"))
    ]
    return Step(name, "; ".join(said), wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def bare_seconds(data: Path) -> float:
    """Processor seconds that the model's backend takes for the prompts of Ds, as token ids."""
    from cb_datasets.chat import encode_prompt
    from cb_datasets.files import load_rows
    from cb_datasets.generation import Sampling
    from cb_datasets.generation.transformers_backend import TransformersBackend
    from cb_datasets.sets.prompts import prompts_for_task
    from cb_datasets.splits import choose

    backend = TransformersBackend(MODEL, batch_size=BATCH_SIZE)
    prompts = choose(prompts_for_task(load_rows(data / "traces" / "train"), "tool_flip"), PROMPTS, 0)
    ids = [encode_prompt(backend.tokenizer, prompt) for prompt in prompts]
    sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=MAX_NEW_TOKENS)
    started = time.process_time()
    for start in range(0, len(ids), 100):  # a shard's worth at a time
        backend.generate(ids[start : start + 100], sampling, start)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    data = args.data.absolute()
    if data.exists():
        parser.error(f"{data} is there already: name a new folder")

    make_traces(data)
    steps = [run_step(*map(str, command)) for command in commands(data)]
    bare = bare_seconds(data)
    total = sum(step.processor for step in steps)
    print("step                         wall s   processor s   share   what it says")
    for step in steps:
        print(f"{step.name:26} {step.wall:8.1f} {step.processor:13.1f} {step.processor / total:7.1%}   {step.said}")
    print(f"{'all':26} {sum(step.wall for step in steps):8.1f} {total:13.1f}")
    ratio = steps[0].processor / bare
    print(f"generate-ds against the backend alone: {steps[0].processor:.1f} s / {bare:.1f} s = {ratio:.2f}")
    if args.json:
        rows = {
            step.name: {"ratio": step.processor / total, "ours": step.processor, "theirs": total} for step in steps
        }
        rows["generate-ds against the backend alone"] = {"ratio": ratio, "ours": steps[0].processor, "theirs": bare}
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
