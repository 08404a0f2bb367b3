"""Two processes on the CPU give the same curve as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.trainers.two_processes import DDP_LOSSES, LOSSES, RECORDS, curve, evaluation, trained, trainer_of


REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Curves of two processes, with DDP as the trainer runs it and with FSDP2, which Accelerate has for GPUs only."""
    folder = tmp_path_factory.mktemp("two-processes")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(str(REPOSITORY / "tests" / "trainers" / "two_processes.py"), str(folder)),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("ddp", "fsdp2", "evaluation")}


@pytest.mark.parametrize("loss", DDP_LOSSES)
def test_ddp_gives_the_curve_of_one_process(results, loss, tmp_path):
    single = trained(trainer_of(tmp_path, loss, gradient_accumulation_steps=2))
    assert len(single) == len(results["ddp"][loss]) == 3
    for one, two in zip(single, results["ddp"][loss], strict=True):
        for key in one:
            if key.startswith(("loss", "grad_norm", "cosine", "distance", "coefficient", "entropy", "learning_rate")):
                assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("records", RECORDS)
def test_rows_are_evaluated_once_by_two_processes(results, records, tmp_path):
    single = evaluation(tmp_path, records)
    for key in single:
        if key.startswith(("eval_loss", "eval_cosine", "eval_distance", "eval_entropy")):
            assert results["evaluation"][str(records)][key] == pytest.approx(single[key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("loss", LOSSES)
def test_fsdp2_gives_the_curve_of_one_process(results, loss, tmp_path):
    single = curve(trainer_of(tmp_path, loss, gradient_accumulation_steps=2), 2, rank=None)
    assert results["fsdp2"][loss] == pytest.approx(single, rel=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_launch_configs_are_read_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = REPOSITORY / "recipes" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[name]
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "bf16"
