"""Cost of a training step: a plain implementation of the published computation against ours, at the same loss.

    python benchmarks/train_step.py --json train_step.json                 two CPU cores, random models
    python benchmarks/train_step.py --preset llama-3.1-8b                  one GPU, random weights in bf16

The plain step follows the published code: a model truncated one layer above its last target layer, every row padded
to 1,024 tokens, the LM head on all tokens, hidden states of all layers stacked, both sets and both networks one after
another. Ours is `CircuitBreakerTrainer.compute_loss` on the same rows and weights; nothing is cached between steps.
The losses are compared. Each step runs in its own process, all steps in turn, and the fastest of the turns is
reported. Time is processor time and memory the peak of the process, with the model; on a GPU they are wall time and
the allocator's peak.

The ablation adds one switch after another. For the selective preset the plain step pads to 1,024 tokens, runs all
layers, computes all logits and multiplies by masks; it has half as many rows of each set, and as many again under
attack.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trainers import CircuitBreakerConfig, CircuitBreakerTrainer  # noqa: E402
from trainers.objective.hidden_states import get_decoder  # noqa: E402
from trainers.objective.terms import Plan  # noqa: E402


LENGTH = 1024  # positions of every row in the published code
STEP, STEPS = 75, 150  # a step at which neither coefficient is small


class Shape(NamedTuple):
    """A model with random weights, and the rows of a micro-batch."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    rows: int  # of each set


SHAPES = {
    "512": Shape(512, 1408, 16, 8, 4, 32_000, rows=4),
    "256": Shape(256, 704, 16, 8, 4, 32_000, rows=4),
    "llama-3.1-8b": Shape(4096, 14_336, 32, 32, 8, 128_256, rows=16),
}

# Switches of the trainer, one more in each row of the ablation.
OFF = dict.fromkeys(
    ["padding_free", "shared_prefix", "skip_layers", "masked_logits", "fused_lora", "fused_norms", "recompute_gates"],
    False,
)
ABLATION: dict[str, dict[str, Any]] = {
    "no LM head, states at the layers read": OFF,
    "+ breaker stops early": {**OFF, "skip_layers": True},
    "+ packed, no padding": {**OFF, "skip_layers": True, "padding_free": True},
    "+ shared beginnings": {**OFF, "skip_layers": True, "padding_free": True, "shared_prefix": True},
    "+ LoRA and norms in few passes, gates recomputed, chosen logits (ours)": {},
}

# Further switches on a GPU, for memory to spare and for Triton.
GPU_ABLATION: dict[str, dict[str, Any]] = {
    **ABLATION,
    "+ activations kept, not computed again": {"gradient_checkpointing": False},
    "+ Liger kernels": {"gradient_checkpointing": False, "use_liger_kernel": True},
}

# Waiting threads sleep and freed memory is returned to the system, so that the time and memory are those of the step.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}

# Dense bf16 peak of a device, in FLOP/s.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


# ---------------------------------------------------------------------------------------------------------------------
# Models and rows


def make_model(shape: Shape, device: str) -> PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=8192,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if device == "cuda" else torch.float32)


def lengths_of(mix: str, number: int) -> list[int]:
    """Lengths of rows: all full, all sharing 640 tokens, or as in real conversations (mean / longest about 0.35)."""
    if mix == "full":
        return [LENGTH] * number
    rng = np.random.default_rng(0)
    if mix == "prefix":
        return (640 + rng.integers(64, 129, size=number)).tolist()
    quantiles = (np.arange(number) + 0.5) / number
    lengths = (90 + 934 * quantiles**2.7).astype(int)
    lengths[-1] = LENGTH
    return rng.permutation(lengths).tolist()


