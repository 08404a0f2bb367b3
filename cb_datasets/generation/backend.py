"""The backend protocol: prompt token ids in, completions out, and a name for the weights that generated them.

The functions below the protocol are shared by all backends, so that these agree on the tokenizer, on the tokens that
end a completion, on decoding, and on how weights are named.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, cast, runtime_checkable

from ..chat import MAX_LENGTH
from ..formats import format_of
from ..public_name import public_name
from .adapter_scale import check_scalable
from .model_files import check_weights, loading, read_object


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


# Name of the model without an adapter, wherever results are keyed by model.
BASE = "base"


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters.

    Args:
        temperature (`float`, *optional*, defaults to `0.0`): 0 is greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`): Probability mass of nucleus sampling.
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum length of a completion. One that reaches it is
            cut off, and never becomes a sample of a dataset.
        num_samples (`int`, *optional*, defaults to `1`): Completions per prompt.
        seed (`int`, *optional*, defaults to `0`): Base seed. It reproduces completions only for the same shards on
            the same backend.
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


def seed_after(seed: int, count: int) -> int:
    """The seed `count` places after another one. Libraries take seeds below 2**32: after the last one comes 0."""
    return (seed + count) % 2**32


@dataclass(frozen=True)
class Completion:
    """One completion.

    Args:
        token_ids (`tuple[int, ...]`): Generated tokens, including the end token.
        text (`str`): Their text, including special tokens.
        stop_reason (`str`): `stop` (an end token was generated) or `length` (cut off).
    """

    token_ids: tuple[int, ...]
    text: str
    stop_reason: str


class Backend(Protocol):
    """A model that generates completions.

    `model` and `revision` name the loaded weights and go into every row's provenance, so neither has a path of this
    machine. `max_length` is the maximum number of tokens of a prompt and its completion together.
    """

    model: str
    revision: str
    max_length: int
    tokenizer: "PreTrainedTokenizerBase"

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """Generate `sampling.num_samples` completions per prompt, in the order of the prompts.

        `seed` overrides `sampling.seed`. If the engine fails, it raises: a failed call never returns an empty
        completion.
        """


@runtime_checkable
class Scorer(Backend, Protocol):
    """A backend that also scores given completions.

    The vLLM backend does not: with adapters enabled, vLLM's engine dies on `prompt_logprobs` (0.32).
    """

    def log_likelihoods(self, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]) -> list[float]:
        """Log probability of each completion given its prompt: the sum over its tokens, in nats.

        Prompt and completion together must not exceed `max_length` tokens.
        """


class AdapterBackend:
    """Base class of backends that switch adapters on weights that are loaded once.

    Args:
        base_model (`str`): Folder of the base model, or its Hub id.
        base_revision (`str`): Revision of the base model's weights.
        adapter (`str`, *optional*): Folder of the active adapter.
    """

    def __init__(self, base_model: str, base_revision: str, adapter: str | None) -> None:
        self._base_model, self._base_revision = base_model, base_revision
        self._set_model_name(adapter)

    def without_adapter(self) -> Self:
        """A backend for the base model, sharing the weights in memory."""
        return self._copy_with(None)

    def with_adapter(self, adapter: str) -> Self:
        """A backend for another adapter on the same base model, sharing the weights in memory."""
        return self._copy_with(adapter)

    def with_scale(self, scale: float) -> Self:
        """A backend for the same adapter with its update of the weights scaled, sharing the weights in memory.

        Args:
            scale (`float`): 0 computes what the base model does, 1 what the adapter does as trained.

        Raises:
            ValueError: If this is the base model, or the adapter is more than an update that can be scaled.
        """
        if self._adapter_folder is None:
            raise ValueError("The base model has no adapter to scale.")
        check_scalable(self._adapter_folder)
        other = copy.copy(self)
        other.model, other.revision = f"{self.model}@{scale:g}", f"{self.revision}@{scale:g}"
        other._use_scale(scale)
        return other

    def _copy_with(self, adapter: str | None) -> Self:
        other = copy.copy(self)
        other._set_model_name(adapter)
        other._use_adapter(adapter)
        return other

    def _set_model_name(self, adapter: str | None) -> None:
        if adapter is not None:
            check_adapters([adapter], self._base_model)
        self._adapter_folder = adapter
        self.model, self.revision = public_name(self._base_model), self._base_revision
        if adapter is not None:
            self.model += f"+{public_name(adapter)}"
            self.revision += f"+{adapter_revision(adapter)}"

    def _use_adapter(self, adapter: str | None) -> None:
        """Make this backend generate with this adapter, or with none."""
        raise NotImplementedError

    def _use_scale(self, scale: float) -> None:
        """Make this backend generate with its adapter at this strength."""
        raise NotImplementedError


def load_models(
    load: Callable[[str | None, list[str]], AdapterBackend], adapters: Mapping[str, str]
) -> "dict[str, AdapterBackend]":
    """Load the base model once, and return backends for it and for each breaker, by name.

    Args:
        load (`Callable`): `(adapter, other_adapters) -> backend`: loads the model with the first adapter, if there is
            one, with room for the others.
        adapters (`Mapping[str, str]`): Folder of each breaker's adapter, by name.

    Raises:
        FileNotFoundError, ValueError: See [`check_adapters`], which is called before by whoever knows the base model.
    """
    if not adapters:
        return {BASE: load(None, [])}
    (first, folder), *others = adapters.items()
    loaded = load(folder, [other for _, other in others])
    return {
        BASE: loaded.without_adapter(),
        first: loaded,
        **{name: loaded.with_adapter(other) for name, other in others},
    }


def end_token_ids(tokenizer: "PreTrainedTokenizerBase", eos_token_id: int | Sequence[int] | None = None) -> list[int]:
    """Ids that end a completion: end tokens of the tool-call format, of the tokenizer, and of the generation config.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's tokenizer.
        eos_token_id (`int` or `Sequence[int]`, *optional*): `eos_token_id` of the model's generation config.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = (*format_of(tokenizer).end_tokens, tokenizer.eos_token)
    model_ends = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or []
    return sorted({*model_ends, *(vocabulary[token] for token in tokens if token in vocabulary)})


