"""Program that each of the two processes of `test_killed_training.py` runs.

torchrun --nproc_per_node 2 two_killed_processes.py FOLDER killed      a training of which one process is killed
torchrun --nproc_per_node 2 two_killed_processes.py FOLDER resumed     writes results.json
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin

from tests.trainers.two_processes import shard, trainer_of
from trainers import CircuitBreakerTrainer
from trainers.checkpoints import fault, sort_checkpoints


SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "logging_steps": 2}


def kill_at(trainer: CircuitBreakerTrainer, step: int) -> None:
    """Kill process 1 while it writes its part of the checkpoint of a step."""
    save = trainer._save_rng_state

    def save_or_die(folder: str) -> None:
        if trainer.state.global_step == step and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    trainer._save_rng_state = save_or_die


def curves(trainer: CircuitBreakerTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def weights(trainer: CircuitBreakerTrainer) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.parameters() if value.requires_grad]


def ddp(folder: Path) -> dict[str, Any]:
    left = sorted(path.name.split("-")[0] for path in (folder / "run").iterdir())
    resumed = trainer_of(folder, "selective", **SAVED)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer_of(folder / "whole", "selective", **SAVED)
    whole.train()
    same = all(torch.equal(one, other) for one, other in zip(weights(resumed), weights(whole), strict=True))
    [checkpoint] = sort_checkpoints(folder / "run")[0]
    return {
        "left": left,
        "resumed_from": Path(str(resumed._resumed_from)).name,
        "same_weights": same,
        "curves": [curves(resumed), curves(whole)],
        "run": sorted(path.name for path in (folder / "run").iterdir()),
        "checkpoint": sorted(path.name for path in checkpoint.iterdir()),
    }


def fsdp2(folder: Path, state_dict_type: str) -> dict[str, Any]:
    """One step written out, its checkpoint, and whether its weights come back. Accelerate has FSDP for GPUs only."""
    trainer = trainer_of(folder / state_dict_type, "selective", **SAVED)
    shard(trainer.model)
    trainer.is_fsdp_enabled = True
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=state_dict_type)
    trainer.create_optimizer_and_scheduler(3)
    trainer._tr_loss, trainer._globalstep_last_logged, trainer.state.global_step = torch.zeros(()), 0, 1
    for value in trainer.optimizer.param_groups[0]["params"]:
        value.grad = torch.ones_like(value)
    trainer.optimizer.step()
    saved = weights(trainer)
    trainer._save_checkpoint(trainer.model, None)
    checkpoint = trainer.output_folder / "checkpoint-1"
    trainer.optimizer.step()
    moved = any(
        not torch.equal(a.full_tensor(), b.full_tensor()) for a, b in zip(weights(trainer), saved, strict=True)
    )
    trainer._load_from_checkpoint(str(checkpoint), trainer.model)
    state.distributed_type, state.fsdp_plugin = DistributedType.MULTI_CPU, None
    pairs = list(zip(weights(trainer), saved, strict=True))
    return {
        "fault": fault(checkpoint),
        "moved": moved,
        "restored": all(torch.equal(one.full_tensor(), other.full_tensor()) for one, other in pairs),
        "checkpoint": sorted(path.name for path in checkpoint.iterdir()),
        "run": [path.name for path in trainer.output_folder.iterdir()],
    }


def main(folder: Path, part: str) -> None:
    if part == "killed":
        trainer = trainer_of(folder, "selective", **SAVED)
        kill_at(trainer, 2)
        trainer.train()
    results: dict[str, Any] = {"ddp": ddp(folder)}
    for state_dict_type in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        results[state_dict_type] = fsdp2(folder, state_dict_type)
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
