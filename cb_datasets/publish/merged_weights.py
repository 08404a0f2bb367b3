"""A breaker merged into its base model: a folder of a whole model, which any engine loads.

    merged/config.json, generation_config.json, model*.safetensors      weights W + (alpha / r) B A, in one dtype
    merged/tokenizer.json, tokenizer_config.json, chat_template.jinja   with the decided chat template
    merged/merged.json                                                  origin, and the check against the adapter

Each weight is rounded once: the product is added in float32, whatever the dtype of the base and of the result.
"""

from importlib.metadata import version
from pathlib import Path
from typing import cast

from ..files import read_json, write_json
from ..generation.backend import adapter_revision, check_adapters, config_of, revision_of, weights_revision
from ..generation.model_files import check_model_files, loading
from ..generation.tokenizer import load_tokenizer
from ..public_name import folder_name, model_label, public_name
from ..template_probe import template_hash
from .folder import check_replaceable, replacing_folder


MERGED_FILE = "merged.json"
MERGED_MODEL = "merged model"


def check_mergeable(model: str, adapter: str, output: Path) -> None:
    """Raise if an adapter cannot be merged into a model, by their configs, or the folder cannot be written.

    Raises:
        FileExistsError: If `output` has files and was not written by [`merge_adapter`].
        FileNotFoundError: If there is no such adapter.
        ValueError: If the base model is quantised or another one than the adapter's, or the adapter is no LoRA or
            repeats layers of the model.
    """
    check_replaceable(output, MERGED_MODEL, MERGED_FILE)
    check_adapters([adapter], model)
    config = read_json(Path(adapter) / "adapter_config.json")
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{adapter}: is no LoRA adapter but {config['peft_type']}, which is not merged here.")
    if config.get("layer_replication"):
        raise ValueError(f"{adapter}: repeats layers of its base model (layer_replication): it cannot be merged.")
    if getattr(config_of(model), "quantization_config", None) is not None:
        raise ValueError(
            f"{model}: its weights are quantised, and merging would round the adapter, too. Pass the model that it "
            "was quantised from."
        )


def tokenizer_for(model: str, adapter: str, tokenizer: str | None) -> str:
    """The tokenizer of a merged model: the one given, else the adapter's own, else the model's."""
    own = (Path(adapter) / "tokenizer_config.json").is_file()
    return tokenizer or (adapter if own else model)


def merge_adapter(model: str, adapter: str, tokenizer: str | None, dtype: str, output: Path) -> dict:
    """Write the folder of a model with an adapter merged into it, on the CPU, with 4 bytes of memory per weight.

    Args:
        model (`str`): Folder of the base model, or its Hub id.
        adapter (`str`): The adapter's folder.
        tokenizer (`str`, *optional*): Folder of the tokenizer. Defaults to the adapter's own, whose chat template is
            the one that it was trained with, or else to the model's.
        dtype (`str`): `bfloat16` or `float32`.
        output (`Path`): The folder. One that this function wrote before is replaced.

    Returns:
        `dict`: The content of `merged.json`: the origin of the weights. `check` is `None` until they are checked.

    Raises:
        ValueError: If the adapter changes a weight that the model's input and output embeddings share, if PEFT cannot
            merge it, or as of [`check_mergeable`].
    """
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils.constants import EMBEDDING_LAYER_NAMES
    from transformers import AutoModelForCausalLM

    check_mergeable(model, adapter, output)
    decided = load_tokenizer(tokenizer_for(model, adapter, tokenizer))
    check_model_files(model)
    with loading(model, "weights"):
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
    with loading(adapter, "adapter"):
        adapted = PeftModel.from_pretrained(network, adapter)
    tuner = cast(BaseTuner, adapted.base_model)
    shared = {name.rpartition(".")[2] for name in tuner.targeted_module_names} & {*EMBEDDING_LAYER_NAMES}
    if network.config.get_text_config().tie_word_embeddings and shared:
        raise ValueError(
            f"{adapter}: has LoRA on {', '.join(sorted(shared))}, which is one weight with the other embedding in "
            f"{model}: merged, it would change both. Serve the adapter instead."
        )
    try:
        merged = adapted.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
    except (
        RuntimeError,
        ValueError,
    ) as error:  # biases of LoRA's on layers that have none, weights that are no numbers
        raise ValueError(f"{adapter}: cannot be merged into {model}: {error}") from error
    with replacing_folder(output, MERGED_MODEL, MERGED_FILE) as folder:
        merged.save_pretrained(folder)
        decided.save_pretrained(folder)
        revision = revision_of(model)
        origin = {
            "kind": MERGED_MODEL,
            "model": model_label(public_name(model), revision),
            "revision": revision,
            "adapter": folder_name(adapter),
            "adapter_revision": adapter_revision(adapter),
            "dtype": dtype,
            "weights_revision": weights_revision(folder),
            "template_hash": template_hash(decided),
            "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
            "check": None,
        }
        write_json(folder / MERGED_FILE, origin)
    return origin


def save_check(output: Path, origin: dict, check: dict) -> None:
    """Add a check of the weights, without the texts of prompts and answers, to their `merged.json`.

    Args:
        output (`Path`): The folder.
        origin (`dict`): What [`merge_adapter`] returned.
        check (`dict`): What [`~cb_datasets.evaluation.merged_check.check_merged`] returned.
    """
    figures = {name: value for name, value in check.items() if name != "examples"}
    write_json(output / MERGED_FILE, {**origin, "check": figures})
