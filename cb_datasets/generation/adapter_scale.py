"""Adapters at another strength: their update of the weights, times a scale.

W + scale * (alpha / r) * B A      0 is the base model, 1 the adapter as trained
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import read_json, write_json
from .serving import parts_beside_lora


# Initialisations that change the base weights, too, whenever PEFT loads the adapter.
_CHANGE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def scale_faults(config: Mapping[str, Any]) -> list[str]:
    """The parts of an adapter that no scale applies to, by its config: at 0 it would not be its base model.

    rsLoRA, patterns of ranks and alphas, and biases of LoRA's own maps are part of the update, and are scaled with it.

    Args:
        config (`Mapping[str, Any]`): The content of `adapter_config.json`.
    """
    faults = parts_beside_lora(config)
    if config.get("kasa_config"):
        faults.append("KaSA")
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGE_BASE):
        faults.append(f"the initialisation {config['init_lora_weights']}, which changes the base weights")
    return faults


def check_scalable(adapter: str) -> None:
    """Raise if an adapter is more than an update that a scale can multiply.

    Args:
        adapter (`str`): The adapter's folder.

    Raises:
        ValueError: If it has [`scale_faults`].
    """
    if faults := scale_faults(read_json(Path(adapter) / "adapter_config.json")):
        raise ValueError(
            f"{adapter}: cannot be scaled, because it has {', '.join(faults)}: at scale 0 it would not be its base "
            "model. Leave out --scale, or train a plain LoRA adapter."
        )


def write_scaled_adapter(adapter: Path, scale: float, folder: Path) -> None:
    """Write an adapter at another strength, for engines that read adapters from files.

    The weights are links; the scale multiplies `lora_alpha`, to which the update is proportional with rsLoRA, too.

    Args:
        adapter (`Path`): The adapter's folder.
        scale (`float`): Factor of its update.
        folder (`Path`): An empty folder.
    """
    config = read_json(adapter / "adapter_config.json")
    config["lora_alpha"] = config.get("lora_alpha", 8) * scale  # 8 is PEFT's default
    config["alpha_pattern"] = {name: alpha * scale for name, alpha in (config.get("alpha_pattern") or {}).items()}
    write_json(folder / "adapter_config.json", config)
    for path in adapter.glob("adapter_model*"):
        (folder / path.name).symlink_to(path.resolve())
