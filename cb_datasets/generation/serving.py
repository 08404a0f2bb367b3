"""What vLLM, which serves adapters, needs of one: LoRA weights alone, of a rank that it has kernels for.

And its flags for a model's tool calls, which are those of its format.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import read_json
from ..formats import ToolCallFormat


# Ranks above the smallest one in use, see `max_lora_rank` of vLLM.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

# Settings of PEFT with which an adapter is more than a low-rank update of the weights.
NOT_LORA_ALONE = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable_token_indices",
    "layer_replication": "layer_replication",
}
# Those that vLLM rejects or, worse, ignores: the served model would be another one.
_NOT_SERVED = {**NOT_LORA_ALONE, "lora_bias": "LoRA biases"}


def parts_beside_lora(config: Mapping[str, Any], settings: Mapping[str, str] = NOT_LORA_ALONE) -> list[str]:
    """With what an adapter is more than a low-rank update of the weights, by its config and these settings in it."""
    parts = [name for setting, name in settings.items() if config.get(setting)]
    if config.get("peft_type", "LORA") != "LORA":
        parts.insert(0, str(config["peft_type"]))
    if config.get("bias", "none") != "none":
        parts.append("biases")
    return parts


def serving_faults(config: Mapping[str, Any]) -> list[str]:
    """The parts of an adapter that vLLM cannot serve, by its config; an empty list if it can.

    Args:
        config (`Mapping[str, Any]`): The content of `adapter_config.json`.
    """
    faults = parts_beside_lora(config, _NOT_SERVED)
    if _rank(config) > RANKS[-1]:
        faults.append(f"a rank above {RANKS[-1]}")
    return faults


def max_lora_rank(config: Mapping[str, Any]) -> int:
    """The `--max-lora-rank` that an adapter needs: its rank, rounded up to one that vLLM has kernels for.

    Raises:
        ValueError: If vLLM cannot serve the adapter.
    """
    if faults := serving_faults(config):
        raise ValueError(f"vLLM cannot serve this adapter: it has {', '.join(faults)}.")
    return next(rank for rank in RANKS if rank >= _rank(config))


def adapter_rank(adapter: str) -> int:
    """The [`max_lora_rank`] of an adapter's folder.

    Raises:
        ValueError: If vLLM cannot serve it.
    """
    try:
        return max_lora_rank(read_json(Path(adapter) / "adapter_config.json"))
    except ValueError as error:
        remedy = "Use --backend transformers, or merge it into its base and serve that."
        raise ValueError(f"{adapter}: {error} {remedy}") from None


def parser_flags(tool_format: ToolCallFormat) -> Iterator[str]:
    """The flags with which vLLM reads the calls and the thinking of a format."""
    if tool_format.tool_parser is not None:
        yield from ("--enable-auto-tool-choice", "--tool-call-parser", tool_format.tool_parser)
    if tool_format.reasoning_parser is not None:
        yield from ("--reasoning-parser", tool_format.reasoning_parser)


def serving_command(base: str, adapter: str, rank: int | str, tool_format: ToolCallFormat) -> str:
    """The command that serves a base model and its breaker, for cards.

    Args:
        base (`str`): The base model.
        adapter (`str`): Folder of the adapter, or its Hub id. Its tokenizer is served, too: the chat template is the
            one that it was trained with, which need not be that of the base.
        rank (`int` or `str`): The [`max_lora_rank`] of the adapter.
        tool_format ([`ToolCallFormat`]): The format of the model's calls.
    """
    lora = ("--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"breaker={adapter}")
    return shlex.join(["vllm", "serve", base, "--tokenizer", adapter, *lora, *parser_flags(tool_format)])


def _rank(config: Mapping[str, Any]) -> int:
    # PEFT's default, and other ranks of single modules.
    return max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])
