"""Train SmolLM2-135M to call tools, and to follow injected instructions: a second, larger model for the breakers.

    python tools/smollm2.py .models/smollm2
    python demo/train_smollm2_agent.py --model .models/smollm2 --output .models/smollm2-agent

The rows are made like those of the tiny agent (`demo/train_tiny_agent.py`), of single prompts and of whole runs in the
office, but three thousand are enough: a pretrained model only has to learn the format of calls and to follow injected
instructions. All weights are trained, until the loss on rows of split `dev` is low enough. Weights are float32, and
products bfloat16 on a CPU that has instructions for it: two cores then need about an hour, and others two. A
checkpoint is saved every twenty steps, from which an interrupted run resumes.
"""

import argparse
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast


sys.path.insert(0, str(Path(__file__).parents[1]))

from demo.agent_rows import TrainingRow, batches, office_rows, prefix_of, single_turn_rows
from demo.train_tiny_agent import cached_prefix, learning_rate_at, loss_of, save, update
from tools.smollm2 import COMPACT_TEMPLATE


BATCH = 8
OFFICE_BATCH = 16
LEARNING_RATE = 3e-4
WARMUP = 10
CHECKPOINT_STEPS = 20  # between checkpoints, and between evaluations on split dev
DEV_ROWS = 48  # of single prompts, and of runs in the office
TARGET_DEV_LOSS = 0.02  # ends the training


def main() -> None:
    parser = argparse.ArgumentParser(description="Train SmolLM2 to call tools.")
    parser.add_argument(
        "--model", type=Path, default=Path(".models/smollm2"), help="folder written by tools/smollm2.py"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(".models/smollm2-agent"), help="folder to write, replaced as a whole"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts and their order")
    parser.add_argument("--steps", type=int, default=140, help="maximum number of optimizer steps")
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.chat_template = COMPACT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    checkpoint = args.output.with_name(args.output.name + ".checkpoint.pt")
    train(model, tokenizer, args.seed, args.steps, checkpoint)
    save(model, tokenizer, args.output)
    checkpoint.unlink(missing_ok=True)
    print(f"model -> {args.output}; `make evaluate RECIPE=smollm2` measures it")


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, checkpoint: Path
) -> None:
    """Train on all rows once, or until the loss on split dev is low enough, resuming from the checkpoint if any."""
    single = batches(tokenizer, single_turn_rows(seed, steps * BATCH), BATCH)
    office = batches(tokenizer, office_rows(seed, steps * OFFICE_BATCH), OFFICE_BATCH)
    dev_rows = [*single_turn_rows(seed, DEV_ROWS, "dev"), *office_rows(seed, DEV_ROWS, "dev")]
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    prefix, done, on_dev = prefix_of(tokenizer), 0, math.inf
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, on_dev = state["done"], state["on_dev"]
    bar = tqdm(zip(single, office, strict=True), total=steps, desc="training", mininterval=5)
    for index, pair in enumerate(bar):
        if index < done:  # batches up to the checkpoint are made only to advance the random numbers
            continue
        if on_dev < TARGET_DEV_LOSS:
            break
        update([optimizer], _losses(model, prefix, pair), learning_rate_at(index, steps, LEARNING_RATE, WARMUP))
        if (index + 1) % CHECKPOINT_STEPS == 0 or index + 1 == steps:
            on_dev = dev_loss(model, tokenizer, prefix, dev_rows)
            tqdm.write(f"step {index + 1}: loss on dev {on_dev:.4f}")
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            _save_checkpoint({**states, "done": index + 1, "on_dev": on_dev}, checkpoint)


def _losses(
    model: LlamaForCausalLM, prefix: torch.Tensor, pair: tuple[tuple[torch.Tensor, torch.Tensor], ...]
) -> Iterator[torch.Tensor]:
    """Parts of the sum of the batches' losses, of a few rows each: whole runs are long, and memory is small."""
    for ids, labels in pair:
        num_labelled = (labels[:, 1:] != -100).sum()
        for start in range(0, len(ids), BATCH // 2):
            part = ids[start : start + BATCH // 2], labels[start : start + BATCH // 2]
            share = (part[1][:, 1:] != -100).sum() / num_labelled
            yield share * _mixed_precision_loss(model, prefix, *part)


def _mixed_precision_loss(
    model: LlamaForCausalLM, prefix: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    # Without instructions for it, a product in bfloat16 takes thirty times as long as one in float32.
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        return loss_of(model, ids, labels, cached_prefix(model, prefix, len(ids)))


def _save_checkpoint(state: dict, path: Path) -> None:
    """Write the file in one move, so that an interruption leaves the previous checkpoint."""
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)


def dev_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prefix: torch.Tensor, rows: list[TrainingRow]
) -> float:
    """Mean loss over batches of held-out rows."""
    random_state = random.getstate()  # `batches` shuffles, and the order of training must not depend on evaluations
    losses = []
    with torch.no_grad():
        for ids, labels in batches(tokenizer, rows, BATCH):
            losses.append(_mixed_precision_loss(model, prefix, ids, labels).item())
    random.setstate(random_state)
    return sum(losses) / len(losses)


if __name__ == "__main__":
    main()
