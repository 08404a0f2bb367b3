"""Every speed switch of the trainer against the plain path, on tiny models of many architectures: docs/models.md.

    make models                                             all models, and the page
    python benchmarks/architectures.py --only gpt_oss gemma2      some of them, printed

Plain is a padded batch, attention written out as in the models' own code (`eager`), every layer and all logits. With a
switch on, loss and gradients of the adapter must be the same up to rounding, or the trainer must refuse the switch for
this model with an error that says what to set instead.
"""

import argparse
import logging
import random
import re
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jinja2
import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoTokenizer, PreTrainedTokenizerBase


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cb_datasets.files import write_text  # noqa: E402
from tools.tiny_architectures import ARCHITECTURES, VOCAB_SIZE, WINDOW, tiny_model  # noqa: E402
from trainers import CircuitBreakerConfig, CircuitBreakerTrainer  # noqa: E402


# Relative deviations that rounding in float32 explains.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 3e-6, 2e-5

PRESETS: dict[str, dict[str, Any]] = {
    "reference": {"preset": "reference", "target_layers": [1, 2]},
    "selective": {"preset": "selective", "target_layers": [2, 3]},
}

PLAIN = dict.fromkeys(
    ["padding_free", "shared_prefix", "skip_layers", "masked_logits", "fused_lora", "fused_norms", "recompute_gates"],
    False,
)

SWITCHES: dict[str, dict[str, Any]] = {
    "padding_free": {"padding_free": True},
    "shared_prefix": {"padding_free": True, "shared_prefix": True},
    "skip_layers": {"skip_layers": True},
    "masked_logits": {"masked_logits": True, "logits_chunk_size": 7},
    "fused_lora": {"fused_lora": True},
    "fused_norms": {"fused_norms": True},
    "recompute_gates": {"recompute_gates": True},
}

# All that the model is not refused with, and activation checkpointing.
TOGETHER = "together"


class Same(NamedTuple):
    """Relative deviations from the plain path."""

    loss: float
    gradients: float

    def __str__(self) -> str:
        return f"loss {self.loss:.1e}, gradients {self.gradients:.1e}"

    @property
    def within(self) -> bool:
        return self.loss <= LOSS_TOLERANCE and self.gradients <= GRADIENT_TOLERANCE


class Refused(NamedTuple):
    """The error with which the trainer refuses a switch, or with which it fails."""

    error: str
    by_name: bool  # otherwise it is a crash


class Report(NamedTuple):
    """
    What the comparison found about a model.

    Args:
        results (`dict[tuple[str, str], Same | Refused]`):
            By preset and switch; under the switch `"plain"` why the model cannot be trained at all.
        lora (`tuple[str, ...]`):
            Names of the modules with LoRA.
    """

    results: dict[tuple[str, str], Same | Refused]
    lora: tuple[str, ...]

    @property
    def largest(self) -> Same | None:
        """The largest deviations, if any switch runs."""
        same = [result for result in self.results.values() if isinstance(result, Same)]
        return Same(max(one.loss for one in same), max(one.gradients for one in same)) if same else None


def make_rows() -> Dataset:
    """
    Prepared rows of random tokens: records of three siblings, which share their prompts, and chats.

    Rows are two to five times as long as the window, and no two have the same length.
    """
    rng = random.Random(0)

    def tokens(number: int) -> list[int]:
        return [rng.randrange(3, VOCAB_SIZE) for _ in range(number)]

    rows, system = [], tokens(2 * WINDOW)
    for record in range(3):
        query, attack = tokens(3 + 4 * record), tokens(5 + record)
        head, right, wrong, rest = tokens(3), tokens(2), tokens(3), tokens(4 + record)
        clean, attacked = system + query, system + query + attack
        for set_name, priority_class, prompt, name in (
            ("circuit_breaker", "harmful_flip", attacked, wrong),
            ("retain", "adversarial_safe", attacked, right),
            ("retain", "benign_twin", clean, right),
        ):
            completion, start = head + name + rest, len(prompt)
            safe = priority_class == "adversarial_safe"
            rows.append(
                {
                    "id": f"{priority_class}/{record}",
                    "pair": f"record/{record}",
                    "set": set_name,
                    "priority_class": priority_class,
                    "input_ids": prompt + completion,
                    "prompt_length": start,
                    "injection": [[len(clean), len(attacked)]] if prompt is attacked else [],
                    "answer_start": start,
                    "tool_call": [start, start + len(completion)],
                    "tool_name": [start + 3, start + 3 + len(name)],
                    "divergence": start + 3 if set_name == "circuit_breaker" else -1,
                    "name_divergence": start + 3 if set_name == "circuit_breaker" else -1,
                    "clean_ids": clean + completion if prompt is attacked else [],
                    "splice_ids": prompt + head + completion[3:] if safe else [],
                    "splice_start": start + 3 if safe else 0,
                    "hijack_ids": prompt + head + wrong + [2],
                    "slots": [],
                    "redacted": False,
                    "num_tokens": start + len(completion),
                }
            )
    return Dataset.from_list(rows)


def make_trainer(
    name: str, preset: str, switches: dict[str, Any], rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> CircuitBreakerTrainer:
    """The trainer of a tiny model with some switches on."""
    args = CircuitBreakerConfig(
        output_dir=tempfile.gettempdir(),
        lora_b_init_std=0.1,
        max_length=512,
        max_steps=4,
        per_device_train_batch_size=3,
        retain_batch_size=6,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **{**PRESETS[preset], **PLAIN, "gradient_checkpointing": False, **switches},
    )
    trainer = CircuitBreakerTrainer(
        model=tiny_model(name),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8),
    )
    if args.gradient_checkpointing:  # as `train` does
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    return trainer


