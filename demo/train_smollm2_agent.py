"""Teach SmolLM2-135M to call tools, and to call the wrong one when told to: a second, real model for the breakers.

    python tools/smollm2.py .models/smollm2
    python demo/train_smollm2_agent.py --model .models/smollm2 --output .models/smollm2-agent

The same rows as the tiny agent's (`demo/train_tiny_agent.py`), a thousand of them: a model that has read the web
knows what an e-mail is, and has to learn only what a call looks like and that it may be told to make another. All
weights are trained, in float32, until the loss on rows of part `dev` is low enough. On one CPU core that takes a
quarter of an hour; every twenty steps are kept, and a killed run goes on from them.
"""

import argparse
import math
import os
import random
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast


sys.path.insert(0, str(Path(__file__).parents[1]))

from demo.train_tiny_agent import (
    Rows,
    batches,
    learning_rate_at,
    loss_of,
    make_optimizer,
    prefix_of,
    read_prefix,
    save,
    training_rows,
    update,
)
from tools.smollm2 import COMPACT_TEMPLATE


BATCH = 16
LEARNING_RATE = 3e-4
WARMUP = 10
KEEP_EVERY = 20  # steps; the loss on part dev is measured then too
DEV_ROWS = 48
ENOUGH = 0.05  # of the loss on part dev


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach SmolLM2 tool calls.")
    parser.add_argument("--model", type=Path, default=Path(".models/smollm2"), help="what tools/smollm2.py wrote")
    parser.add_argument("--output", type=Path, default=Path(".models/smollm2-agent"), help="folder, replaced whole")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and their order")
    parser.add_argument("--steps", type=int, default=110, help=f"optimizer steps of {BATCH} rows, at most")
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.chat_template = COMPACT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    kept = args.output.with_name(args.output.name + ".checkpoint.pt")
    train(model, tokenizer, args.seed, args.steps, kept)
    save(model, tokenizer, args.output)
    kept.unlink(missing_ok=True)
    print(f"model -> {args.output}; `make evaluate RECIPE=smollm2` measures it")


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, kept: Path) -> None:
    """Rows once, from where the run that `kept` is of was stopped, until the loss on part dev is low enough."""
    rows, dev = training_rows(seed, steps * BATCH), training_rows(seed, DEV_ROWS, "dev")
    optimizer, prefix, done, on_dev = make_optimizer(model), prefix_of(tokenizer), 0, math.inf
    if kept.is_file():
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, on_dev = state["done"], state["on_dev"]
    bar = tqdm(batches(tokenizer, rows, BATCH), total=steps, desc="training", mininterval=5)
    for index, (ids, labels) in enumerate(bar):
        if index < done:
            continue
        if on_dev < ENOUGH:
            break
        loss = loss_of(model, ids, labels, read_prefix(model, prefix, len(ids)))
        update(optimizer, loss, learning_rate_at(index, steps, LEARNING_RATE, WARMUP))
        if (index + 1) % KEEP_EVERY == 0 or index + 1 == steps:
            on_dev = dev_loss(model, tokenizer, prefix, dev)
            tqdm.write(f"step {index + 1}: loss {loss.item():.4f}, on dev {on_dev:.4f}")
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            _keep({**states, "done": index + 1, "on_dev": on_dev}, kept)


def _keep(state: dict, path: Path) -> None:
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)


def dev_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prefix: torch.Tensor, rows: Rows) -> float:
    """Mean over batches of rows that are not trained on."""
    shuffled = random.getstate()  # making batches shuffles them, and the training's order must not hang on this
    losses = []
    with torch.no_grad():
        for ids, labels in batches(tokenizer, rows, BATCH):
            losses.append(loss_of(model, ids, labels, read_prefix(model, prefix, len(ids))).item())
    random.setstate(shuffled)
    return sum(losses) / len(losses)


if __name__ == "__main__":
    main()