def make_rows(mix: str, shape: Shape, selective: bool) -> Dataset:
    """Prepared rows of one micro-batch, of random tokens. Siblings share their prompts, as they do in real data."""
    rng = np.random.default_rng(1)
    prefix = rng.integers(10, shape.vocab_size, 640).tolist() if mix == "prefix" else []

    def tokens(number: int) -> list[int]:
        return rng.integers(10, shape.vocab_size, number).tolist()

    def row(name: str, set_name: str, priority_class: str, prompt: list[int], completion: list[int]) -> dict[str, Any]:
        n = len(prompt)
        return {
            "id": name,
            "pair": None,
            "set": set_name,
            "priority_class": priority_class,
            "input_ids": prompt + completion,
            "prompt_length": n,
            "answer_start": n,
            "injection": [[n - 20, n - 2]],
            "tool_call": [n, n + len(completion)],
            "tool_name": [n + 4, n + 7],
            "divergence": n + 4,
            "name_divergence": n + 4,
            "clean_ids": prompt[:-20] + completion if priority_class == "adversarial_safe" else [],
            "splice_ids": prompt + tokens(8) + completion[4:] if priority_class == "adversarial_safe" else [],
            "splice_start": n + 8,
            "hijack_ids": [],
            "slots": [],
            "redacted": False,
            "num_tokens": n + len(completion),
        }

    rows, lengths = [], lengths_of(mix, 2 * shape.rows)
    for i, length in enumerate(lengths[: shape.rows]):
        n = min(40, (length - len(prefix)) // 3)
        prompt = prefix + tokens(length - len(prefix) - n)
        rows.append(row(f"ds/{i}", "circuit_breaker", "harmful_flip", prompt, tokens(n)))
        if selective:
            rows.append(row(f"safe/{i}", "retain", "adversarial_safe", prompt, tokens(n)))
    for i, length in enumerate(lengths[shape.rows :]):
        n = (length - len(prefix)) // 3
        prompt = prefix + tokens(length - len(prefix) - n)
        rows.append(row(f"dr/{i}", "retain", "general_conversation", prompt, tokens(n)))
    return Dataset.from_list(rows)


def make_trainer(shape: Shape, mix: str, selective: bool, device: str, switches: dict[str, Any]):
    """The trainer of our step. The plain step uses its model and rows."""
    gpu = device == "cuda"
    args = CircuitBreakerConfig(
        output_dir="unused",
        preset="selective" if selective else "reference",
        # The plain step has the terms that all of its rows have; this one has rows of its own.
        stop_weight=0.0,
        lora_b_init_std=0.02,
        pad_to_multiple_of=LENGTH,
        max_steps=STEPS,
        per_device_train_batch_size=shape.rows,
        retain_batch_size=shape.rows * (1 + selective),
        use_cpu=not gpu,
        bf16=gpu,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **{"gradient_checkpointing": gpu, **switches},
    )
    trainer = CircuitBreakerTrainer(
        model=make_model(shape, device),
        args=args,
        train_dataset=make_rows(mix, shape, selective),
        processing_class=AutoTokenizer.from_pretrained(ROOT / "demo" / "tiny_agent"),
        peft_config=LoraConfig(r=16, lora_alpha=16),
    )
    trainer.model.train()
    # As `train` does before its first step
    if args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    if args.use_liger_kernel:
        apply_liger_kernel(trainer.model, None)
    trainer.accelerator.prepare_model(trainer.model)
    trainer.state.global_step, trainer.state.logging_steps = STEP - 1, 10**6
    return trainer


# ---------------------------------------------------------------------------------------------------------------------
# The plain steps


def padded(sequences: list[list[int]], device: str) -> dict[str, torch.Tensor]:
    """Rows padded to [`LENGTH`]."""
    input_ids = torch.zeros(len(sequences), LENGTH, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(sequences):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


def plain_reference(trainer: CircuitBreakerTrainer, rows: list[dict[str, Any]], device: str) -> torch.Tensor:
    """Algorithm 1 as the published code computes it."""
    model, decoder = trainer.model, get_decoder(trainer.model)
    targets, alpha = list(trainer.plan.target_layers), trainer.args.rr_weight
    layers = decoder.layers
    decoder.layers = layers[: max(targets) + 1]
    states = {}
    for name in ("retain", "circuit_breaker"):
        inputs = padded([row["input_ids"] for row in rows if row["set"] == name], device)
        with torch.no_grad(), model.disable_adapter():
            frozen = torch.stack(model(**inputs, output_hidden_states=True).hidden_states).float()
        adapted = torch.stack(model(**inputs, output_hidden_states=True).hidden_states).float()
        states[name] = adapted, frozen, inputs["attention_mask"]
    decoder.layers = layers
    adapted, frozen, mask = states["retain"]
    mask = mask[None, ..., None]
    retain = torch.norm(adapted * mask - frozen * mask, dim=-1, p=2).nanmean()
    adapted, frozen, mask = states["circuit_breaker"]
    cosine = F.cosine_similarity(adapted[targets], frozen[targets], dim=-1)
    breaker = (F.relu(cosine) * mask[None]).sum() / (mask.sum() * len(targets))
    return alpha * (1 - STEP / (2 * STEPS)) * breaker + alpha * STEP / (2 * STEPS) * retain


def plain_selective(trainer: CircuitBreakerTrainer, rows: list[dict[str, Any]], device: str) -> torch.Tensor:
    """The selective preset without optimizations: padded rows, all logits, masks by multiplication."""
    model = trainer.model
    harmful = [row for row in rows if row["set"] == "circuit_breaker"]
    safe = [row for row in rows if row["priority_class"] == "adversarial_safe"]
    chat = [row for row in rows if row["priority_class"] == "general_conversation"]

    def logits(sequences: list[list[int]], adapted: bool = True) -> torch.Tensor:
        inputs = padded(sequences, device)
        if adapted:
            return model(**inputs).logits.float()
        with torch.no_grad(), model.disable_adapter():
            return model(**inputs).logits.float()

    def mask(chosen: list[dict[str, Any]], start: Callable, end: Callable, decisive: Callable) -> torch.Tensor:
        positions = torch.zeros(len(chosen), LENGTH)
        for line, row in zip(positions, chosen, strict=True):
            line[start(row) - 1 : end(row) - 1] = 1
            line[[token - 1 for token in decisive(row)]] *= trainer.args.decision_weight
        return positions.to(device)

    def completion(chosen: list[dict[str, Any]]) -> torch.Tensor:
        def decisive(row: dict[str, Any]) -> list[int]:
            start, end = row["tool_name"]
            return [row["answer_start"], *range(start, end + 1)]

        return mask(chosen, lambda row: row["prompt_length"], lambda row: len(row["input_ids"]), decisive)

    def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        pair = student.log_softmax(-1), teacher.log_softmax(-1)
        return F.kl_div(*pair, reduction="none", log_target=True).sum(-1)

    def mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (values * weights).sum() / weights.sum()

    args = trainer.args
    ids = [row["input_ids"] for row in chat]
    retain = mean(divergence(logits(ids), logits(ids, adapted=False)), completion(chat))
    loss = args.retain_kl_weight * retain

    # The teacher's rows lack the injection: shift them until the completions are aligned
    teacher = logits([row["clean_ids"] for row in safe], adapted=False)
    shift = len(safe[0]["input_ids"]) - len(safe[0]["clean_ids"])
    student = logits([row["input_ids"] for row in safe])
    taught = mean(divergence(student, teacher.roll(shift, dims=1)), completion(safe))
    loss = loss + args.distill_weight * taught

    def next_tokens(sequences: list[list[int]]) -> torch.Tensor:
        return padded(sequences, device)["input_ids"].roll(-1, dims=1)

    ids = [row["splice_ids"] for row in safe]
    values = F.cross_entropy(logits(ids).transpose(1, 2), next_tokens(ids), reduction="none")
    name = safe[0]["tool_name"][1] - safe[0]["tool_name"][0] + 1  # and the token after it

    def decisive(row: dict[str, Any]) -> range:
        return range(row["splice_start"], row["splice_start"] + name)

    weights = mask(safe, lambda row: row["splice_start"], lambda row: len(row["splice_ids"]), decisive)
    loss = loss + args.splice_weight * mean(values, weights)

    ids = [row["input_ids"] for row in harmful]
    all_logits = logits(ids)
    target = all_logits.gather(-1, next_tokens(ids)[..., None])[..., 0]
    likely = (target - all_logits.logsumexp(-1)).exp()
    weights = mask(harmful, lambda row: row["tool_name"][0], lambda row: row["tool_name"][0] + 2, lambda row: [])
    return loss + args.unlikelihood_weight * mean(-torch.log1p(-likely), weights)


# ---------------------------------------------------------------------------------------------------------------------
# Measurements, each in its own process


class Measurement(NamedTuple):
    """One step: loss, seconds (processor time on a CPU), peak memory in MiB, tokens, and floating-point operations."""

    loss: float
    seconds: float
    memory: float
    tokens: int
    flops: float


def run_job(shape: str, mix: str, preset: str, variant: str) -> Measurement:
    """Measure one step in this process. `variant` is "plain" or a row of the ablation."""
    device = "cuda" if shape == "llama-3.1-8b" else "cpu"
    selective, gpu = preset == "selective", device == "cuda"
    sizes = SHAPES[shape]._replace(rows=SHAPES[shape].rows // (1 + selective))
    # The plain steps use the model of a trainer with all switches off, which has replaced none of its layers
    trainer = make_trainer(sizes, mix, selective, device, GPU_ABLATION.get(variant, OFF))
    rows = list(trainer.train_dataset)
    if variant == "plain":
        trainer.model.set_attn_implementation("sdpa")
        plain = plain_selective if selective else plain_reference

        def loss_of() -> torch.Tensor:
            return plain(trainer, rows, device)

    else:

        def loss_of() -> torch.Tensor:
            inputs = trainer._prepare_inputs(trainer.data_collator(rows))
            return trainer.compute_loss(trainer.model, inputs)

    synchronize = torch.cuda.synchronize if gpu else (lambda: None)
    clock = time.perf_counter if gpu else time.process_time
    seconds = []
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(5 if gpu else 1):
        trainer.model.zero_grad()
        synchronize()
        start = clock()
        loss = loss_of()
        loss.backward()
        synchronize()
        seconds.append(clock() - start)
    memory = (
        torch.cuda.max_memory_allocated() / 2**20 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    return Measurement(
        loss.item(), min(seconds), memory, sum(row["num_tokens"] for row in rows), flops(sizes, trainer.plan, rows)
    )


def measure_in_subprocess(job: tuple[str, str, str, str]) -> Measurement:
    """Measure one step in a new process."""
    output = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if output.returncode:
        raise SystemExit(f"{job} failed:\n{output.stderr}")
    return Measurement(**json.loads(output.stdout.strip().splitlines()[-1]))


def measure_in_fork(job: tuple[str, str, str, str]) -> Measurement:
    """Measure one step in a forked process, which saves the imports. They do not count in the GPU's memory anyway."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(run_job, *job).result()


def measure_all(jobs: list[tuple[str, str, str, str]], turns: int) -> dict[tuple[str, ...], Measurement]:
    """Measure all jobs in turn, several times, and return the fastest measurement of each."""
    best: dict[tuple[str, ...], Measurement] = {}
    for turn in range(turns):
        for job in jobs:
            print(f"turn {turn + 1}: {', '.join(job)}", file=sys.stderr, flush=True)
            try:
                measured = measure_in_fork(job) if job[0] == "llama-3.1-8b" else measure_in_subprocess(job)
            except torch.OutOfMemoryError:
                print("does not fit in the GPU's memory", file=sys.stderr)
                continue
            print(measured, file=sys.stderr, flush=True)
            if job not in best or measured.seconds < best[job].seconds:
                best[job] = measured
    return best


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def compare(best: dict[tuple[str, ...], Measurement]) -> dict[str, dict[str, float]]:
    """Time and memory of each job against those of the plain step on the same model and rows, one row for each."""
    table: dict[str, dict[str, float]] = {}
    for (shape, mix, preset, variant), ours in best.items():
        if variant == "plain" or (shape, mix, preset, "plain") not in best:
            continue
        plain = best[shape, mix, preset, "plain"]
        tolerance = 2e-2 if shape == "llama-3.1-8b" else 1e-5
        if abs(ours.loss - plain.loss) > tolerance * abs(plain.loss):
            raise SystemExit(
                f"{shape}, {mix}, {preset}, {variant}: the loss is {ours.loss}, but {plain.loss} in the plain step."
            )
        name = f"{shape}, {preset}, {mix}: {variant}"
        table[f"{name}, seconds"] = {
            "ours": ours.seconds,
            "theirs": plain.seconds,
            "ratio": plain.seconds / ours.seconds,
        }
        table[f"{name}, peak MiB"] = {
            "ours": ours.memory,
            "theirs": plain.memory,
            "ratio": ours.memory / plain.memory,
        }
    return table


def flops(shape: Shape, plan: Plan, rows: list[dict[str, Any]]) -> float:
    """Floating-point operations of a step on real tokens, with the reference preset.

    A forward of the frozen network, and a forward and backward of the adapted one, through the layers that the terms
    of each row need. Attention and the adapter's weights are left out, so that the utilization is a lower bound.
    """
    head_size = shape.hidden_size // shape.num_heads
    attention = 2 * shape.hidden_size**2 + 2 * shape.hidden_size * head_size * shape.num_kv_heads
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    layers_run = (max(plan.layers_run(term, "adapted") for term in plan.terms_of(row)) for row in rows)
    return sum(6.0 * row["num_tokens"] * layer * number for row, number in zip(rows, layers_run, strict=True))


def print_table(table: dict[str, dict[str, float]]) -> None:
    print(f"\n{'':82}{'ours':>10}{'plain':>10}{'ratio':>8}")
    for name, row in table.items():
        print(f"{name:82}{row['ours']:>10.2f}{row['theirs']:>10.2f}{row['ratio']:>8.2f}")


def print_gpu(best: dict[tuple[str, ...], Measurement]) -> None:
    """Print device, seconds, tokens per second, memory and, where the peak is known, MFU of each job."""
    device = torch.cuda.get_device_name(0)
    peak = next((value for name, value in PEAKS.items() if name in device), None)
    print(f"\n{device}")
    for (_, mix, preset, variant), measured in best.items():
        line = f"{preset}, {mix}, {variant}: {measured.seconds:.2f} s/step, "
        line += f"{measured.tokens / measured.seconds:.0f} tokens/s, {measured.memory / 1024:.1f} GiB"
        if peak and preset == "reference":
            line += f", MFU {measured.flops / measured.seconds / peak:.1%}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu", choices=["cpu", "llama-3.1-8b"])
    parser.add_argument("--shapes", nargs="+", default=["512", "256"], help="sizes of the models, on a CPU")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(run_job(*json.loads(args.job))._asdict()))
        return
    gpu = args.preset == "llama-3.1-8b"
    variants = list(GPU_ABLATION if gpu else ABLATION)
    jobs = []
    for shape in [args.preset] if gpu else args.shapes:
        jobs += [(shape, "real", "reference", variant) for variant in ("plain", *variants)]
        jobs += [
            (shape, mix, "reference", variant) for mix in ("prefix", "full") for variant in ("plain", variants[-1])
        ]
        jobs += [(shape, "real", "selective", variant) for variant in ("plain", variants[-1])]
    best = measure_all(jobs, args.turns)
    table = compare(best)
    print_table(table)
    if gpu:
        print_gpu(best)
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
