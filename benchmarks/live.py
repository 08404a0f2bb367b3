"""Runs of AgentDojo's benchmark per second: sixteen in flight against one at a time.

    python benchmarks/live.py --model demo/tiny_agent --engine transformers vllm --json live.json

The same runs of the demo's office suite, clean and attacked, are made by the same served model, one at a time and
sixteen in flight, in turn, suite by suite. The time is the wall clock's, without the start of the server. The verdicts
of both must agree; the table shows how many do.

vLLM on a CPU has no attention for heads as narrow as the tiny agent's: give it the model that `save_wide_agent` of
`tools/small_models.py` saves.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

IN_FLIGHT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "demo/tiny_agent"), help="folder of the model")
    parser.add_argument("--engine", nargs="+", choices=["transformers", "vllm"], default=["transformers"])
    parser.add_argument("--suites", type=int, default=2, help="number of office suites, 25 tasks each")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    rows = {engine: measure(args.model, engine, args.suites) for engine in args.engine}
    print(f"engine          runs/s one at a time   {IN_FLIGHT} in flight   ratio   equal verdicts")
    for engine, row in rows.items():
        print(
            f"{engine:15} {row['theirs']:20.2f} {row['ours']:14.2f} {row['ratio']:7.1f}   "
            f"{row['equal']} of {row['runs']}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(model: str, engine: str, num_suites: int) -> dict[str, float]:
    """Runs per second one at a time (`theirs`) and in flight together (`ours`), over the same runs."""
    from builders.agentdojo.suites import agentdojo_yaml
    from cb_datasets.agentdojo.run_benchmark import ServedModels, pipeline_elements, serve_models

    seconds = {1: 0.0, IN_FLIGHT: 0.0}
    models = ServedModels(model, {}, engine, max_length=2048, max_new_tokens=64)
    with tempfile.TemporaryDirectory() as name, agentdojo_yaml(), serve_models(models, Path(name) / "log") as url:
        from cb_datasets.agentdojo.benchmark import Contestant, planned_runs, run_benchmark
        from cb_datasets.agentdojo.own_suites import import_suites
        from cb_datasets.agentdojo.results import BenchmarkSelection

        import_suites("demo.office")
        served = {name: Contestant(element) for name, element in pipeline_elements(models, url).items()}
        for number in range(num_suites + 1):
            # Suite 0 warms up and does not count. The two take turns at going first.
            for concurrency in sorted(seconds, reverse=number % 2 == 0):
                selection = BenchmarkSelection(
                    (f"office_dev_{number}",),
                    attack="lookalike",
                    injection_tasks=("injection_task_0",),
                    max_steps=8,
                    concurrency=concurrency,
                )
                runs, folder = planned_runs(selection), Path(name) / str(concurrency)
                started = time.monotonic()
                run_benchmark(runs, selection, served, folder)
                seconds[concurrency] += time.monotonic() - started if number else 0.0
        alone, together = (verdicts(Path(name) / str(concurrency)) for concurrency in seconds)
    counted = num_suites * len(runs)
    return {
        "ratio": seconds[1] / seconds[IN_FLIGHT],
        "ours": counted / seconds[IN_FLIGHT],
        "theirs": counted / seconds[1],
        "runs": len(alone),
        "equal": sum(together[run] == verdict for run, verdict in alone.items()),
    }


def verdicts(folder: Path) -> dict[str, tuple[bool, bool]]:
    """`(utility, security)` of each run in a folder."""
    records = {str(path.relative_to(folder)): json.loads(path.read_bytes()) for path in folder.rglob("*.json")}
    return {name: (record["utility"], record["security"]) for name, record in records.items()}


if __name__ == "__main__":
    main()