def loss_and_gradients(trainer: CircuitBreakerTrainer) -> tuple[float, torch.Tensor]:
    """Loss of all rows at the second step, and its gradients as one vector."""
    trainer.model.train()
    trainer.state.global_step, trainer.state.logging_steps = 1, 500
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        torch.zeros(parameter.numel()) if gradient is None else gradient.flatten()
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    return loss.item(), torch.cat(flat)


def lora_modules(trainer: CircuitBreakerTrainer) -> tuple[str, ...]:
    """Last names of the modules with LoRA."""
    modules = trainer.model.named_modules()
    return tuple(sorted({name.rsplit(".", 1)[-1] for name, one in modules if isinstance(one, BaseTunerLayer)}))


def compare(
    name: str, presets: Iterable[str] = tuple(PRESETS), switches: Iterable[str] = (*SWITCHES, TOGETHER)
) -> Report:
    """
    Compare a model under each switch with its plain path.

    Args:
        name (`str`):
            Key of [`ARCHITECTURES`].
        presets, switches (`Iterable[str]`, *optional*):
            Presets and switches to compare. Defaults to all.
    """
    rows, tokenizer = make_rows(), AutoTokenizer.from_pretrained(ROOT / "demo" / "tiny_agent")
    results: dict[tuple[str, str], Same | Refused] = {}
    lora: tuple[str, ...] = ()
    for preset in presets:
        try:
            trainer = make_trainer(name, preset, {}, rows, tokenizer)
            plain, expected = loss_and_gradients(trainer)
        except Exception as error:
            results[preset, "plain"] = _refused(error)
            continue
        lora = lora_modules(trainer)
        taken: dict[str, Any] = {}
        for switch in switches:
            settings = SWITCHES[switch] if switch != TOGETHER else {**taken, "gradient_checkpointing": True}
            try:
                loss, gradients = loss_and_gradients(make_trainer(name, preset, settings, rows, tokenizer))
            except Exception as error:
                results[preset, switch] = _refused(error)
                continue
            taken |= settings
            deviation = (gradients - expected).norm() / expected.norm()
            results[preset, switch] = Same(abs(loss - plain) / abs(plain), deviation.item())
    return Report(results, lora)


def _refused(error: Exception) -> Refused:
    return Refused(f"{type(error).__name__}: {error}", by_name=isinstance(error, ValueError))


# ---------------------------------------------------------------------------------------------------------------------
# The page


SAME = "same"


class Notes:
    """Numbers of the errors that cells of the table refer to, in the order in which they are first met."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, refused: Refused) -> int:
        # One note for all models that are refused alike
        text = re.sub(r"\b\w+ForCausalLM\b", "*Model*", refused.error)
        text = re.sub(r"(relative difference of) [\d.e-]+", r"\1 ...", text)
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def table_row(name: str, report: Report, notes: Notes) -> list[str]:
    """Cells of a model: family, result of each switch, largest deviations, modules with LoRA."""
    cells = [f"{ARCHITECTURES[name].title} (`{ARCHITECTURES[name].model_type}`)"]
    cells += [switch_cell(report, switch, notes) for switch in (*SWITCHES, TOGETHER)]
    largest = report.largest
    cells.append("" if largest is None else str(largest))
    cells.append(", ".join(f"`{module}`" for module in report.lora))
    return cells


def switch_cell(report: Report, switch: str, notes: Notes) -> str:
    """What became of a switch: one word if it is the same for all presets."""
    cells = {}
    for preset in PRESETS:
        result = report.results.get((preset, "plain")) or report.results[preset, switch]
        if isinstance(result, Refused):
            cells[preset] = f"{'refused' if result.by_name else '**fails**'} [{notes.number(result)}]"
        else:
            cells[preset] = SAME if result.within else f"**differs** ({result})"
    if len(set(cells.values())) == 1:
        return cells[next(iter(PRESETS))]
    return "; ".join(f"`{preset}` {cell}" for preset, cell in cells.items())


def write_page(reports: dict[str, Report], page: Path) -> None:
    """Write docs/models.md."""
    template = Path(__file__).with_name("models.md.jinja")
    notes = Notes()
    rows = [table_row(name, report, notes) for name, report in reports.items()]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = environment.from_string(template.read_text()).render(
        header=["model", *(f"`{switch}`" for switch in SWITCHES), TOGETHER, "largest deviation", "LoRA on"],
        rows=rows,
        notes=notes.texts,
        loss_tolerance=LOSS_TOLERANCE,
        gradient_tolerance=GRADIENT_TOLERANCE,
        window=WINDOW,
        versions={name: version(name) for name in ("transformers", "torch", "peft")},
    )
    write_text(page, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, metavar="NAME", help="Models to compare.")
    parser.add_argument("--page", type=Path, help="Page to write, with all models.")
    arguments = parser.parse_args()
    if arguments.only and arguments.page:
        parser.error("--page has all models: leave out --only")
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    reports = {}
    for name in arguments.only or ARCHITECTURES:
        reports[name] = report = compare(name)
        print(f"{name}: {report.largest or 'not trained'}")
        for (preset, switch), result in report.results.items():
            if isinstance(result, Refused):
                print(f"  {preset}, {switch}: {result.error}")
            elif not result.within:
                print(f"  {preset}, {switch}: DIFFERS, {result}")
    if arguments.page:
        write_page(reports, arguments.page)


if __name__ == "__main__":
    main()
