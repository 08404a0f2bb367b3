"""Settings of a circuit-breaker training run."""

from dataclasses import dataclass, field
from typing import Any

from transformers import SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels
from trl.trainer.base_config import _BaseConfig

from cb_datasets.chat import MAX_LENGTH
from cb_datasets.sample import PRIORITY_WEIGHTS

from .docstring_help import docstring_help
from .objective.losses import DISTANCES, SCHEDULES
from .objective.masks import MASKS, STARTS
from .objective.terms import TERMS
from .presets import PRESETS
from .recipe import is_number
from .setting_checks import (
    check_accelerator,
    check_choice,
    check_init_kwargs,
    check_numbers,
    check_packages,
    check_supported,
    check_trackers,
)


# Why the trainer pushes nothing, and what does.
NO_PUSH = (
    "the trainer's own push would make a public repository, with `training_args.bin` in it. Leave it out, and release "
    "the adapter with `cb-datasets push-model`, or `make push-model`, which checks it and keeps it private."
)


@dataclass
@docstring_help
class CircuitBreakerConfig(_BaseConfig):
    r"""
    Configuration class for the [`CircuitBreakerTrainer`].

    This class includes only the parameters that are specific to circuit-breaker training. For a full list of training
    arguments, please refer to the [`~transformers.TrainingArguments`] documentation. Note that default values in this
    class may differ from those in [`~transformers.TrainingArguments`].

    The length of a run is a number of optimizer steps, `max_steps`, which the schedule of the coefficients depends on.
    There is no number of epochs, because the two sets differ in size. To `Trainer` the whole run is one epoch.

    Using [`~transformers.HfArgumentParser`] we can turn this class into
    [argparse](https://docs.python.org/3/library/argparse#module-argparse) arguments that can be specified on the
    command line.

    Parameters:
        > Parameters that control the model

        model_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for [`~transformers.AutoModelForCausalLM.from_pretrained`], used when the `model`
            argument of the [`CircuitBreakerTrainer`] is provided as a string.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the Python code that a model ships, with your rights. The training script allows it for a
            folder, and for a Hub id with the commit whose code you read as `model_revision`.
        allow_pickled_weights (`bool`, *optional*, defaults to `False`):
            Whether to load weights that are pickles, in files such as `pytorch_model.bin`, which can run code of
            whoever wrote them.
        lora_b_init_std (`float`, *optional*):
            Standard deviation of the noise that a new adapter's B matrices are initialized with, or its A matrices
            where `init_lora_weights="mica"` freezes B. With B = 0 the rerouting loss starts at its maximum, where the
            gradient is zero, and only rounding errors move it away. If `None`, the preset decides.

        > Parameters that control the data

        dataset_num_proc (`int`, *optional*):
            Number of processes to use for processing the dataset.
        max_length (`int`, *optional*, defaults to `8192`):
            Maximum length of a row, in tokens. A longer row is an error: rows are shortened or dropped when the
            dataset is built, and never truncated.
        pad_to_multiple_of (`int`, *optional*):
            If set, padded sequences are padded to a multiple of this value.
        span_wrap_probability (`float`, *optional*):
            Augmentation, of which rows to evaluate on have none: probability that the injected span of a row is
            wrapped in one to three random punctuation marks or numbers on each side. If `None`, the preset decides.
        span_noise_probability (`float`, *optional*):
            Augmentation: probability that, in a span that is not wrapped, each word is dropped or replaced with
            probability 0.15. If `None`, the preset decides.
        bare_head_probability (`float`, *optional*):
            Augmentation: probability that the text before the call is removed from a harmful completion. If `None`,
            the preset decides.
        text_noise_probability (`float`, *optional*):
            Augmentation: probability, for the last user message and for each tool result behind it, that sentences of
            one to six random words of the dataset are put before it, after it, or on both sides, or that, in a retain
            row without an attack, such words replace some of its own. If `None`, the preset decides.

        > Parameters that control the loss

        assistant_only_loss (`bool`, *optional*, defaults to `False`):
            Not supported, and refused: the losses are on the last turn of a row, and on no earlier turn of the
            assistant.
        preset (`str`, *optional*, defaults to `"selective"`):
            Preset that decides the settings that are `None`: `"selective"`, which preserves the call that the user
            asked for, or `"reference"`, the published computation of Representation Rerouting.
        rr_weight (`float`, *optional*):
            Weight of the term `rr`, which reroutes the states of harmful completions: `alpha` of the paper. A term
            with weight 0 is not computed. If `None`, the preset decides, as for all weights.
        unlikelihood_weight (`float`, *optional*):
            Weight of the term `unlikelihood`, on the tokens that make a call the attacker's.
        stop_weight (`float`, *optional*):
            Weight of the term `stop`, which ends the turn after the whole name of the attacker's tool.
        triplet_weight (`float`, *optional*):
            Weight of the term `triplet`, which separates harmful and harmless states.
        retain_l2_weight (`float`, *optional*):
            Weight of the term `retain_l2`, the distance between states of the retain set and the frozen ones: `alpha`
            of the paper. If it is too large, the cosine of `rr` never falls, or rises again.
        retain_kl_weight (`float`, *optional*):
            Weight of the term `retain_kl`, the KL divergence of next-token distributions on the retain set from the
            frozen ones.
        distill_weight (`float`, *optional*):
            Weight of the term `distill`, in which the frozen model on the clean prompt teaches the adapter on the
            attacked one.
        twin_weight (`float`, *optional*):
            Weight of the term `twin`, which is `distill` on hidden states.
        splice_weight (`float`, *optional*):
            Weight of the term `splice`, the cross-entropy of the right call after a wrong opening.
        ce_weight (`float`, *optional*):
            Weight of the term `ce`, the cross-entropy of the right call under attack.
        term_classes (`dict[str, list[str]]`, *optional*):
            Classes of rows that a term applies to, e.g. `{"retain_l2": ["benign_twin", "refusal"]}`. Other terms have
            the classes in `terms.py`. Rows of classes that no term applies to are not used.
        schedule (`str`, *optional*):
            Schedule of the coefficients, by optimizer step: with `"linear"`, the published one, breaker terms fall
            from 1 to 1/2 of their weight while retain terms rise from 0 to 1/2; `"cosine"` has the same ends;
            `"constant"` leaves all weights as they are. If `None`, the preset decides.
        target_layers (`list[float]`, *optional*, defaults to `[0.3125, 0.625]`):
            Layers whose hidden states are rerouted, numbered as in `output_hidden_states`: layer l is the output of
            `model.layers[l - 1]`. Numbers below 1 are fractions of the number of layers. The default is layers 10 and
            20 of 32.
        rr_tokens (`str`, *optional*):
            Tokens of the circuit breaker set that are rerouted: `"completion"`, `"tool_call"`, `"tool_name"`,
            `"after_injection"`, or `"all"` for the published computation. If `None`, the preset decides.
        rr_from (`str`, *optional*):
            Token of `rr_tokens` at which rerouting begins: the `"start"`, the `"divergence"` from the sibling's right
            call, or the `"tool_name"`. If `None`, the preset decides.
        injection_weight (`float`, *optional*, defaults to `0.0`):
            Weight, in rerouting, of those tokens of the injected span that are not among `rr_tokens`.
        decision_weight (`float`, *optional*):
            Weight of the tokens that decide what a completion does, its first and those of its tool's name, in the
            terms `retain_kl`, `distill`, `splice` and `ce`. All other tokens have weight 1. If `None`, the preset
            decides.
        retain_tokens (`str`, *optional*):
            Tokens of the retain set that the terms `retain_l2`, `retain_kl` and `triplet` are computed on, with the
            choices of `rr_tokens`. If `None`, the preset decides.
        retain_l2_layers (`list[str]`, *optional*):
            Layers of the term `retain_l2`: `"target"` for the target layers, numbers as in `target_layers`, or `"all"`
            for the published computation: the embeddings, every layer up to the last target, and the final norm after
            one layer more. If `None`, the preset decides.
        retain_l2_distance (`str`, *optional*):
            Measure of the term `retain_l2`: `"absolute"` for the distance itself, the published computation, whose
            weight has to suit the norm of the model's hidden states, or `"scaled"` for the distance as if the frozen
            state had norm 10, so that one weight suits all models. If `None`, the preset decides.
        retain_l2_norm (`str`, *optional*):
            Denominator of the term `retain_l2`: `"token"` for the number of `retain_tokens`, or `"reference"` for the
            number of positions of the padded batch, which is the published computation. Evaluation has the first in
            either case, because the second depends on the batch size. If `None`, the preset decides.
        kl_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the terms `retain_kl` and `distill`.
        triplet_margins (`list[float]`, *optional*, defaults to `[500.0, 1500.0]`):
            Margins of the term `triplet` on the retain set and on the circuit breaker set. They are distances between
            states, so they have to suit the model.

        > Parameters that control the adversary

        adversary_steps (`int`, *optional*):
            Gradient steps by which an adversary perturbs the embeddings of injected spans, towards the attacker's
            call, before the terms are computed. 0 is no adversary. If `None`, the preset decides.
        adversary_radius (`float`, *optional*, defaults to `1.5`):
            Largest norm of the perturbation of a token, relative to the mean norm of the model's embeddings.
        adversary_rate (`float`, *optional*, defaults to `0.8`):
            Fraction of the attacked prompts that are perturbed. The others are trained on as they are.
        adversary_padding (`int`, *optional*, defaults to `24`):
            Maximum number of random tokens put around the injected span of such a prompt, which are perturbed, too.
        adversary_warmup (`float`, *optional*, defaults to `0.4`):
            Fraction of the steps over which the radius grows from 0.

        > Parameters that control the training

        learning_rate (`float`, *optional*, defaults to `1e-4`):
            The initial learning rate.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant"`):
            The learning rate scheduler.
        max_steps (`int`, *optional*, defaults to `150`):
            Number of optimizer steps.
        num_train_epochs (`float`, *optional*, defaults to `0.0`):
            Not supported, and refused: the length of a run is `max_steps`.
        per_device_train_batch_size (`int`, *optional*, defaults to `16`):
            Rows of the circuit breaker set in a micro-batch.
        retain_batch_size (`int`, *optional*, defaults to `16`):
            Rows of the retain set in a micro-batch. Classes are drawn in proportion to their weights times their
            numbers of rows.

        > Parameters that control the speed

        padding_free (`bool`, *optional*, defaults to `True`):
            Whether rows are packed one after another instead of padded to the longest. The loss is the same. Models
            for which it would not be are refused: those with layers that mix tokens other than by attention.
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Whether a prefix that packed rows share, such as a system prompt with its tool schemas, is computed once.
            The loss is the same.
        skip_layers (`bool`, *optional*, defaults to `True`):
            Whether a forward ends at the last layer that its terms need. The loss is the same.
        masked_logits (`bool`, *optional*, defaults to `True`):
            Whether the LM head is only applied to the tokens that a term is computed on, in chunks. The loss is the
            same.
        logits_chunk_size (`int`, *optional*, defaults to `1024`):
            Number of tokens in a chunk of `masked_logits`.
        fused_lora (`bool`, *optional*, defaults to `True`):
            Whether LoRA's update is added to a layer's output in place, or to its weight where that takes fewer
            multiplications: where the rank is large for the layer. The loss is the same.
        fused_norms (`bool`, *optional*, defaults to `True`):
            Whether RMSNorm is computed in fewer passes over memory. The loss is the same.
        recompute_gates (`bool`, *optional*, defaults to `True`):
            Whether a gated MLP recomputes `silu(gate)` in its backward instead of saving it. The loss is the same.
        reference_cache (`str`, *optional*):
            Folder in which the frozen model's states are stored, to be reused by later epochs and runs. If `None`,
            they are not stored.

        > Parameters that control what is saved

        tokenizer_name_or_path (`str`, *optional*):
            Folder of the tokenizer that the data were made with, where it is not the model's own: what
            `cb-datasets tokenizer` wrote. If `None`, the model's.
        dataset_revision (`str`, *optional*):
            Revision of the dataset, for the model card: a commit on the Hub, or a hash. The training script sets it.
        merge (`bool`, *optional*, defaults to `False`):
            Whether the model with the adapter merged into it is also saved, in `merged/` beside the adapter.
    """

    # Parameters that control the model
    model_init_kwargs: dict[str, Any] | str | None = None
    trust_remote_code: bool = False
    allow_pickled_weights: bool = False
    lora_b_init_std: float | None = None

    # Parameters that control the data
    dataset_num_proc: int | None = None
    max_length: int = MAX_LENGTH
    pad_to_multiple_of: int | None = None
    span_wrap_probability: float | None = None
    span_noise_probability: float | None = None
    bare_head_probability: float | None = None
    text_noise_probability: float | None = None

    # Parameters that control the loss
    assistant_only_loss: bool = False
    preset: str = "selective"
    rr_weight: float | None = None
    unlikelihood_weight: float | None = None
    stop_weight: float | None = None
    triplet_weight: float | None = None
    retain_l2_weight: float | None = None
    retain_kl_weight: float | None = None
    distill_weight: float | None = None
    twin_weight: float | None = None
    splice_weight: float | None = None
    ce_weight: float | None = None
    term_classes: dict[str, Any] | str | None = None
    schedule: str | None = None
    target_layers: list[float] = field(default_factory=lambda: [0.3125, 0.625])
    rr_tokens: str | None = None
    rr_from: str | None = None
    injection_weight: float = 0.0
    decision_weight: float | None = None
    retain_tokens: str | None = None
    retain_l2_layers: list[str] | None = None
    retain_l2_distance: str | None = None
    retain_l2_norm: str | None = None
    kl_temperature: float = 1.0
    triplet_margins: list[float] = field(default_factory=lambda: [500.0, 1500.0])

    # Parameters that control the adversary
    adversary_steps: int | None = None
    adversary_radius: float = 1.5
    adversary_rate: float = 0.8
    adversary_padding: int = 24
    adversary_warmup: float = 0.4

    # Parameters that control the training
    learning_rate: float = 1e-4
    lr_scheduler_type: str = "constant"
    max_steps: int = 150
    num_train_epochs: float = 0.0
    per_device_train_batch_size: int = 16
    retain_batch_size: int = 16

    # Parameters that control the speed
    padding_free: bool = True
    shared_prefix: bool = True
    skip_layers: bool = True
    masked_logits: bool = True
    logits_chunk_size: int = 1024
    fused_lora: bool = True
    fused_norms: bool = True
    recompute_gates: bool = True
    reference_cache: str | None = None

    # Parameters that control what is saved
    tokenizer_name_or_path: str | None = None
    dataset_revision: str | None = None
    merge: bool = False

    _VALID_DICT_FIELDS = [*_BaseConfig._VALID_DICT_FIELDS, "model_init_kwargs", "term_classes"]

    def __post_init__(self):
        check_numbers(self)
        check_choice("preset", self.preset, tuple(PRESETS))
        for name, choices in (("lr_scheduler_type", SchedulerType), ("optim", OptimizerNames)):
            check_choice(name, getattr(self, name), tuple(choice.value for choice in choices))
        for name in ("log_level", "log_level_replica"):
            check_choice(name, getattr(self, name), tuple(trainer_log_levels))
        check_supported(self)
        if self.push_to_hub:
            raise ValueError(f"`push_to_hub` is not supported: {NO_PUSH}")
        check_trackers(self.report_to)
        check_accelerator(self.accelerator_config)
        check_packages(self, {"deepspeed": "deepspeed", "use_liger_kernel": "liger_kernel"})

        super().__post_init__()

        check_init_kwargs(as_dict(self.model_init_kwargs))
        if str(self.resume_from_checkpoint).lower() in ("true", "false"):  # a flag is text
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true"  # type: ignore[assignment]
        if isinstance(self.retain_l2_layers, str):  # `retain_l2_layers: target` in a recipe
            self.retain_l2_layers = [self.retain_l2_layers]
        for name, value in ({f"{term}_weight": 0.0 for term in TERMS} | PRESETS[self.preset]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("rr_tokens", MASKS),
            ("rr_from", STARTS),
            ("retain_tokens", MASKS),
            ("retain_l2_distance", DISTANCES),
            ("retain_l2_norm", ("token", "reference")),
        ):
            check_choice(name, getattr(self, name), allowed)
        if self.assistant_only_loss:
            raise ValueError(
                "`assistant_only_loss` is a setting of TRL's SFTTrainer and not supported: the losses are on the last "
                "turn of a row, its completion, and on no earlier turn. Leave it out."
            )
        if not self.target_layers or not all(layer > 0 for layer in self.target_layers):  # NaN is not
            raise ValueError(f"`target_layers` must hold layers from 1 up or fractions, got {self.target_layers}.")
        if self.max_steps < 1:
            raise ValueError(
                f"`max_steps` must be at least 1, got {self.max_steps}: the schedule of the coefficients needs the "
                "number of optimizer steps."
            )
        if self.shared_prefix and not self.padding_free:
            raise ValueError("`shared_prefix` needs packed rows. Set `padding_free: true`, or both to false.")
        if not self.weights:
            raise ValueError("Every term of the loss has weight 0. Give one a weight, e.g. `rr_weight: 10`.")
        layers = list(self.retain_l2_layers or ())
        if layers not in (["all"], ["target"]) and not all(is_number(layer, float) for layer in layers):
            raise ValueError(f"`retain_l2_layers` must be all, target or layers, got {self.retain_l2_layers}.")
        if len(self.triplet_margins) != 2:
            raise ValueError(f"`triplet_margins` must be two numbers, got {self.triplet_margins}.")
        for term, classes in as_dict(self.term_classes).items():
            check_choice("a term of `term_classes`", term, tuple(TERMS))
            if not isinstance(classes, list | tuple) or not classes:
                raise ValueError(
                    f"`term_classes` must have a list of classes for {term!r}, got {classes!r}. To leave the term "
                    f"out, set `{term}_weight: 0`."
                )
            known = list(PRIORITY_WEIGHTS)
            if unknown := [name for name in classes if name not in known]:
                raise ValueError(f"`term_classes` has {unknown} for {term!r}; the classes are {known}.")

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the terms in use."""
        weights = {term: getattr(self, f"{term}_weight") for term in TERMS}
        return {term: weight for term, weight in weights.items() if weight}

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """For each term in use, the classes of rows it applies to."""
        overrides = as_dict(self.term_classes)
        return {term: tuple(overrides.get(term, TERMS[term].classes)) for term in self.weights}


def as_dict(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Value of a dictionary field, which `TrainingArguments` has parsed if it was a string; empty for `None`."""
    return value if isinstance(value, dict) else {}
