"""Which linear maps of a model get LoRA by default, and a report on those that have it and those that have not.

"All linear layers" are the `nn.Linear` of the decoder layers. These are left out:

    routers    they choose experts; in some models they are an `nn.Linear` that returns more than its product
    experts    one parameter holds those of a layer, and no `nn.Linear`; where they are `nn.Linear`, the same holds
    Mamba      its kernel reads the weights of `out_proj` and `dt_proj`, so that LoRA on them would have no effect
    renamed    in models whose experts were once `gate_proj`, `up_proj` and `down_proj`, PEFT takes these names for the
               stacked experts of all layers, so that no name is left for dense MLPs and shared experts
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel

from .objective.hidden_states import get_base_model, get_decoder


# Reasons for which a linear map has no LoRA, in the order of the report
REASONS = {
    "expert": "routed experts",
    "router": "routers",
    "renamed": "names that PEFT takes for the experts of all layers",
    "mamba": "weights that a Mamba kernel reads",
    "unnamed": "not among the target modules",
    "above": "layers that the loss does not depend on",
    "outside": "outside the decoder layers",
}

_ROUTERS = ("router", "gate", "wg", "shared_expert_gate")
_READ_BY_MAMBA = ("out_proj", "dt_proj")


def choose_targets(model: PreTrainedModel, config: LoraConfig, num_layers: int) -> None:
    """
    Complete the targets of a config in place: all linear layers where it names none, in the decoder layers alone.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model without an adapter.
        config ([`~peft.LoraConfig`]):
            Config of the adapter.
        num_layers (`int`):
            Number of decoder layers, from the first on, that the loss depends on.

    Raises:
        ValueError: If PEFT would give LoRA to other modules than the config names.
    """
    layers = get_decoder(model).layers
    if config.target_modules in (None, "all-linear"):
        # As a list of names: PEFT combines `layers_to_transform` with nothing else
        reasons = {name: _reason(name, module, layers, model) for name, module in _linear_maps(layers)}
        config.target_modules = sorted({_last(name) for name, reason in reasons.items() if reason is None})
        # One name can stand for several modules of a layer
        left_out = {_in_layer(name) for name, reason in reasons.items() if reason}
        if excluded := sorted(name for name in left_out if _last(name) in config.target_modules):
            config.exclude_modules = _excluding(config.exclude_modules, excluded)
    if isinstance(config.target_modules, str):
        return
    if renamed := [name for name in config.target_modules or () if _is_renamed(model, name)]:
        raise ValueError(
            f"PEFT takes {', '.join(sorted(renamed))} in a {type(model).__name__} for the experts of all layers, and "
            "would give dense MLPs no LoRA. Leave these names out of `target_modules`."
        )
    if config.layers_to_transform is None:
        config.layers_to_transform = list(range(num_layers))
    if config.layers_pattern is None:
        # Other stacks, such as that of a vision tower, have layers of the same numbers and modules of the same names
        config.layers_pattern = [_path_of(layers, model)]


@dataclass(frozen=True)
class Coverage:
    """
    Linear maps that have LoRA, or that have none for one reason.

    Args:
        modules (`tuple[str, ...]`): Their names in a decoder layer, or that of their stack elsewhere.
        number (`int`): Their number; the stacked experts of a layer are one.
        reason (`str`, *optional*): A key of [`REASONS`]; `None` where they have LoRA.
    """

    modules: tuple[str, ...]
    number: int
    reason: str | None


def lora_coverage(model: PeftModel, num_layers: int) -> list[Coverage]:
    """
    The linear maps of a model with LoRA, and those without, by reason.

    Args:
        model ([`~peft.PeftModel`]):
            Model with its adapter.
        num_layers (`int`):
            Number of decoder layers, from the first on, that the loss depends on.
    """
    base = get_base_model(model)
    layers = get_decoder(base).layers
    inside = f"{_path_of(layers, base)}."
    found: dict[str | None, list[str]] = defaultdict(list)

    def add(name: str, reason: str) -> None:
        if int(name.partition(".")[0]) < num_layers:
            found[reason].append(_in_layer(name))
        else:
            found["above"].append(f"{inside[:-1]}[{num_layers}:]")

    for name, module in _linear_maps(base):
        if isinstance(module, BaseTunerLayer):
            found[None].append(_in_layer(name.removeprefix(inside)))
        elif name.startswith(inside):
            name = name.removeprefix(inside)
            add(name, _reason(name, module, layers, base) or "unnamed")
        else:
            found["outside"].append(re.sub(r"\.\d+\..*", "", name))
    for name, reason in _other_maps(layers):
        add(name, reason)
    return [
        Coverage(tuple(sorted(set(found[reason]))), len(found[reason]), reason)
        for reason in (None, *REASONS)
        if found[reason]
    ]


def coverage_line(coverage: Sequence[Coverage]) -> str:
    """One line on what [`lora_coverage`] returned."""
    parts = [f"{REASONS[rows.reason]} ({rows.number}: {', '.join(rows.modules)})" for rows in coverage if rows.reason]
    adapted = next((rows for rows in coverage if rows.reason is None), Coverage((), 0, None))
    names = ", ".join(sorted({_last(name) for name in adapted.modules}))
    return f"LoRA on {adapted.number} linear maps ({names})" + (f"; without: {', '.join(parts)}" if parts else "")


def _linear_maps(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the linear layers, and of the layers with LoRA in place of what these wrap."""
    wrapped = ""  # prefix of the modules inside the last layer with LoRA
    for name, module in root.named_modules():
        if wrapped and name.startswith(wrapped):
            continue
        has_lora = isinstance(module, BaseTunerLayer)
        if has_lora:
            wrapped = f"{name}."
        if has_lora or isinstance(module, nn.Linear):
            yield name, module


