"""Completions with Transformers: our decoding against `generate` on fixed batches.

    python tools/smollm2.py .models/smollm2
    python benchmarks/decoding.py --model .models/smollm2 --json decoding.json
    python benchmarks/decoding.py --model demo/tiny_agent

Look-alike prompts with B4's system prompt and tools, encoded beforehand, greedy. Theirs are prompts sorted by length
in batches of `--batch-size`, whose common prefix is prefilled once a batch: what the backend does for networks that
our decoding does not support. Both use one network in this process and take turns at the same prompts, and whichever
was second is first in the next turn. Processor time of all threads is measured. Ratios are theirs to ours: at 2 ours
completes twice as many prompts in a second. `tokens run` counts the tokens that pass through the network, those of
padding and of prefixes included.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from cb_datasets.generation import Sampling
    from cb_datasets.generation.backend import Completion
    from cb_datasets.generation.transformers_backend import TransformersBackend

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclasses.dataclass
class Run:
    """One path over the prompts of a turn."""

    processor: float
    wall: float
    tokens_run: int
    completions: "list[list[Completion]]"


def measure(
    model: str, turns: int, prompts_in_turn: int, batch_size: int, max_new_tokens: int
) -> "list[dict[str, Run]]":
    """Both paths in every turn."""
    from builders import load_source
    from cb_datasets.chat import encode_prompt
    from cb_datasets.generation import Sampling
    from cb_datasets.generation.transformers_backend import TransformersBackend
    from cb_datasets.sets.prompts import prompts_for_task

    rows = prompts_for_task(load_source("lookalike")["train"], "tool_flip").select(range(turns * prompts_in_turn))
    backend = TransformersBackend(model, batch_size=batch_size)
    prompts = [encode_prompt(backend.tokenizer, row) for row in rows]
    sampling = Sampling(max_new_tokens=max_new_tokens)
    for path in paths(backend, prompts[:2], Sampling(max_new_tokens=2)).values():
        path()
    measured = []
    for number in range(turns):
        both = paths(backend, prompts[number * prompts_in_turn : (number + 1) * prompts_in_turn], sampling)
        order = list(both) if number % 2 else list(both)[::-1]
        runs = {name: run(backend, both[name]) for name in order}
        measured.append(runs)
        print(", ".join(f"{name} {runs[name].processor:.1f} s" for name in both), flush=True)
    return measured


def paths(
    backend: "TransformersBackend", prompts: list[list[int]], sampling: "Sampling"
) -> "dict[str, Callable[[], list[list[Completion]]]]":
    return {
        "ours": lambda: backend.generate(prompts, sampling, 0),
        "theirs": lambda: backend._generate_in_batches(prompts, sampling),
    }


def run(backend: "TransformersBackend", path: "Callable[[], list[list[Completion]]]") -> Run:
    tokens_run = 0

    def count(_module: Any, inputs: tuple) -> None:
        nonlocal tokens_run
        tokens_run += inputs[0].numel()

    with backend.network() as network:
        handle = network.get_input_embeddings().register_forward_pre_hook(count)
    wall, processor = time.perf_counter(), time.process_time()
    completions = path()
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    handle.remove()
    return Run(processor, wall, tokens_run, completions)


def summary(measured: list[dict[str, Run]]) -> dict[str, Any]:
    """Ratios of theirs to ours by turn, and how many completions are equal token for token."""
    figures: dict[str, Any] = {}
    for name in ("processor", "wall", "tokens_run"):
        ours, theirs = ([getattr(turn[path], name) for turn in measured] for path in ("ours", "theirs"))
        ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
        median = statistics.median(ratios)
        figures[name] = {"ours": sum(ours), "theirs": sum(theirs), "ratio": median, "ratios": ratios}
    pairs = [
        (our.token_ids, their.token_ids)
        for turn in measured
        for [our], [their] in zip(turn["ours"].completions, turn["theirs"].completions, strict=True)
    ]
    figures["completions"] = len(pairs)
    figures["equal"] = sum(our == their for our, their in pairs)
    figures["tokens"] = sum(len(our) for our, _ in pairs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a model with a known tool-call format")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96, help="in a turn")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()

    figures = summary(measure(args.model, args.turns, args.prompts, args.batch_size, args.max_new_tokens))
    count = figures["completions"]
    print(f"{count} completions of {figures['tokens'] / count:.1f} tokens, {figures['equal']} of them equal")
    print("                          ours    theirs   ratio (median)  by turn")
    for name, unit in (("processor", "ms a prompt"), ("wall", "ms a prompt"), ("tokens_run", "a prompt")):
        scale = 1 if name == "tokens_run" else 1000
        ours, theirs = (scale * figures[name][path] / count for path in ("ours", "theirs"))
        by_turn = ", ".join(f"{ratio:.2f}" for ratio in figures[name]["ratios"])
        label, median = name.replace("_", " "), figures[name]["ratio"]
        print(f"{label:10} {unit:11} {ours:8.1f}  {theirs:8.1f}  {median:7.2f}        {by_turn}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