def decode_completion(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], stop_reason: str) -> Completion:
    """Decode generated ids to a [`Completion`].

    Raises:
        RuntimeError: If the engine aborted the generation.
    """
    if stop_reason not in ("stop", "length"):
        raise RuntimeError(f"The engine did not finish a completion after {len(token_ids)} tokens: {stop_reason!r}.")
    # With clean-up, some tokenizers drop the space of " ,", and the text would encode to other ids.
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Completion(tuple(token_ids), cast(str, text), stop_reason)


def context_length(model: str) -> int:
    """Maximum number of tokens of a model's context; [`MAX_LENGTH`] if its config does not say."""
    return getattr(config_of(model).get_text_config(), "max_position_embeddings", MAX_LENGTH)


def config_of(model: str) -> "PreTrainedConfig":
    """The config of a model.

    Raises:
        FileNotFoundError, ValueError: If there is none, or it is broken.
    """
    from transformers import AutoConfig

    with loading(model, "config.json"):
        return AutoConfig.from_pretrained(model)


def revision_of(model: str) -> str:
    """Revision of a model's weights: their hash for a folder, the commit for a Hub id."""
    if Path(model).is_dir():
        return weights_revision(Path(model))
    return config_of(model)._commit_hash


def weights_revision(folder: Path) -> str:
    """Hash of the weights and configs in a folder: the path alone does not identify a local model or adapter.

    Raises:
        FileNotFoundError: If the folder holds no weights.
        ValueError: If they are broken, or pickles.
    """
    check_weights(folder)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def check_adapters(adapters: Iterable[str], model: str) -> None:
    """Check adapters before their base model is loaded: their files, their type and their base.

    Args:
        adapters (`Iterable[str]`): Their folders.
        model (`str`): Folder of the base model, or its Hub id.

    Raises:
        FileNotFoundError: If a folder holds no adapter.
        ValueError: If its files are broken, PEFT does not know its type, or it was trained on another model.
    """
    from peft import PeftType

    for adapter in adapters:
        folder = _adapter_folder(adapter)
        path = folder / "adapter_config.json"
        config = read_object(path)
        check_weights(folder)
        if (kind := config.get("peft_type")) not in [*PeftType]:
            raise ValueError(f"{path}: PEFT knows no peft_type {kind!r}. Name the folder of an adapter that it wrote.")
        base = config.get("base_model_name_or_path")
        if base is not None and not isinstance(base, str):
            raise ValueError(f"{path}: base_model_name_or_path is {base!r}, which is no name of a model. Correct it.")
        if base and not _are_one_model(base, model):
            raise ValueError(
                f"{adapter} was trained on {base}, and the model is {model}. Pass that model; if it is the same one "
                "under another name, correct base_model_name_or_path in adapter_config.json."
            )


def _are_one_model(base: str, model: str) -> bool:
    """Whether an adapter's base is a model: on another one of the same shape, it does nobody knows what.

    A model is told by the last part of its name, since folders move; two folders may also hold the same weights.
    """
    folders = Path(base), Path(model)
    return _own_name(base) == _own_name(model) or (
        all(folder.is_dir() for folder in folders) and len({*map(weights_revision, folders)}) == 1
    )


def _own_name(model: str) -> str:
    return public_name(model).rstrip("/").rpartition("/")[2].casefold()


def adapter_revision(adapter: str) -> str:
    """Hash of an adapter's weights and config.

    Args:
        adapter (`str`): The adapter's folder.

    Raises:
        FileNotFoundError: If the folder holds no PEFT adapter.
    """
    folder = _adapter_folder(adapter)
    read_object(folder / "adapter_config.json")
    return weights_revision(folder)


def _adapter_folder(adapter: str) -> Path:
    folder = Path(adapter)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {adapter}. An adapter is a folder that the trainer wrote.")
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{adapter} is no folder of an adapter: adapter_config.json is missing.")
    return folder
