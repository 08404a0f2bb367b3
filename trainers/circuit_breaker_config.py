"""Settings of a circuit-breaker training run."""

from dataclasses import dataclass, field
from typing import Any, Literal

from trl.trainer.base_config import _BaseConfig

from cb_datasets.chat import MAX_LENGTH


@dataclass
class CircuitBreakerConfig(_BaseConfig):
    r"""
    Configuration class for the [`CircuitBreakerTrainer`].

    This class includes only the parameters that are specific to circuit-breaker training. For a full list of training
    arguments, please refer to the [`~transformers.TrainingArguments`] documentation. Note that default values in this
    class may differ from those in [`~transformers.TrainingArguments`].

    A run is measured in optimizer steps, `max_steps`: the schedule of the coefficients needs their number, and a pass
    over two sets of different size is no unit. To `Trainer`, the whole run is one epoch.

    Using [`~transformers.HfArgumentParser`] we can turn this class into
    [argparse](https://docs.python.org/3/library/argparse#module-argparse) arguments that can be specified on the
    command line.

    Parameters:
        > Parameters that control the model

        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for [`~transformers.AutoModelForCausalLM.from_pretrained`], used when the `model`
            argument of the [`CircuitBreakerTrainer`] is provided as a string.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to allow loading models and tokenizers that ship custom Python code from the Hub.
        lora_b_init_std (`float`, *optional*, defaults to `1e-3`):
            Standard deviation of the noise that a new adapter's B matrices start from. With B = 0 the adapter starts
            on the maximum of the rerouting loss, where the gradient is zero, and leaves it by rounding noise alone.
            `0` is the published computation.

        > Parameters that control the data

        dataset_num_proc (`int`, *optional*):
            Number of processes to use for processing the dataset.
        max_length (`int`, *optional*, defaults to `8192`):
            Longest row, in tokens. A longer one is an error: rows are fitted or dropped by name when the data are
            made, and never truncated.
        pad_to_multiple_of (`int`, *optional*):
            If set, the sequences will be padded to a multiple of this value.

        > Parameters that control the training

        learning_rate (`float`, *optional*, defaults to `1e-4`):
            The initial learning rate.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant"`):
            The learning rate scheduler.
        max_steps (`int`, *optional*, defaults to `150`):
            Number of optimizer steps.
        per_device_train_batch_size (`int`, *optional*, defaults to `16`):
            Rows of the circuit breaker set in a micro-batch.
        retain_batch_size (`int`, *optional*, defaults to `16`):
            Rows of the retain set in a micro-batch. Each class is drawn as often as its weight times its size says.
        target_layers (`list[int]`, *optional*, defaults to `[10, 20]`):
            Layers whose hidden states are rerouted, numbered as `output_hidden_states` numbers them: layer l is the
            output of block l - 1. The default is for models of 32 blocks.
        alpha (`float`, *optional*, defaults to `10.0`):
            Size of both coefficients: at optimizer step t of T the rerouting loss counts alpha * (1 - t / 2T) and the
            retain loss alpha * t / 2T.
        retain_coefficient (`float`, *optional*, defaults to `1.0`):
            Factor on the coefficient of the retain loss. Too large, and the cosine never falls, or climbs back.
        rr_tokens (`str`, *optional*, defaults to `"completion"`):
            Tokens of the circuit breaker set that are rerouted: `"completion"`, or `"all"` for the prompt's as well,
            which is the published computation.
        retain_l2_tokens (`str`, *optional*, defaults to `"completion"`):
            Tokens of the retain set that are held: `"completion"`, or `"all"` for the prompt's as well, which is the
            published computation.
        retain_l2_layers (`str`, *optional*, defaults to `"target"`):
            Layers at which they are held: `"target"` for the target layers, or `"all"` for the published computation:
            the embeddings, every layer up to the deepest target, and the final norm of one block more.
        retain_l2_norm (`str`, *optional*, defaults to `"token"`):
            What the retain loss is a mean over: `"token"` for the tokens held, or `"reference"` for all positions of
            the padded batch, those not held counting as zero, which is the published computation.
        retain_l2_classes (`list[str]`, *optional*):
            Classes of the retain set that are held. The others are not drawn. If `None`, all are.
    """

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments for `AutoModelForCausalLM.from_pretrained`, used when the `model` argument of "
            "the `CircuitBreakerTrainer` is provided as a string."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to allow loading models and tokenizers that ship custom Python code from the Hub."},
    )
    lora_b_init_std: float = field(
        default=1e-3,
        metadata={
            "help": "Standard deviation of the noise that a new adapter's B matrices start from. With B = 0 the "
            "adapter starts on the maximum of the rerouting loss, where the gradient is zero, and leaves it by "
            "rounding noise alone. `0` is the published computation."
        },
    )
    dataset_num_proc: int | None = field(
        default=None,
        metadata={"help": "Number of processes to use for processing the dataset."},
    )
    max_length: int = field(
        default=MAX_LENGTH,
        metadata={
            "help": "Longest row, in tokens. A longer one is an error: rows are fitted or dropped by name when the "
            "data are made, and never truncated."
        },
    )
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={"help": "If set, the sequences will be padded to a multiple of this value."},
    )
    learning_rate: float = field(
        default=1e-4,
        metadata={"help": "The initial learning rate."},
    )
    lr_scheduler_type: str = field(
        default="constant",
        metadata={"help": "The learning rate scheduler."},
    )
    max_steps: int = field(
        default=150,
        metadata={"help": "Number of optimizer steps."},
    )
    per_device_train_batch_size: int = field(
        default=16,
        metadata={"help": "Rows of the circuit breaker set in a micro-batch."},
    )
    retain_batch_size: int = field(
        default=16,
        metadata={
            "help": "Rows of the retain set in a micro-batch. Each class is drawn as often as its weight times its "
            "size says."
        },
    )
    target_layers: list[int] = field(
        default_factory=lambda: [10, 20],
        metadata={
            "help": "Layers whose hidden states are rerouted, numbered as `output_hidden_states` numbers them: layer "
            "l is the output of block l - 1. The default is for models of 32 blocks."
        },
    )
    alpha: float = field(
        default=10.0,
        metadata={
            "help": "Size of both coefficients: at optimizer step t of T the rerouting loss counts "
            "alpha * (1 - t / 2T) and the retain loss alpha * t / 2T."
        },
    )
    retain_coefficient: float = field(
        default=1.0,
        metadata={
            "help": "Factor on the coefficient of the retain loss. Too large, and the cosine never falls, or climbs "
            "back."
        },
    )
    rr_tokens: Literal["completion", "all"] = field(
        default="completion",
        metadata={
            "help": 'Tokens of the circuit breaker set that are rerouted: `"completion"`, or `"all"` for the '
            "prompt's as well, which is the published computation."
        },
    )
    retain_l2_tokens: Literal["completion", "all"] = field(
        default="completion",
        metadata={
            "help": 'Tokens of the retain set that are held: `"completion"`, or `"all"` for the prompt\'s as well, '
            "which is the published computation."
        },
    )
    retain_l2_layers: Literal["target", "all"] = field(
        default="target",
        metadata={
            "help": 'Layers at which they are held: `"target"` for the target layers, or `"all"` for the published '
            "computation: the embeddings, every layer up to the deepest target, and the final norm of one block more."
        },
    )
    retain_l2_norm: Literal["token", "reference"] = field(
        default="token",
        metadata={
            "help": 'What the retain loss is a mean over: `"token"` for the tokens held, or `"reference"` for all '
            "positions of the padded batch, those not held counting as zero, which is the published computation."
        },
    )
    retain_l2_classes: list[str] | None = field(
        default=None,
        metadata={"help": "Classes of the retain set that are held. The others are not drawn. If `None`, all are."},
    )

    _VALID_DICT_FIELDS = [*_BaseConfig._VALID_DICT_FIELDS, "model_init_kwargs"]

    def __post_init__(self):
        super().__post_init__()

        for name, value, allowed in (
            ("rr_tokens", self.rr_tokens, ("completion", "all")),
            ("retain_l2_tokens", self.retain_l2_tokens, ("completion", "all")),
            ("retain_l2_layers", self.retain_l2_layers, ("target", "all")),
            ("retain_l2_norm", self.retain_l2_norm, ("token", "reference")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
        if not self.target_layers or min(self.target_layers) < 1:
            raise ValueError(f"`target_layers` must hold layers from 1 up, got {self.target_layers}.")
        if self.max_steps < 1:
            raise ValueError(
                f"`max_steps` must be at least 1, got {self.max_steps}: the schedule of the coefficients needs the "
                "number of optimizer steps."
            )
