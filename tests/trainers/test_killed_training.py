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
        number = result["kill"]["signal"]
        # A shell shows both as 128 + signal
        assert result["status"] == (-number if number == signal.SIGKILL else 128 + number), result
        assert result["broken"] == [], result
        assert result["resumed"] == 0, result["log"]
        # What a temporary name begins with is gone, too: `files` has every name in the folder
        assert {name: result[name] for name in whole} == whole, result["kill"]


def test_a_training_killed_while_it_writes_resumes_to_the_same_adapter(run_killed):
    moments = random.Random(24)
    kills = [{"signal": int(number), "write": moments.uniform(0.1, 1)} for number in SIGNALS]
    check(run_killed(kills, timeout=400))


@pytest.mark.slow
def test_forty_kills_give_forty_identical_adapters(run_killed):
    moments = random.Random(2024)
    kinds = [("write", SIGNALS[i % 3]) if i % 2 else ("time", SIGNALS[i // 2 % 3]) for i in range(40)]
    kills = [{"signal": int(number), kind: moments.random()} for kind, number in kinds]
    results = run_killed(kills, timeout=3600)
    check(results)
    assert len(results["killed"]) == 40


@pytest.mark.slow
def test_a_training_of_two_processes_is_killed_and_resumed(tmp_path):
    """Process 1 is killed while process 0 has written its files: no checkpoint appears, and the last one serves."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = str(REPOSITORY / "tests" / "trainers" / "two_killed_processes.py")
    statuses = {}
    for part in ("killed", "resumed"):
        result = subprocess.run(
            [*launch, program, str(tmp_path), part],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        statuses[part] = result.returncode
    assert statuses["killed"] != 0 and statuses["resumed"] == 0, result.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    ddp = results["ddp"]
    assert set(ddp["left"]) <= {"checkpoint", ".checkpoint"} and ddp["resumed_from"] == "checkpoint-1"
    assert ddp["same_weights"] and ddp["curves"][0] == ddp["curves"][1] and len(ddp["curves"][1]) == 1
    assert ddp["run"] == ["checkpoint-3"], "one is kept, and nothing half-written"
    of_each_process = {f"{name}_{rank}.pth" for name in ("rng_state", "log_sums") for rank in (0, 1)}
    assert of_each_process < set(ddp["checkpoint"])
    for state_dict_type in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        fsdp2 = results[state_dict_type]
        assert fsdp2["fault"] is None and fsdp2["moved"] and fsdp2["restored"] and fsdp2["run"] == ["checkpoint-1"]
        assert of_each_process < set(fsdp2["checkpoint"])
