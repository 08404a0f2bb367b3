"""Program that each of the two processes of `test_distributed.py` runs.

torchrun --nproc_per_node 2 two_processes.py FOLDER     writes ddp.json and fsdp2.json, the curves of rank 0, and
                                                        evaluation.json, the losses of rows to evaluate on
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.trainers.conftest import build_trainer, make_attacked_rows, make_tokenizer
from trainers import CircuitBreakerTrainer
from trainers.objective.hidden_states import get_decoder


STEPS = 3

LOSSES: dict[str, dict[str, Any]] = {
    "reference": {"preset": "reference", "target_layers": [1, 2], "lora_b_init_std": 0.1, "rr_weight": 2.0},
    "selective": {"preset": "selective", "lora_b_init_std": 0.1, "logits_chunk_size": 7},
}

# With DDP only: FSDP2 refuses the adversary.
DDP_LOSSES = LOSSES | {
    "adversary": LOSSES["selective"] | {"adversary_steps": 2, "adversary_rate": 1.0, "adversary_warmup": 0.0}
}


# Records to evaluate on: they are 3 and 7 batches, so that one process has a batch fewer than the other.
RECORDS = (1, 5)


def trainer_of(folder: Path, loss: str, **options: Any) -> CircuitBreakerTrainer:
    return build_trainer(
        **DDP_LOSSES[loss],
        output_dir=str(folder / "run"),
        train_dataset=make_attacked_rows(records=6),
        processing_class=make_tokenizer(),
        max_steps=STEPS,
        retain_batch_size=4,
        per_device_train_batch_size=2,
        **options,
    )


def trained(trainer: CircuitBreakerTrainer) -> list[dict[str, float]]:
    """Log entries of `train`."""
    trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def curve(trainer: CircuitBreakerTrainer, processes: int, rank: int | None) -> list[float]:
    """
    Losses of a training loop written out: the mean over the micro-batches of a step, of which each process has one.

    Without a rank, this process computes all micro-batches.
    """
    batches = list(trainer._make_batch_sampler())[: STEPS * processes]
    parameters = [value for value in trainer.model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for step in range(STEPS):
        trainer.model.train()
        trainer.state.global_step, trainer.state.logging_steps = step, 1
        micro = [
            trainer.data_collator([trainer.train_dataset[row] for row in batch])
            for batch in batches[step * processes : (step + 1) * processes]
        ]
        items = torch.stack([inputs["num_items"] for inputs in micro]).mean(0)
        total = torch.zeros(())
        for inputs in micro if rank is None else [micro[rank]]:
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=items)
            # FSDP2 averages gradients over the processes
            (loss / (processes if rank is None else 1)).backward()
            total += loss.detach() / processes
        if rank is not None:
            torch.distributed.all_reduce(total)
        losses.append(total.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def evaluation(folder: Path, records: int) -> dict[str, float]:
    """Metrics of rows in batches of two of each set."""
    rows = make_attacked_rows(records, split="eval")
    return trainer_of(folder, "selective", eval_dataset=rows, per_device_eval_batch_size=2).evaluate()


def shard(model: nn.Module) -> None:
    """FSDP2 with the groups that Accelerate makes: decoder layers, embeddings, norm with LM head, and the rest."""
    from torch.distributed.fsdp import fully_shard

    decoder = get_decoder(model)
    for layer in decoder.layers:
        fully_shard(layer)
    fully_shard(decoder.embed_tokens)
    fully_shard([decoder.norm, model.get_output_embeddings()], reshard_after_forward=False)
    fully_shard(model)


def main(folder: Path) -> None:
    results: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp2": {}, "evaluation": {}}
    for loss in DDP_LOSSES:
        results["ddp"][loss] = trained(trainer_of(folder, loss))
    for records in RECORDS:
        results["evaluation"][str(records)] = evaluation(folder, records)
    for loss in LOSSES:
        trainer = trainer_of(folder, loss)
        if loss == "selective":
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        shard(trainer.model)
        trainer.is_fsdp_enabled = True  # as Accelerate would have it
        trainer.data_collator.join_forwards = False
        results["fsdp2"][loss] = curve(trainer, 2, torch.distributed.get_rank())
    if torch.distributed.get_rank() == 0:
        for name, result in results.items():
            (folder / f"{name}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
