"""Outputs of the frozen model on disk, for later epochs and runs.

    <folder>/3f/3f9c0d...safetensors    states of one row for one term: {"0": (tokens, hidden_size), "1": ...} by layer

The name is a hash of everything the states depend on: the model's weights, the row's token ids, the layers and the
positions. So no file is ever out of date; none is deleted.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from cb_datasets.files import in_one_move


def fingerprint(model: PeftModel) -> str:
    """Hash of the model's configuration and weights without its adapter. Weights enter as sums, to be quick."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key != "transformers_version"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        values = parameter.detach().double()
        digest.update(
            f"{name} {tuple(values.shape)} {parameter.dtype} {values.sum()} {values.square().sum()}".encode()
        )
    return digest.hexdigest()


class ReferenceCache:
    """
    States of the frozen model by row and term.

    Args:
        folder (`Path`):
            Folder of the files.
        model (`str`):
            Hash of the model, see [`fingerprint`], and whatever else all states depend on.
    """

    def __init__(self, folder: Path, model: str):
        self.folder = folder
        self.model = model

    def key(self, tokens: Sequence[int], layers: Sequence[int], num_layers: int, positions: np.ndarray) -> str:
        """Name of the states at `positions` of `tokens` and at `layers`, in a forward of `num_layers` layers."""
        content = json.dumps([self.model, list(tokens), list(layers), num_layers, positions.tolist()])
        return hashlib.sha256(content.encode()).hexdigest()

    def get(self, key: str) -> list[torch.Tensor] | None:
        """The states, by layer, or `None` if they are not stored."""
        path = self._path(key)
        if not path.is_file():
            return None
        states = load_file(path)
        return [states[str(i)] for i in range(len(states))]

    def put(self, key: str, states: Sequence[torch.Tensor]) -> None:
        """Store states, by layer."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_one_move(path) as temporary:
            save_file({str(i): state.contiguous() for i, state in enumerate(states)}, temporary)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
