"""Overhead of the path from prompts to durable shards, relative to the model itself.

    python tools/smollm2.py .models/smollm2
    python benchmarks/generation_overhead.py --model .models/smollm2 --json overhead.json

The same prompts go through a bare `LLM.generate`, from token ids to token ids, and through `complete`, which renders,
encodes, generates, decodes, encodes again to compare, and writes a Parquet shard that survives a `kill -9`. Both use
one engine in this process and alternate every hundred prompts, each time with an empty prefix cache. Processor time of
all threads is measured; the interval is Student's t over the blocks of a hundred. Ratios are ours to theirs: 1.02 is
2 % more than the bare call. On a busy machine the engine's own time varies by more than that between blocks, so a
second ratio divides our time by the engine's time within it.
"""

import argparse
import copy
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset
    from vllm import LLM

    from cb_datasets.generation import Sampling
    from cb_datasets.generation.vllm_backend import VllmBackend

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# The engine in this process, so that its work is counted; what it needs on a CPU.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 19: 2.09, 29: 2.05}

# Prompts in a turn.
TURN = 100


@dataclasses.dataclass
class Turn:
    """Processor seconds of both paths over the same prompts, and those of ours that the engine took."""

    bare: float
    ours: float
    engine: float


class TimedEngine:
    """An engine, and the processor seconds that its calls took."""

    def __init__(self, engine: "LLM") -> None:
        self.engine = engine
        self.seconds = 0.0

    def generate(self, *args: object, **options: object) -> list:
        started = time.process_time()
        done = self.engine.generate(*args, **options)
        self.seconds += time.process_time() - started
        return done


def measure(model: str, turns: int, max_new_tokens: int) -> list[Turn]:
    """Both paths in turn, after one turn that is not counted."""
    from builders import load_source
    from cb_datasets.generation import Sampling
    from cb_datasets.generation.vllm_backend import VllmBackend
    from cb_datasets.sets.prompts import prompts_for_task

    prompts = prompts_for_task(load_source("lookalike")["train"], "tool_flip").select(range(turns * TURN))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    backend = VllmBackend(model, max_length=2048)
    take_turn(prompts.select(range(TURN)), backend, sampling, bare_first=True)
    measured = []
    for number in range(turns):
        rows = prompts.select(range(number * TURN, (number + 1) * TURN))
        # Whichever goes first warms the processor for the other; so they take turns at that, too.
        measured.append(take_turn(rows, backend, sampling, bare_first=number % 2 == 0))
        print(f"turn {number}: bare {measured[-1].bare:.1f} s, ours {measured[-1].ours:.1f} s", flush=True)
    return measured


def take_turn(prompts: "Dataset", backend: "VllmBackend", sampling: "Sampling", bare_first: bool) -> Turn:
    """The same prompts through both paths."""
    from cb_datasets.chat import encode_prompt
    from cb_datasets.generation import complete

    engine = backend._engine
    requests = [{"prompt_token_ids": encode_prompt(backend.tokenizer, prompt)} for prompt in prompts]
    parameters = [backend._sampling_params(sampling, 0, index) for index in range(len(prompts))]
    timed = TimedEngine(engine)
    watched = copy.copy(backend)
    watched._engine = timed

    def bare() -> None:
        engine.generate(requests, parameters, use_tqdm=False)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            complete(prompts, watched, sampling, Path(folder))

    seconds = {}
    for work in (bare, ours) if bare_first else (ours, bare):
        engine.reset_prefix_cache()
        started = time.process_time()  # of all threads
        work()
        seconds[work.__name__] = time.process_time() - started
    return Turn(**seconds, engine=timed.seconds)


def row_of(turns: list[Turn], theirs: str) -> dict[str, float]:
    """Ours to theirs: the mean ratio of the turns with its interval, and seconds a prompt."""
    ratios = [turn.ours / getattr(turn, theirs) for turn in turns]
    ratio = statistics.mean(ratios)
    half = STUDENT_T[len(turns) - 1] * statistics.stdev(ratios) / len(turns) ** 0.5
    ours, other = (statistics.mean(getattr(turn, name) for turn in turns) / TURN for name in ("ours", theirs))
    return {"ratio": ratio, "low": ratio - half, "high": ratio + half, "ours": ours, "theirs": other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a model with a known tool-call format")
    parser.add_argument(
        "--turns", type=int, default=10, choices=[n + 1 for n in STUDENT_T], help="hundreds of prompts"
    )
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()

    turns = measure(args.model, args.turns, args.max_new_tokens)
    rows = {"LLM.generate in its turn": row_of(turns, "bare"), "the engine within complete": row_of(turns, "engine")}
    print(f"complete, {TURN * len(turns)} prompts of about 800 tokens, {args.max_new_tokens} tokens written")
    print("against                        ms a prompt   ours     ratio [95 % interval]")
    for name, row in rows.items():
        interval = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        print(f"{name:28} {1000 * row['theirs']:13.1f} {1000 * row['ours']:6.1f}     {interval}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
