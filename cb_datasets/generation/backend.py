"""What a backend is: token ids in, token ids and text out, and a name for the weights that did it.

Below the protocol stands what all backends share, so that they cannot differ in it: the tokenizer, the tokens that end
a completion, the way from ids to text, and the name of the weights.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, cast, runtime_checkable

from ..chat import MAX_LENGTH
from ..formats import format_of


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# The name of the model without an adapter, wherever models are told apart by name.
BASE = "base"


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
    """Runs a model.

    `model` and `revision` name the loaded weights; they go into every row's provenance. `max_length` is the most
    tokens of a prompt and its completion that the model takes.
    """

    model: str
    revision: str
    max_length: int
    tokenizer: "PreTrainedTokenizerBase"

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """`sampling.num_samples` completions for each prompt, in order. `seed` overrides the sampling's own.

        An engine that fails raises: a call that failed is never an empty completion.
        """


@runtime_checkable
class Scorer(Backend, Protocol):
    """A backend that also tells how likely given completions are.

    vLLM does not: asked for the log probabilities of a prompt while adapters are enabled, its engine dies (0.32).
    """

    def log_likelihoods(self, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]) -> list[float]:
        """Log probability of each completion after its prompt: the sum over its tokens, in nats.

        Prompt and completion together must not be longer than `max_length`.
        """


class AdapterBackend:
    """The part of a backend that runs one load of the weights with different adapters.

    Args:
        base_model (`str`): Folder of the base model, or its Hub id.
        base_revision (`str`): Name of its weights.
        adapter (`str`, *optional*): Folder of the adapter that is on it.
    """

    def __init__(self, base_model: str, base_revision: str, adapter: str | None) -> None:
        self._base_model, self._base_revision = base_model, base_revision
        self._name_weights(adapter)

    def without_adapter(self) -> Self:
        """The base model, on the same weights in memory."""
        return self._switched(None)

    def with_adapter(self, adapter: str) -> Self:
        """The base model with another adapter, beside the one that is loaded, on the same weights in memory."""
        return self._switched(adapter)

    def _switched(self, adapter: str | None) -> Self:
        other = copy.copy(self)
        other._name_weights(adapter)
        other._use_adapter(adapter)
        return other

    def _name_weights(self, adapter: str | None) -> None:
        self.model, self.revision = self._base_model, self._base_revision
        if adapter is not None:
            self.model += f"+{adapter}"
            self.revision += f"+{adapter_revision(adapter)}"

    def _use_adapter(self, adapter: str | None) -> None:
        """Have this backend generate with an adapter, or without."""
        raise NotImplementedError


def load_models(
    load: Callable[[str, list[str]], AdapterBackend], adapters: Mapping[str, str]
) -> "dict[str, AdapterBackend]":
    """The base model and breakers by name, on weights that are loaded once.

    Args:
        load (`Callable`): `(adapter, other adapters) -> backend`, loaded with the first and with room for the others.
        adapters (`Mapping[str, str]`): Folder of each breaker's adapter, by name.

    Raises:
        FileNotFoundError: If one is no folder of an adapter; before the model is loaded.
    """
    for folder in adapters.values():
        adapter_revision(folder)
    (first, folder), *others = adapters.items()
    loaded = load(folder, [other for _, other in others])
    return {
        BASE: loaded.without_adapter(),
        first: loaded,
        **{name: loaded.with_adapter(other) for name, other in others},
    }


def check_model(model: str) -> None:
    """Refuse a path that leads to no model, which the Hub would be asked for again and again.

    A path is what begins as one, and what stands in a folder that is there.

    Args:
        model (`str`): Folder of a model, or a Hub id.

    Raises:
        FileNotFoundError: If it is a path and there is no tokenizer.
    """
    path = Path(model)
    if path.is_dir():
        if not any(path.glob("tokenizer*")):
            raise FileNotFoundError(f"{model} is no folder of a model: there is no tokenizer in it.")
    elif path.exists():
        raise FileNotFoundError(f"{model} is a file. Name the folder of a model.")
    elif model.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no folder {model}.")
    elif "/" in model and path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {model}. If a model of the Hub is meant, run where no folder is called {path.parent}."
        )


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model that can be asked tool prompts.

    Args:
        model (`str`): Folder of the model, or its Hub id.

    Raises:
        FileNotFoundError: If there is no such folder, and the Hub has no such model or is not reached.
        ValueError: If it has no chat template, or one whose tool-call format is unknown.
    """
    from transformers import AutoTokenizer

    check_model(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except OSError as error:
        raise FileNotFoundError(
            f"{model} is no folder of a model, and no model that the Hub would give: {str(error).splitlines()[0]}"
        ) from error
    if tokenizer.chat_template is None:
        raise ValueError(f"{model} has no chat template; tool prompts cannot be rendered for it.")
    format_of(tokenizer.chat_template)
    return tokenizer


def end_token_ids(tokenizer: "PreTrainedTokenizerBase", eos_token_id: int | Sequence[int] | None = None) -> list[int]:
    """Ids that end a completion: the end tokens of the tool-call format, and what the model itself ends with.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's tokenizer.
        eos_token_id (`int` or `Sequence[int]`, *optional*): `eos_token_id` of the model's generation config.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = (*format_of(tokenizer.chat_template).end_tokens, tokenizer.eos_token)
    own = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or []
    return sorted({*own, *(vocabulary[token] for token in tokens if token in vocabulary)})


def completion_of(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], stop_reason: str) -> Completion:
    """The completion that these ids are.

    Raises:
        RuntimeError: If generation neither ended nor was cut off.
    """
    if stop_reason not in ("stop", "length"):
        raise RuntimeError(f"The engine gave up on a completion after {len(token_ids)} tokens: {stop_reason!r}.")
    # A tokenizer that cleans up takes the blank out of " ,", and the text would encode to other ids.
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Completion(tuple(token_ids), cast(str, text), stop_reason)


def context_length(model: str) -> int:
    """Most tokens that a model takes; [`MAX_LENGTH`] where its configuration does not say."""
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", MAX_LENGTH)


def revision_of(model: str) -> str:
    """Name of a model's weights: their hash for a folder, the commit for a Hub id."""
    from transformers import AutoConfig

    if Path(model).is_dir():
        return weights_revision(Path(model))
    return AutoConfig.from_pretrained(model)._commit_hash


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


def adapter_revision(adapter: str) -> str:
    """Hash of an adapter's weights and configuration.

    Args:
        adapter (`str`): Its folder.

    Raises:
        FileNotFoundError: If it is no folder of a PEFT adapter.
    """
    folder = Path(adapter)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {adapter}. An adapter is a folder that the trainer wrote.")
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{adapter} is no folder of an adapter: adapter_config.json is missing.")
    return weights_revision(folder)
