"""What a backend is: token ids in, token ids and text out, and a name for the weights that did it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        temperature (`float`, *optional*, defaults to `0.0`): 0 is greedy.
        top_p (`float`, *optional*, defaults to `1.0`): Nucleus sampling.
        max_new_tokens (`int`, *optional*, defaults to `256`): A completion that reaches it is cut off, and never a
            sample.
        num_samples (`int`, *optional*, defaults to `1`): Completions for each prompt.
        seed (`int`, *optional*, defaults to `0`): Reproducible for the same shards on the same backend, no further.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature must be >= 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}.")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError("Greedy decoding gives the same completion each time: use a temperature or one sample.")


@dataclass(frozen=True)
class Completion:
    """One completion.

    Args:
        token_ids (`tuple[int, ...]`): What was generated, the stop token included.
        text (`str`): The same, decoded with its special tokens.
        stop_reason (`str`): `stop` (an end token was written) or `length` (cut off).
    """

    token_ids: tuple[int, ...]
    text: str
    stop_reason: str


class Backend(Protocol):
    """Runs a model. `model` and `revision` name the loaded weights; they go into every row's provenance."""

    model: str
    revision: str
    tokenizer: "PreTrainedTokenizerBase"

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """`sampling.num_samples` completions for each prompt, in order. `seed` overrides the sampling's own."""


def weights_revision(folder: Path) -> str:
    """Hash of a local model's or adapter's weights and configuration: a path alone says nothing about what is in it.

    Raises:
        FileNotFoundError: If the folder holds no safetensors file.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    if not any(path.suffix == ".safetensors" for path in files):
        raise FileNotFoundError(f"{folder} is not a model folder: it has no .safetensors file.")
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
