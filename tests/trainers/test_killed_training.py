"""A training that is killed resumes to the same adapter, curves and picture, wherever the kill hits."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cb_datasets.files import save_rows


REPOSITORY = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def run_killed(tmp_path_factory, rows, model_path):
    """Runs the tiny training, and again with each of these kills; returns the results."""

    def run(kills: list[dict], timeout: float) -> dict:
        folder = tmp_path_factory.mktemp("killed")
        save_rows(rows(split="train"), folder / "stage2" / "train", report={})
        flags = {
            "config": REPOSITORY / "recipes" / "demo-plain_rr.yaml",
            "model_name_or_path": model_path,
            "dataset_name": folder / "stage2",
            "max_steps": 7,
            "lora_dropout": 0.1,
            # Log entries that span a checkpoint, and steps after the last one
            "logging_steps": 4,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 2,
            "disable_tqdm": "true",
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        (folder / "flags.json").write_text(json.dumps(words))
        result = subprocess.run(
            [sys.executable, "-m", "tests.trainers.killed_training", str(folder), json.dumps(kills)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_DATASETS_CACHE": str(folder / "cache")},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        sys.stdout.write(result.stdout)  # the log of the kills, with `pytest -s`
        assert result.returncode == 0, result.stdout + result.stderr[-4000:]
        return json.loads((folder / "results.json").read_text())

    return run


def check(results: dict) -> None:
    whole = results["whole"]
    assert results["again"] == whole
    assert "train_loss" not in whole["curves"][-1] and "loss/rr" in whole["curves"][-1], "steps after the last entry"
    for result in results["killed"]:
        assert result["broken"] == [], result
        assert result["resumed"] == 0, result["log"]
        # What a temporary name begins with is gone, too: `files` has every name in the folder
        assert {name: result[name] for name in whole} == whole, result["kill"]


def test_a_training_killed_while_it_writes_resumes_to_the_same_adapter(run_killed):
    moments = random.Random(24)
    kills = [{"signal": int(number), "write": moments.uniform(0.1, 1)} for number in SIGNALS]
    results = run_killed(kills, timeout=400)
    check(results)
    # A shell shows these as 128 + signal
    assert [result["status"] for result in results["killed"]] == [-int(number) for number in SIGNALS]


@pytest.mark.slow
def test_forty_kills_give_forty_identical_adapters(run_killed):
    moments = random.Random(2024)
    kinds = [("write", SIGNALS[i % 3]) if i % 2 else ("time", SIGNALS[i // 2 % 3]) for i in range(40)]
    kills = [{"signal": int(number), kind: moments.random()} for kind, number in kinds]
    results = run_killed(kills, timeout=3600)
    check(results)
    assert len(results["killed"]) == 40
