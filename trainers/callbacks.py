"""Callbacks: a progress bar with the latest metrics, and warnings that name a remedy."""

import resource
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .objective.terms import TERMS


logger = get_logger(__name__)

# Mean cosine on Ds above which nothing has been rerouted.
STUCK_COSINE = 0.99

# Mean cosine on Dr below which the retain set's states have drifted too far. The published run stays above 0.949.
COLLAPSED_COSINE = 0.7

# Rise of the entropy on the retain set, in nats over that of the frozen model, at which the model has collapsed.
COLLAPSED_ENTROPY = 2.0

# Fraction of a run in which the retain set may drift without a warning, because it may return by itself. In the
# published run the drift is largest after a sixth, at step 26 of 150, and shrinks from there.
DRIFT_FRACTION = 1 / 3


class AtTrainBegin(TrainerCallback):
    """Calls a function of the trainer when training begins, after `Trainer` has set its own counters to zero."""

    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.function()


class LiveLine(ProgressCallback):
    """
    The progress bar with the latest metrics after it, in place of a printed dictionary.

    Args:
        num_tokens (`Callable[[], int]`): Returns the number of tokens trained on so far, for the tokens per second.
    """

    training_bar: Any  # a `tqdm` bar, which the base class makes when training begins

    def __init__(self, num_tokens: Callable[[], int]):
        super().__init__()
        self.num_tokens = num_tokens
        self.last: tuple[float, int] = (time.monotonic(), 0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or not {"cosine/ds", "cosine/dr"} & logs.keys():
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif state.is_world_process_zero:
            now = (time.monotonic(), self.num_tokens())
            speed = (now[1] - self.last[1]) / max(now[0] - self.last[0], 1e-9)
            self.last = now
            self.training_bar.set_postfix_str(live_line(logs, speed), refresh=True)


def live_line(logs: dict[str, float], tokens_per_second: float) -> str:
    """The metrics in one line: `cos Ds 0.482, cos Dr 0.991, L2 Dr 3.14, rr 0.483 x 7.5, 5.1k tok/s, 1.2 GiB`."""
    shown = [
        f"{title} {logs[key]:.{digits}f}"
        for title, key, digits in (("cos Ds", "cosine/ds", 3), ("cos Dr", "cosine/dr", 3), ("L2 Dr", "distance/dr", 2))
        if key in logs
    ]
    for key in logs:
        if key.startswith("loss/"):
            term = key.removeprefix("loss/")
            shown.append(f"{term} {logs[key]:.3g} x {logs[f'coefficient/{term}']:.3g}")
    return ", ".join([*shown, f"{tokens_per_second / 1000:.1f}k tok/s", f"{_peak_memory():.1f} GiB"])


def _peak_memory() -> float:
    """Peak memory in GiB: of the GPU's allocator, or of the process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Watchdog(TrainerCallback):
    """
    Warns, once for each fault, if nothing is rerouted, the retain set drifts, or the model collapses.

    Args:
        terms (`Collection[str]`): The terms of the loss in use. Only what these terms are meant to do is checked.
    """

    def __init__(self, terms: Collection[str]):
        self.reroutes = any(TERMS[term].reroutes for term in terms)
        self.retains_states = any(TERMS[term].layers == "retain" for term in terms)
        self.warned: set[str] = set()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs, at = logs or {}, f"at step {state.global_step} of {state.max_steps}"
        ds, dr = logs.get("cosine/ds"), logs.get("cosine/dr")
        if self.reroutes and ds is not None and ds > STUCK_COSINE and state.global_step > state.max_steps / 10:
            self._warn(
                "stuck",
                f"The cosine on the circuit breaker set is {ds:.4f} {at}: nothing is being rerouted. Raise "
                "`learning_rate`, lower `retain_l2_weight` or set `retain_l2_distance: scaled`, or, if it never "
                "moved, set `lora_b_init_std` to 1e-3 or more.",
            )
        if state.global_step < state.max_steps * DRIFT_FRACTION:
            return
        if self.retains_states and dr is not None and dr < COLLAPSED_COSINE:
            self._warn(
                "retain",
                f"The cosine on the retain set has fallen to {dr:.3f} {at}: the retain set is drifting. Raise "
                "`retain_l2_weight`, or lower `learning_rate` or `rr_weight`.",
            )
        adapted, frozen = logs.get("entropy/dr_adapted"), logs.get("entropy/dr_frozen")
        if adapted is not None and frozen is not None and adapted > frozen + COLLAPSED_ENTROPY:
            self._warn(
                "entropy",
                f"The entropy on the retain set is {adapted:.2f} nats {at}, against {frozen:.2f} of the frozen model: "
                "the model is collapsing. Raise the weights of the retain terms, or lower `learning_rate`.",
            )

    def _warn(self, fault: str, message: str) -> None:
        if fault not in self.warned:
            self.warned.add(fault)
            logger.warning(message)
