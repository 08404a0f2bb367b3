"""Checks of settings that `Trainer` would only make, if at all, after the model has been loaded."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from .recipe import MAX_CHOICES_LISTED, nearest


# For each kind of number, the lowest and the highest that is allowed, and the settings
_LOW_HIGH: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (
        1,
        math.inf,
        (
            *("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("retain_batch_size", "max_length", "pad_to_multiple_of", "logits_chunk_size", "dataset_num_proc"),
            *("lora_r", "lora_alpha", "save_total_limit"),
        ),
    ),
    (
        0,
        math.inf,
        (
            *("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon", "injection_weight"),
            *("decision_weight", "lora_b_init_std", "adversary_steps", "adversary_radius", "adversary_padding"),
            *("dataloader_num_workers", "eval_delay"),
            *("rr_weight", "unlikelihood_weight", "stop_weight", "triplet_weight", "retain_l2_weight"),
            *("retain_kl_weight", "distill_weight", "twin_weight", "splice_weight", "ce_weight"),
        ),
    ),
    (
        0,
        1,
        (
            *("span_wrap_probability", "span_noise_probability", "bare_head_probability", "text_noise_probability"),
            *("adversary_rate", "adversary_warmup", "adam_beta1", "adam_beta2", "lora_dropout"),
        ),
    ),
    (0, 2**32 - 1, ("seed", "data_seed")),
)
_ABOVE_ZERO = ("kl_temperature", "logging_steps", "save_steps", "eval_steps")

# Settings of `Trainer` that would do nothing here, or something else, and why
_UNSUPPORTED = {
    "num_train_epochs": "the two sets differ in size, and the schedule of the coefficients needs the number of "
    "optimizer steps. Set `max_steps` instead",
    "neftune_noise_alpha": "its noise in the embeddings would move the states that the losses compare. Leave it out; "
    "`adversary_steps` perturbs embeddings",
    "label_smoothing_factor": "no term smooths its targets. Leave it out",
    "train_sampling_strategy": "rows are drawn at random, class by class. Leave it out; `padding_free` saves padding",
    "auto_find_batch_size": "it would lower the rows of the circuit breaker set alone. Leave it out, and lower both "
    "`per_device_train_batch_size` and `retain_batch_size`",
}


def check_numbers(settings: Any) -> None:
    """
    Check that numbers are numbers, and in the range in which they mean something.

    Args:
        settings (dataclass): Settings of the trainer, or of the model.

    Raises:
        ValueError: If one is not; the message names it.
    """
    assert is_dataclass(settings)
    values = {field.name: getattr(settings, field.name, None) for field in fields(settings)}
    for low, high, names in _LOW_HIGH:
        for name in names:
            value = values.get(name)
            if value is None:
                continue
            _check_number(name, value, low, high)
    for name in _ABOVE_ZERO:
        value = values.get(name)
        if value is not None and not (_is_finite(value) and float(value) > 0):
            raise ValueError(f"`{name}` must be a number above 0, got {value!r}.")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    if not _is_finite(value) or not low <= float(value) <= high:
        raise ValueError(f"`{name}` must be a number {bounds}, got {value!r}.")


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def check_supported(settings: Any) -> None:
    """
    Check that settings of `Trainer` ask for nothing that this trainer does not do.

    Raises:
        ValueError: If one does; the message names it and the remedy.
    """
    if settings.max_length is None:
        raise ValueError("`max_length` must be a number: rows are never truncated. Set it to that of the longest row.")
    for name, reason in _UNSUPPORTED.items():
        value = getattr(settings, name)
        if value and value != "random":  # the default of `train_sampling_strategy`
            raise ValueError(f"`{name}: {value}` is not supported: {reason}.")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """
    Check that a setting is one of some names.

    Raises:
        ValueError: If it is not; the message names the setting and the nearest name.
    """
    if value in allowed:
        return
    similar = nearest(str(value), allowed)
    choices = f"one of {allowed}" if len(allowed) <= MAX_CHOICES_LISTED else f"one of {len(allowed)} names"
    hint = f" Did you mean {similar!r}?" if similar else ""
    raise ValueError(f"{name if ' ' in name else f'`{name}`'} must be {choices}, got {value!r}.{hint}")


def check_init_kwargs(kwargs: Mapping[str, Any]) -> None:
    """
    Check that keyword arguments of the model do not make it run code that nobody asked for.

    Raises:
        ValueError: If one could; the message names the setting that takes its place.
    """
    for name, setting in (("trust_remote_code", "trust_remote_code"), ("use_safetensors", "allow_pickled_weights")):
        if name in kwargs:
            raise ValueError(f"`model_init_kwargs` must not hold `{name}`. Set `{setting}` instead.")


def check_trackers(report_to: str | list[str] | None) -> None:
    """
    Check that the experiment trackers are known and installed.

    Raises:
        ValueError: If one is not.
    """
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    wanted = [report_to] if isinstance(report_to, str) else report_to or []
    available = get_available_reporting_integrations()
    for name in wanted:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"`report_to` must be none or of {', '.join(INTEGRATION_TO_CALLBACK)}, got {name!r}.")
        if name not in available:
            raise ValueError(
                f"`report_to: {name}` needs a package that is not installed: pip install {name}, or `report_to: none`."
            )


def check_accelerator(config: Any) -> None:
    """
    Check the settings of Accelerate, a mapping or the path of a JSON file.

    Raises:
        ValueError: If there is no such file or no such setting.
    """
    from transformers.trainer_pt_utils import AcceleratorConfig

    try:
        if isinstance(config, dict):
            AcceleratorConfig(**config)
        elif isinstance(config, str) and not config.lstrip().startswith("{"):
            AcceleratorConfig.from_json_file(config)
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"`accelerator_config`: {_one_line(error)}") from error


def check_optimizer(args: Any) -> None:
    """
    Make the optimizer and the learning rate's schedule once, for a single weight.

    Args:
        args ([`CircuitBreakerConfig`]): Settings of the training.

    Raises:
        ValueError: If a package is missing, or an argument of theirs is wrong.
    """
    import torch
    from transformers import Trainer, get_scheduler

    model: Any = torch.nn.Linear(1, 1)
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"`optim: {getattr(args.optim, 'value', args.optim)}`, with `optim_args: {args.optim_args}`, cannot be "
            f"made: {_one_line(error)}"
        ) from error
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD(model.parameters(), lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(args.max_steps),
            num_training_steps=args.max_steps,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    except (ValueError, TypeError, KeyError) as error:
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(
            f"`lr_scheduler_type: {name}`, with `lr_scheduler_kwargs: {args.lr_scheduler_kwargs}`, cannot be made: "
            f"{_one_line(error)}"
        ) from error


def check_packages(settings: Any, packages: Mapping[str, str]) -> None:
    """
    Check that the packages of some settings are installed.

    Args:
        settings (dataclass): Settings of the trainer, or of the model.
        packages (`Mapping[str, str]`): The package that each setting needs.

    Raises:
        ValueError: If one is not; the message names it and the setting.
    """
    for name, package in packages.items():
        if getattr(settings, name) and importlib.util.find_spec(package) is None:
            raise ValueError(f"`{name}` needs {package}, which is not installed. Install it, or leave `{name}` out.")


def check_output(name: str, path: str | None) -> None:
    """
    Check that a folder can be written to.

    Args:
        name (`str`): Name of the setting.
        path (`str`, *optional*): The folder.

    Raises:
        FileExistsError: If it is a file, or below one.
    """
    for place in (Path(path), *Path(path).parents) if path else ():
        if place.exists() and not place.is_dir():
            raise FileExistsError(f"`{name}`: {place} is a file. Name a folder, or remove the file.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