def _other_maps(layers: nn.ModuleList) -> Iterator[tuple[str, str]]:
    """Names of the experts and routers that are parameters and no `nn.Linear`, and which of the two they are."""
    for name, module in layers.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, BaseTunerLayer)) or ".base_layer" in name:
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3:
                yield f"{name}.{parameter_name}".removesuffix(".weight"), "expert"
            elif parameter_name == "weight" and parameter.ndim == 2 and _last(name) in _ROUTERS:
                yield name, "router"


def _reason(name: str, module: nn.Module, layers: nn.ModuleList, model: PreTrainedModel) -> str | None:
    """Why a linear layer gets no LoRA by default, a key of [`REASONS`]; `None` if it does."""
    parent = layers.get_submodule(name.rpartition(".")[0])
    # A class of the model's own code computes more than a linear layer, and LoRA on it would lose that
    if _last(name) in _ROUTERS or type(module).__module__ == type(model).__module__:
        return "router"
    if ".experts." in name:
        return "expert"
    if _last(name) in _READ_BY_MAMBA and hasattr(parent, "A_log") and hasattr(parent, "D"):
        return "mamba"
    return "renamed" if _is_renamed(model, _last(name)) else None


def _is_renamed(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT takes the name of a module for parameters of experts."""
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two names that stand for one parameter, without the other
        return True
    return bool(config.target_parameters)


def _excluding(before: list[str] | str | None, names: list[str]) -> list[str] | str:
    """PEFT's `exclude_modules`, a regular expression or a list of names, with more names."""
    if isinstance(before, str):
        return f"{before}|.*\\.({'|'.join(map(re.escape, names))})"
    return sorted({*(before or ()), *names})


def _path_of(layers: nn.ModuleList, model: PreTrainedModel) -> str:
    """Name of the decoder layers in their model, such as `model.layers`."""
    return next(name for name, module in model.named_modules() if module is layers)


def _in_layer(name: str) -> str:
    """Name of a module in its decoder layer: `self_attn.q_proj` of `3.self_attn.q_proj`."""
    number, _, rest = name.partition(".")
    return rest if number.isdigit() else name


def _last(name: str) -> str:
    return name.rpartition(".")[2]
