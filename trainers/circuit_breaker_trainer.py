"""Circuit breakers as a TRL-style trainer."""

import inspect
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import fields
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    SchedulerType,
    TrainerCallback,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import create_model_from_path, get_config_model_id, global_then_local_main_first

from cb_datasets import chat
from cb_datasets.files import filling, remove_orphans, scratch_folder, write_text
from cb_datasets.formats import format_of
from cb_datasets.generation.adapter_scale import scale_faults
from cb_datasets.generation.backend import revision_of
from cb_datasets.generation.model_files import check_loaded, loading
from cb_datasets.generation.serving import max_lora_rank, serving_command, serving_faults
from cb_datasets.generation.tokenizer import load_tokenizer
from cb_datasets.markdown import code
from cb_datasets.public_name import folder_name, hub_id, local_label, publish_adapter_config
from cb_datasets.publish.released_rows import stored_dataset
from cb_datasets.sample import CIRCUIT_BREAKER, HARMFUL_CLASSES, RETAIN, RETAIN_CLASSES
from cb_datasets.template_probe import check_rendering

from . import augment, checkpoints, tokenize_rows
from .batch_sampler import CircuitBreakerBatchSampler, RowsAndCopies, copy_of
from .callbacks import AtTrainBegin, LiveLine, Watchdog
from .circuit_breaker_config import CircuitBreakerConfig, as_dict
from .collator import DataCollatorForCircuitBreaker
from .lora_targets import REASONS, choose_targets, lora_coverage
from .model_card import model_card
from .objective import losses
from .objective.hidden_states import get_base_model, get_decoder
from .objective.masks import MaskSettings
from .objective.objective import Objective
from .objective.terms import NORM, TERMS, Plan
from .quantized import keep_differentiable
from .speed.fused_lora import fuse_lora
from .speed.fused_rms_norm import fuse_norms
from .speed.packing_check import use_packed_attention
from .speed.recomputed_mlp import recompute_gates
from .speed.reference_cache import ReferenceCache, fingerprint


logger = get_logger(__name__)

# Terms that apply to rows whose attack was cut from the prompt.
_ON_REDACTED = [name for name, term in TERMS.items() if term.on_redacted]


class CircuitBreakerTrainer(_BaseTrainer):
    """
    Trainer for circuit breakers. The first method, Representation Rerouting (RR), was proposed in the paper
    [Improving Alignment and Robustness with Circuit Breakers](https://huggingface.co/papers/2406.04313). This class is
    a wrapper around the [`~transformers.Trainer`] class and inherits all of its attributes and methods.

    An adapter is trained so that the model no longer produces the completions in the circuit breaker set, while its
    behaviour on the retain set stays as it is. The loss is a weighted sum of named terms (see `losses.py`), chosen by
    `preset`: `"reference"` is RR, which makes the hidden states of harmful completions orthogonal to those of the
    frozen model; `"selective"` teaches the call that the user asked for. The frozen model is the same network with the
    adapter disabled; there is no second model.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from peft import LoraConfig
    >>> from trainers import CircuitBreakerConfig, CircuitBreakerTrainer

    >>> dataset = load_dataset("parquet", data_files="data/circuit_breakers/stage2/train/data.parquet", split="train")

    >>> trainer = CircuitBreakerTrainer(
    ...     model="meta-llama/Llama-3.1-8B-Instruct",
    ...     args=CircuitBreakerConfig("adapter", target_layers=[10, 20]),
    ...     train_dataset=dataset,
    ...     peft_config=LoraConfig(r=16, lora_alpha=16, lora_dropout=0.05),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained. Can be either:

            - A string, being the *model id* of a pretrained model hosted inside a model repo on huggingface.co, or a
              path to a *directory* containing model weights. It is loaded with the keyword arguments in
              `args.model_init_kwargs`; if `dtype` is not among them, it defaults to `float32`.
            - A [`~transformers.PreTrainedModel`] object. Only causal language models are supported.
            - A [`~peft.PeftModel`] object, whose adapter is trained further. `peft_config` must be `None`.

            With `padding_free` the attention implementation of the model is set to one that supports packed rows.
        args ([`CircuitBreakerConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Function to use to form a batch from a list of prepared rows. Will default to
            [`DataCollatorForCircuitBreaker`].
        train_dataset ([`~datasets.Dataset`]):
            Samples to train on, of both sets (see `cb_datasets/sample.py`), or rows of a release.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Samples to compute the losses on, of both sets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer whose chat template renders the prompts. If `None`, it is loaded from the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add to the default ones.
        optimizers (`tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]`, *optional*):
            Optimizer and scheduler to use. Will default to those that `args` describes.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization configuration for a `model` that is a string: QLoRA.
        peft_config ([`~peft.LoraConfig`], *optional*):
            Configuration of the adapter. `target_modules` defaults to all linear modules of the decoder layers but
            routers, experts and a few more (see `lora_targets.py`), and `layers_to_transform` to the decoder layers
            that the loss depends on: the others would keep their initial noise. If `target_modules` is a string, it is
            a regular expression for whole module names, which selects the decoder layers, too.
    """

    args: CircuitBreakerConfig
    model: PeftModel
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset
    objective: Objective

    # `compute_loss` returns the mean over a micro-batch; `Trainer` divides it by the accumulation steps.
    loss_is_scaled_for_ga = False  # type: ignore[assignment]  # TRL's `None` stands for a boolean not yet known

    _tag_names = ["trl", "circuit-breaker"]
    _name = "Circuit Breaker"
    _paper = {
        "title": "Improving Alignment and Robustness with Circuit Breakers",
        "id": "2406.04313",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{zou2024improving,
                title        = {{Improving Alignment and Robustness with Circuit Breakers}},
                author       = {Andy Zou and Long Phan and Justin Wang and Derek Duenas and Maxwell Lin and
                                Maksym Andriushchenko and Rowan Wang and J. Zico Kolter and Matt Fredrikson and
                                Dan Hendrycks},
                year         = 2024,
                booktitle    = {Advances in Neural Information Processing Systems 37},
                eprint       = {arXiv:2406.04313},
            }"""),
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: CircuitBreakerConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
    ):
        # Args
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = CircuitBreakerConfig(f"{model_name.split('/')[-1]}-CircuitBreaker")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        if args.gradient_checkpointing and as_dict(args.gradient_checkpointing_kwargs).get("use_reentrant"):
            raise ValueError(
                "Checkpointing with `use_reentrant=True` is not supported: it runs the decoder layers without "
                "gradient, so their recorded hidden states have none. Use `use_reentrant=False`."
            )
        if isinstance(args.accelerator_config, AcceleratorConfig) and args.accelerator_config.split_batches:
            raise ValueError(
                "`split_batches=True` is not supported: a batch is rows of the circuit breaker set followed by rows "
                "of the retain set, and parts of it would lack one of the two. Use `split_batches=False`."
            )
        if isinstance(args.accelerator_config, AcceleratorConfig) and args.accelerator_config.dispatch_batches:
            raise ValueError(
                "`dispatch_batches=True` in `accelerator_config` is not supported: it cuts a batch into rows, and the "
                "tensors of a batch here have an entry per token, not per row. Leave it out."
            )
        if args.eval_on_start and eval_dataset is None:
            raise ValueError(
                "`eval_on_start` needs an `eval_dataset`, which a recipe has with `eval_strategy: steps`. Set it, or "
                "leave `eval_on_start` out."
            )

        if args.ddp_broadcast_buffers is None:
            # The only buffers are constants. DDP would broadcast them in every forward, and processes whose rows need
            # different numbers of forwards would deadlock.
            args.ddp_broadcast_buffers = False

        # Processing class, before the model, which takes long to load: rows of another model are refused at once
        if processing_class is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            # Another tokenizer than the model's has revisions of its own
            revision = as_dict(args.model_init_kwargs).get("revision") if args.tokenizer_name_or_path is None else None
            processing_class = load_tokenizer(
                args.tokenizer_name_or_path or model_name,
                revision=revision or "main",
                # The revision that pins the code is the model's
                trust_remote_code=args.trust_remote_code and args.tokenizer_name_or_path is None,
            )
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        train_dataset = self._own_rows(train_dataset, processing_class, "train")
        if eval_dataset is not None:
            eval_dataset = self._own_rows(eval_dataset, processing_class, "eval")

        # Model
        # PEFT initializes the adapter weights randomly, so set_seed must be done before creating the model to ensure
        # reproducibility.
        set_seed(args.seed)
        if isinstance(model, str):
            model_init_kwargs = dict(as_dict(args.model_init_kwargs))  # copy to avoid mutating model_init_kwargs
            # Distributed training requires device_map=None ("auto" fails)
            if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
                model_init_kwargs["device_map"] = None
            model_init_kwargs["trust_remote_code"] = args.trust_remote_code
            model_init_kwargs["use_safetensors"] = None if args.allow_pickled_weights else True
            if quantization_config is not None:
                model_init_kwargs["quantization_config"] = quantization_config
            with loading(model, f"weights, with `model_init_kwargs: {as_dict(args.model_init_kwargs)}`,"):
                # TRL would read the architecture, and with it the code that a model ships, from the newest revision
                architecture: Any = AutoModelForCausalLM if args.trust_remote_code else None
                created: Any = create_model_from_path(
                    model, architecture, **model_init_kwargs, output_loading_info=True
                )
            loaded, info = created  # with the information, which the annotation of TRL leaves out
            check_loaded(model, info)
            model = cast(PreTrainedModel, loaded)
        elif quantization_config is not None:
            raise ValueError(
                "You passed a `quantization_config`, but your model is already instantiated. Pass the model as a "
                "string, or quantize it yourself."
            )
        elif args.model_init_kwargs is not None:
            logger.warning(
                "You passed `model_init_kwargs` to the `CircuitBreakerConfig`, but your model is already "
                "instantiated. The `model_init_kwargs` will be ignored."
            )

        if args.merge and "quantization_config" in model.config.to_dict():
            raise ValueError(
                "`merge` is not supported with a quantized model: merging would round the adapter's weights, too. "
                "Merge into the original: `PeftModel.from_pretrained(base, adapter).merge_and_unload()`."
            )
        keep_differentiable(model)

        # The model must agree with the tokenizer on the pad token from construction, so mirror it onto the model
        # configs.
        model.config.get_text_config().pad_token_id = processing_class.pad_token_id
        model.generation_config.pad_token_id = processing_class.pad_token_id

        # Terms of the loss, before the adapter, which is only put on the layers that they depend on
        self.plan = self._make_plan(model, args)
        self._terms = list(self.plan.classes)

        # PEFT
        if peft_config is not None:
            if isinstance(model, PeftModel):
                raise ValueError(
                    "You passed a `PeftModel` instance together with a `peft_config` to the trainer. Please first "
                    "merge and unload the existing adapter, save the resulting base model, and then pass that base "
                    "model along with the new `peft_config` to the trainer."
                )
            model = self._add_adapter(model, peft_config, args)
        elif not isinstance(model, PeftModel):
            raise ValueError(
                "A circuit breaker is an adapter, and the model without the adapter is its reference. Pass a "
                "`peft_config`, e.g. `LoraConfig(r=16, lora_alpha=16)`, or `use_peft: true` in a recipe."
            )
        else:
            _check_existing_adapter(model)

        self.lora_coverage = lora_coverage(model, self.plan.layers_reached)

        # Speed
        if args.fused_lora:
            fuse_lora(model)
        if args.fused_norms:
            fuse_norms(get_decoder(model))
        if args.recompute_gates:
            recompute_gates(get_decoder(model))
        if args.padding_free:
            use_packed_attention(model, self.plan.layers_reached, args.max_length)
        cache = None
        if args.reference_cache is not None:
            # With `masked_logits` terms on logits store the states from which the LM head computes them
            outputs = "states" if args.masked_logits else "logits"
            precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "own"  # of autocast
            cache = ReferenceCache(Path(args.reference_cache), f"{outputs} {precision} {fingerprint(model)}")

        # Data collator
        if data_collator is None:
            data_collator = DataCollatorForCircuitBreaker(
                plan=self.plan,
                pad_token_id=processing_class.pad_token_id,
                pad_to_multiple_of=args.pad_to_multiple_of,
                padding_free=args.padding_free,
                shared_prefix=args.shared_prefix,
                cache=cache,
            )

        # Dataset
        train_dataset = self._prepare_dataset(train_dataset, processing_class, args, "train")
        if eval_dataset is not None:
            eval_dataset = self._prepare_dataset(eval_dataset, processing_class, args, "eval")

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if args.n_gpu > 1:
            raise ValueError(
                f"{type(self).__name__} does not support `nn.DataParallel`, which `Trainer` uses when several GPUs "
                "are visible to a single process. Launch the script with `accelerate launch` or `torchrun`, or make a "
                "single GPU visible with `CUDA_VISIBLE_DEVICES`."
            )

        self._refuse_with_fsdp(args)

        # With FSDP2 all processes must run the same forwards, and joining them depends on the rows
        if self.is_fsdp_enabled and isinstance(self.data_collator, DataCollatorForCircuitBreaker):
            self.data_collator.join_forwards = False

        # Loss
        self.objective = Objective(self.model, self.plan, args, cache)

        # Initialize the metrics: lists of (sum over items, number of items), because batches differ in their tokens
        self._metrics: dict[str, defaultdict[str, list[tuple[float, float]]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        self.num_tokens = 0  # of the rows trained on, on all processes, however many were computed

        # Checkpoints
        self._unfinished: Path | None = None  # folder in which a checkpoint is being written
        self._resumed_from: str | None = None
        self.add_callback(AtTrainBegin(self._resume))

        # Show the metrics in the progress bar instead of printed dictionaries
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LiveLine(lambda: self.num_tokens))
        self.add_callback(Watchdog(self.plan.classes))

        # Add tags to the model
        get_base_model(self.model).add_model_tags(self._tag_names)

    @property
    def output_folder(self) -> Path:
        """Folder that the adapter is saved in."""
        assert self.args.output_dir is not None  # `TrainingArguments` has a default
        return Path(self.args.output_dir)

    # TRL reports model type, hardware and world size of every run to the Hub. Runs on unpublished attack data report
    # nothing, with or without `HF_HUB_DISABLE_TELEMETRY`.
    def _send_telemetry(self):
        pass

    def _refuse_with_fsdp(self, args: CircuitBreakerConfig) -> None:
        """Raise an error for settings that do not work when each process holds a part of the model."""
        if not self.is_fsdp_enabled:
            return
        for name, value, reason in (
            ("reference_cache", args.reference_cache, "processes with stored rows would skip forwards of the others"),
            ("merge", args.merge, "no process has the whole model"),
            ("adversary_steps", args.adversary_steps, "processes with different rows would run different forwards"),
        ):
            if value:
                raise ValueError(f"`{name}` is not supported with FSDP2: {reason}. Leave it out, or use DDP.")

    def _make_plan(self, model: PreTrainedModel | PeftModel, args: CircuitBreakerConfig) -> Plan:
        """The terms of the run, with layers as numbers of this model."""
        num_layers = len(get_decoder(model).layers)
        target_layers = _layer_numbers("target_layers", args.target_layers, num_layers)
        if args.retain_l2_layers == ["all"]:
            # The published code truncates the model one decoder layer above the last target layer and takes all hidden
            # states of the truncated model, the last one after the final norm.
            retain_layers = (*range(min(target_layers[-1] + 1, num_layers)), NORM)
        elif args.retain_l2_layers == ["target"]:
            retain_layers = target_layers
        else:
            retain_layers = _layer_numbers(
                "retain_l2_layers", [float(layer) for layer in args.retain_l2_layers or ()], num_layers
            )
        return Plan(
            classes=args.classes,
            target_layers=target_layers,
            retain_layers=retain_layers,
            num_layers=num_layers,
            masks=MaskSettings(**{field.name: getattr(args, field.name) for field in fields(MaskSettings)}),
            over_padding=tuple(
                name
                for name in args.classes
                if (setting := TERMS[name].padding_setting) and getattr(args, setting) == "reference"
            ),
            skip_layers=args.skip_layers,
        )

    def _add_adapter(self, model: PreTrainedModel, peft_config: PeftConfig, args: CircuitBreakerConfig) -> PeftModel:
        """The model with a new adapter on the layers that the loss depends on."""
        if not isinstance(peft_config, LoraConfig):
            raise TypeError(f"`peft_config` must be a `peft.LoraConfig`, got {type(peft_config).__name__}.")
        _check_reference(peft_config)
        if faults := serving_faults(peft_config.to_dict()):
            logger.warning(
                f"The adapter has {', '.join(faults)}, so vLLM cannot serve it. Leave that out, or set `merge: true` "
                "and serve the merged model."
            )
        peft_config = copy(peft_config)
        num_layers = self.plan.layers_reached
        choose_targets(model, peft_config, num_layers)
        layers = get_decoder(model).layers
        try:
            adapted = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ValueError(f"`target_modules`, in a recipe `lora_target_modules`: {error}") from error
        for number, layer in enumerate(layers[num_layers:], start=num_layers):
            if _with_lora(layer):
                raise ValueError(
                    f"The adapter has weights in decoder layer {number} (counted from 0), but with these terms and "
                    f"layers the loss depends on none above {num_layers - 1}: they would never be trained. Leave the "
                    "layer out of `layers_to_transform`, or of the pattern in `target_modules`."
                )
        embeddings = {model.get_input_embeddings(), model.get_output_embeddings()}
        others = _with_lora(adapted) - _with_lora(layers) - embeddings
        if others:
            names = [name for name, module in adapted.get_base_model().named_modules() if module in others]
            raise ValueError(
                f"The adapter has weights outside of the decoder layers, which would never be trained: "
                f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}. Leave them out of the pattern in "
                "`target_modules`."
            )

        # Noise in place of B = 0, where the cosine of `rr` is at its maximum and has no gradient. MiCA starts with
        # A = 0 and never trains B, which holds singular vectors of the base weights
        zeros = ".lora_A." if str(peft_config.init_lora_weights).lower() == "mica" else ".lora_B."
        generator = torch.Generator().manual_seed(args.seed)  # on the CPU: the same noise on every device
        for name, parameter in adapted.named_parameters():
            if zeros in name:
                noise = torch.randn(parameter.shape, generator=generator) * (args.lora_b_init_std or 0.0)
                parameter.data.copy_(noise)
        return adapted

    def _own_rows(self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, dataset_name: str) -> Dataset:
        """The dataset as samples, which were made for this tokenizer; a dataset that is tokenized already as it is."""
        if not isinstance(dataset, Dataset):
            raise TypeError(f"The {dataset_name} dataset must be a `Dataset`, got `{type(dataset).__name__}`.")
        if "input_ids" in dataset.column_names:
            return dataset
        dataset = stored_dataset(dataset)
        check_rendering(dataset.select_columns(["id", "provenance"]), processing_class, dataset_name)
        return dataset

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: CircuitBreakerConfig,
        dataset_name: str,
    ) -> Dataset:
        # Tokenize the dataset, unless it has been already
        if "input_ids" not in dataset.column_names:

            def prepare_fn(example, tokenizer, siblings, augmentation, sources):
                return tokenize_rows.prepare_row(example, tokenizer, siblings, augmentation)

            with global_then_local_main_first():
                dataset = dataset.map(
                    prepare_fn,
                    # `map` hashes this function, but not the modules it calls. With their sources among the arguments
                    # a result that was cached before they were edited is not reused.
                    fn_kwargs={
                        "tokenizer": processing_class,
                        "siblings": tokenize_rows.siblings_of(dataset),
                        "augmentation": _augmentation(dataset, processing_class, args, dataset_name),
                        "sources": (chat.RENDERER_HASH, *map(inspect.getsource, (augment, tokenize_rows))),
                    },
                    num_proc=args.dataset_num_proc,
                    remove_columns=[
                        name for name in dataset.column_names if name not in ("id", "pair", "set", "priority_class")
                    ],
                    desc=f"Tokenizing {dataset_name} dataset",
                )

        self._check_rows(dataset, args, dataset_name)
        self._rows_by_class(dataset, dataset_name)  # raises where a set has no rows
        return dataset

    def _check_rows(self, dataset: Dataset, args: CircuitBreakerConfig, dataset_name: str) -> None:
        """Raise an error if rows are too long, or have no token for a term that applies to them."""
        faults = defaultdict(list)  # ids of rows by fault and remedy
        for row in dataset:
            if row["num_tokens"] > args.max_length:
                faults[
                    f"more than `max_length={args.max_length}` tokens",
                    "Shorten or drop them when building the dataset; nothing is truncated here.",
                ].append(row["id"])
            if row["num_tokens"] == row["prompt_length"]:
                faults["no completion", "Drop them when building the dataset."].append(row["id"])
                continue
            for term in self.plan.terms_of(row):
                if not TERMS[term].optional and not len(self.plan.gather(term, row).positions):
                    faults[
                        f"no token for the term {term!r}",
                        f"Leave the class {row['priority_class']!r} out of the term in `term_classes`.",
                    ].append(row["id"])
        for (fault, remedy), ids in faults.items():
            raise ValueError(
                f"{len(ids)} of the {len(dataset)} rows of the {dataset_name} dataset have {fault}: "
                f"{', '.join(ids[:10])}{', ...' if len(ids) > 10 else ''}. {remedy}"
            )

    def _rows_by_class(self, dataset: Dataset, dataset_name: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Rows of Ds and rows of Dr, by class. Rows to which no term applies are left out."""
        used = {name for classes in self.plan.classes.values() for name in classes}
        num_redacted = 0  # of the rows that are left out because their attack was cut from the prompt
        rows: dict[str, dict[str, list[int]]] = {CIRCUIT_BREAKER: defaultdict(list), RETAIN: defaultdict(list)}
        columns = (dataset[column][:] for column in ("set", "priority_class", "redacted"))
        for row, (name, priority_class, redacted) in enumerate(zip(*columns, strict=True)):
            known = {CIRCUIT_BREAKER: HARMFUL_CLASSES, RETAIN: RETAIN_CLASSES}.get(name, {})
            if priority_class not in known:
                raise ValueError(
                    f"Row {dataset[row]['id']} of the {dataset_name} dataset has an unknown class: set {name!r}, "
                    f"priority_class {priority_class!r}."
                )
            if self.plan.terms_of({"priority_class": priority_class, "redacted": redacted}):
                rows[name][priority_class].append(row)
            elif redacted and priority_class in used:
                num_redacted += 1
        redaction = (
            f"{num_redacted} rows of the {dataset_name} dataset are redacted (`generate-ds --redact-harmful-prompt`), "
            f"and of this run's terms none applies to them; {' and '.join(_ON_REDACTED)} would"
        )
        if num_redacted:
            logger.warning_once(f"{redaction}. They are left out.")
        for name, title in ((CIRCUIT_BREAKER, "circuit breaker set (Ds)"), (RETAIN, "retain set (Dr)")):
            classes = used & set(HARMFUL_CLASSES if name == CIRCUIT_BREAKER else RETAIN_CLASSES)
            if classes and not rows[name]:
                names = ", ".join(sorted(classes))
                cause = f" {redaction}: give one a weight, or build Ds without redaction." if num_redacted else ""
                raise ValueError(
                    f"The {dataset_name} dataset has no row of the {title} in the classes {names}.{cause}"
                )
        return dict(rows[CIRCUIT_BREAKER]), dict(rows[RETAIN])

    def _set_signature_columns_if_needed(self):
        # If `self.args.remove_unused_columns` is True, non-signature columns are removed. These are the columns that
        # the data collator needs.
        if self._signature_columns is None:
            self._signature_columns = [
                *("id", "set", "priority_class", "input_ids", "prompt_length", "injection", "tool_call", "tool_name"),
                *("answer_start", "divergence", "name_divergence", "clean_ids", "splice_ids", "splice_start"),
                *("hijack_ids", "slots"),
                "redacted",
            ]

    # The whole run is one pass over one batch sampler, so that a run resumes from a checkpoint by skipping the batches
    # already trained on.
    def get_train_dataloader(self) -> DataLoader:
        rows = self._remove_unused_columns(self.train_dataset, description="Training")
        return self._build_dataloader(rows, self._make_batch_sampler())

    def _make_batch_sampler(self) -> CircuitBreakerBatchSampler:
        breaker, retain = self._rows_by_class(self.train_dataset, "train")
        breaker_rows = list(chain.from_iterable(breaker.values()))
        by_pair = defaultdict(list)
        pairs = self.train_dataset["pair"][:]
        for row in chain.from_iterable(retain.values()):
            if pairs[row] is not None:
                by_pair[pairs[row]].append(row)
        return CircuitBreakerBatchSampler(
            breaker_rows,
            retain,
            RETAIN_CLASSES,
            batch_size=self._train_batch_size,
            retain_batch_size=self.args.retain_batch_size,
            num_steps=self.args.max_steps,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            batches_per_step=self.args.gradient_accumulation_steps * self.args.world_size,
            siblings={row: by_pair[pairs[row]] for row in breaker_rows if pairs[row] in by_pair},
        )

    # Every row counts once. The last batches may have rows of the larger set only.
    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.eval_batch_size
        sets = [list(chain.from_iterable(classes.values())) for classes in self._rows_by_class(dataset, "eval")]
        chunks = [[rows[start : start + size] for start in range(0, len(rows), size)] for rows in sets]
        batches = [breaker_rows + retain_rows for breaker_rows, retain_rows in zip_longest(*chunks, fillvalue=[])]
        # All processes must run equally many batches. Accelerate would repeat the first ones, as if they were new.
        repeated = islice(cycle(batches), -len(batches) % self.args.world_size)
        batches += [[copy_of(row) for row in batch] for batch in repeated]
        rows = self._remove_unused_columns(dataset, description="Evaluation")
        return self._build_dataloader(RowsAndCopies(rows), batches)

    def _build_dataloader(
        self, dataset: Dataset | RowsAndCopies, batches: CircuitBreakerBatchSampler | list[list[int]]
    ) -> DataLoader:
        dataloader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(dataloader)

    # Items of each term per micro-batch, averaged over the micro-batches of an optimizer step and over the processes.
    # With this denominator the mean of the micro-batches' losses is the mean over all their tokens, so that 8 batches
    # of 1 row give the same step as 1 batch of 8 rows.
    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        items = torch.stack([inputs["num_items"] for inputs in batch_samples]).mean(0).to(self.accelerator.device)
        return self.accelerator.reduce(items, reduction="mean")

    def _coefficients(self, step: int) -> dict[str, float]:
        """Weight of each term at an optimizer step."""
        assert self.args.schedule is not None  # the preset has set it
        breaker, retain = losses.schedule(self.args.schedule, step, self.args.max_steps)
        factors = {"breaker": breaker, "retain": retain}
        return {term: weight * factors[TERMS[term].role] for term, weight in self.args.weights.items()}

    def _adversary_radius(self, step: int) -> float:
        """Radius of the adversary at an optimizer step. It grows, so that the model learns without it first."""
        if not self.args.adversary_steps:
            return 0.0
        warmup = self.args.adversary_warmup * self.args.max_steps
        return self.args.adversary_radius * (min(1.0, step / warmup) if warmup else 1.0)

    def _compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None
    ) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        # `global_step` counts completed steps. Algorithm 1 counts from 1, so that training is at the next step, and
        # evaluation at the last one.
        step = self.state.global_step + (1 if mode == "train" else 0)
        coefficients = self._coefficients(step)
        items = inputs["num_items"] if num_items_in_batch is None else num_items_in_batch

        if self.is_fsdp_enabled:
            self._check_same_forwards(inputs)
        items_of = dict(zip(self._terms, items, strict=True))
        radius = self._adversary_radius(step) if mode == "train" else 0.0
        terms = {  # of this batch: an evaluation batch may have rows of one set only
            term: losses.weighted_mean(values, inputs["weights"][term], items_of[term])
            for term, values in self.objective.values(model, inputs, radius)
        }
        zero = torch.zeros((), device=self.accelerator.device)
        loss = sum((coefficients[term] * value for term, value in terms.items()), start=zero)
        if not torch.isfinite(loss):
            self._stop_at_nan(step, loss, terms, inputs)

        self._log_terms(mode, coefficients, terms, items, inputs)
        if mode == "eval" or self._is_logged(step):
            self._log_measured(mode, self.objective.measure(inputs["measure"]), inputs)
        return loss

    def _check_same_forwards(self, inputs: dict[str, Any]) -> None:
        """Raise an error if the processes would run different forwards: with FSDP2 they would deadlock."""
        layers_run = [[forward["num_layers"] for forward in inputs[network]] for network in ("frozen", "adapted")]
        # Number of forwards of each network by their number of layers: a tensor of the same shape on all processes
        counts = [[layers.count(number) for number in range(self.plan.num_layers + 1)] for layers in layers_run]
        all_counts = self.accelerator.gather(torch.tensor([counts], device=self.accelerator.device))
        if (all_counts != all_counts[0]).any():
            raise ValueError(
                "The processes have rows of different terms, so they would run different forwards, which FSDP2 does "
                "not allow. Raise `retain_batch_size` until every micro-batch has rows of every class, or use DDP."
            )

    def _stop_at_nan(
        self, step: int, loss: torch.Tensor, terms: dict[str, torch.Tensor], inputs: dict[str, Any]
    ) -> NoReturn:
        values = ", ".join(f"{term} {value.item()}" for term, value in terms.items())
        raise FloatingPointError(
            f"The loss is {loss.item()} at step {step} ({values}), in a batch of the rows {', '.join(inputs['ids'])}. "
            "Lower the learning rate, or train in bfloat16 or float32 where float16 overflows."
        )

    def _is_logged(self, step: int) -> bool:
        """Whether `Trainer` logs at this step, so that the extra forwards of the measurement are worth it."""
        return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)

    def _log_terms(
        self,
        mode: str,
        coefficients: dict[str, float],
        terms: dict[str, torch.Tensor],
        items: torch.Tensor,
        inputs: dict[str, Any],
    ) -> None:
        """Record the terms of a batch, summed over the processes."""
        # One gather for everything, of the same size on all processes, which may have rows of different sets
        zero = torch.zeros((), device=self.accelerator.device)
        sums = [
            (terms[term].detach() * term_items) if term in terms else zero
            for term, term_items in zip(self._terms, items, strict=True)
        ]
        local = torch.cat([torch.stack(sums), inputs["num_items"], zero[None] + inputs["num_tokens"]])
        local *= inputs["counts"]
        *totals, num_tokens = self.accelerator.gather(local[None]).sum(0).tolist()
        self.num_tokens += num_tokens if mode == "train" else 0
        num_terms = len(self._terms)
        for term, total, num_items in zip(self._terms, totals[:num_terms], totals[num_terms:], strict=True):
            if num_items:
                self._metrics[mode][f"loss/{term}"].append((total, num_items))
            self._metrics[mode][f"coefficient/{term}"].append((coefficients[term], 1))

    def _log_measured(self, mode: str, sums: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Record the sums of [`Objective.measure`], added up over the processes."""
        metrics, layers = self._metrics[mode], self.plan.target_layers
        totals = self.accelerator.gather(sums[None] * inputs["counts"]).sum(0).tolist()
        for name, (items, *values) in zip(("ds", "dr"), totals, strict=True):
            if not items:
                continue
            cosines, distances, entropies = values[: len(layers)], values[len(layers) : -2], values[-2:]
            metrics[f"cosine/{name}"].append((sum(cosines) / len(layers), items))
            metrics[f"distance/{name}"].append((sum(distances) / len(layers), items))
            for layer, cosine in zip(layers, cosines, strict=True):
                metrics[f"cosine/{name}_layer_{layer}"].append((cosine, items))
            if self.args.masked_logits:
                for network, entropy in zip(("adapted", "frozen"), entropies, strict=True):
                    metrics[f"entropy/{name}_{network}"].append((entropy, items))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self._compute_loss(model, inputs, num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # A dataset passed directly is prepared as in `__init__`. `_prepare_dataset` is idempotent.
        if eval_dataset is not None:
            eval_dataset = self._own_rows(eval_dataset, self.processing_class, "eval")
            eval_dataset = self._prepare_dataset(eval_dataset, self.processing_class, self.args, "eval")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        # average the metrics
        metrics = {
            key: sum(total for total, _ in values) / sum(items for _, items in values)
            for key, values in self._metrics[mode].items()
        }
        # This method can be called both in training and evaluation. When called in evaluation, the keys in `logs`
        # start with "eval_". We need to add the prefix "eval_" to the keys in `metrics` to match the format.
        if mode == "eval" and metrics:
            # `Trainer` averages the losses of batches, some of which have rows of one set only. Here the loss is that
            # of all rows together.
            metrics["loss"] = sum(
                metrics[f"coefficient/{term}"] * metrics[f"loss/{term}"]
                for term in self._terms
                if f"loss/{term}" in metrics
            )
            metrics = {f"eval_{key}": value for key, value in metrics.items()}
        logs.update(metrics)
        super().log(logs, start_time)
        self._metrics[mode].clear()

    # During eval, Trainer calls prediction_step. If no labels are present in the inputs, it only runs forward and
    # returns logits. We override prediction_step to force compute_loss, because this trainer doesn't involve labels.
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        inputs = self._prepare_inputs(inputs)
        # Means over tokens, also with `retain_l2_norm="reference"`: the positions of a padded batch depend on its size
        num_items = {term: weights.sum() for term, weights in inputs["weights"].items()}
        zero = torch.zeros((), device=self.accelerator.device)
        inputs["num_items"] = torch.stack([num_items.get(term, zero) for term in self._terms])
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss, None, None

    def card_facts(self, model_name: str | None = None, dataset_name: str | None = None) -> dict[str, Any]:
        """
        The facts in the model card that come from the training: all but curves, gates and evaluation.

        Args:
            model_name (`str`, *optional*):
                Name of the breaker. If `None`, the name of the output folder.
            dataset_name (`str`, *optional*):
                Hub id or folder of the dataset.
        """
        # The keys of `settings` are row titles of the card's table
        args = self.args
        adapters = [config.to_dict() for config in self.accelerator.unwrap_model(self.model).peft_config.values()]
        base = get_config_model_id(get_base_model(self.model).config)
        base_model = hub_id(base)
        on_disk = dataset_name is not None and Path(dataset_name).exists()
        unserved = [fault for config in adapters for fault in serving_faults(config)]
        settings = {
            "optimizer steps": args.max_steps,
            "rows of Ds and of Dr in a step": " + ".join(
                str(rows * args.gradient_accumulation_steps * args.world_size)
                for rows in (args.per_device_train_batch_size, args.retain_batch_size)
            ),
            "learning rate": f"{args.learning_rate}, {SchedulerType(args.lr_scheduler_type).value}",
            "target layers": ", ".join(map(str, self.plan.target_layers)),
            "LoRA": ", ".join(
                f"r {config.r}, alpha {config.lora_alpha}, dropout {config.lora_dropout}"
                for config in self.accelerator.unwrap_model(self.model).peft_config.values()
            ),
            "seed": args.seed,
        }
        return {
            "model_name": model_name or self.output_folder.resolve().name,
            "hub_model_id": self.hub_model_id,
            "base_model": base_model,
            "base_label": base_model or _local_label(base),
            "dataset_name": None if dataset_name is None else folder_name(dataset_name) if on_disk else dataset_name,
            "dataset_on_hub": dataset_name is not None and not on_disk,
            "dataset_revision": args.dataset_revision,
            "classes": dict(sorted(Counter(self.train_dataset["priority_class"]).items())),
            "preset": args.preset,
            "schedule": args.schedule,
            "weights": args.weights,
            "settings": settings,
            "lora": [
                (
                    ", ".join(map(code, rows.modules)),
                    rows.number,
                    f"no: {REASONS[rows.reason]}" if rows.reason else "yes",
                )
                for rows in self.lora_coverage
            ],
            "not_served": unserved,
            "serving": None
            if unserved
            else serving_command(
                base_model or "path/to/base",
                self.hub_model_id or "path/to/this/folder",
                max(map(max_lora_rank, adapters)),
                format_of(self.processing_class),
            ),
            "merged": args.merge,
            "paper": self._paper,
            "tags": self._tag_names,
        }

    def create_model_card(  # type: ignore[override]  # TRL's own differs from `Trainer`'s as well
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        gates: dict[str, Any] | None = None,
        evaluation: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        """
        Creates the model card from the information available to the `Trainer`.

        Args:
            model_name (`str`, *optional*):
                Name of the breaker.
            dataset_name (`str`, *optional*):
                Hub id or folder of the dataset used for training.
            tags (`str` or `list[str]`, *optional*):
                Tags to be associated with the model card.
            gates (`dict[str, Any]`, *optional*):
                Report of the quality gates of the data, `quality_gates.json`.
            evaluation (`dict[str, Any]`, *optional*):
                Results of an evaluation, `results.json`.
            folder (`Path`, *optional*):
                Folder to write to, in which the curves are, if there are any. If `None`, the output folder.
        """
        if self.is_world_process_zero():
            folder = folder or self.output_folder
            facts = self.card_facts(model_name, dataset_name)
            facts["curves"] = (folder / "curves.png").exists()
            facts["tags"] = [*facts["tags"], *([tags] if isinstance(tags, str) else tags or [])]
            write_text(folder / "README.md", str(model_card(facts, gates, evaluation)))

    # PEFT saves a model card with unfilled placeholders beside every adapter. `create_model_card` writes ours. An
    # adapter is passed on, so the pickle of the arguments and the path of the base model are left out.
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with filling(Path(output_dir or self.output_folder)) as folder:
            super()._save(str(folder), state_dict)
            for name in ("README.md", TRAINING_ARGS_NAME):
                (folder / name).unlink(missing_ok=True)
            publish_adapter_config(folder)

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """
        Main training entry point.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Checkpoint to resume from. If `True`, the newest whole one in the output folder; the others are named
                in a warning. If there is none, training starts at the beginning.
            kwargs (additional keyword arguments, *optional*):
                Passed on to [`~transformers.Trainer.train`].

        Raises:
            ValueError: If the named checkpoint is not whole.
        """
        if self.args.should_save:
            remove_orphans(self.output_folder)
        # One process looks, so that all resume from the same checkpoint
        chosen = [self._checkpoint(resume_from_checkpoint) if self.is_world_process_zero() else None]
        [self._resumed_from] = broadcast_object_list(chosen)
        return super().train(resume_from_checkpoint=self._resumed_from, **kwargs)

    def _checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint to resume from, if any, once it is known to be whole."""
        if not resume_from_checkpoint:
            return None
        if isinstance(resume_from_checkpoint, str):
            folder = Path(resume_from_checkpoint)
            reason = checkpoints.fault(folder) if folder.is_dir() else "there is no such folder"
            if reason is not None:
                raise ValueError(
                    f"Cannot resume from {folder}: {reason}. Name another checkpoint, or set "
                    "`resume_from_checkpoint: true` for the newest whole one."
                )
            return resume_from_checkpoint
        whole, faults = checkpoints.sort_checkpoints(self.output_folder)
        for folder, reason in faults.items():
            logger.warning(f"Passed over {folder}: {reason}.")
        if not whole:
            logger.warning(f"No checkpoint to resume from in {self.output_folder}: training starts at the beginning.")
            return None
        self.accelerator.print(f"Resuming from {whole[-1]}.")
        return str(whole[-1])

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished)

    # `Trainer` writes the files of a checkpoint one by one, each process its own. Here they are written to a temporary
    # folder, and renamed when all processes have finished. `Trainer` finds nothing to rotate in that folder.
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._writing(folder) as unfinished:
            super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(unfinished / name):
                self.state.best_model_checkpoint = str(folder / name)
                if self.args.should_save:
                    self.state.save_to_json(str(unfinished / name / TRAINER_STATE_NAME))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.put_in_place(unfinished / name, folder / name)
        self._rotate(folder, folder / name)

    def _rotate(self, folder: Path, last: Path) -> None:
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoints.rotate(folder, self.args.save_total_limit, {last, *([] if best is None else [Path(best)])})

    @contextmanager
    def _writing(self, folder: Path) -> Iterator[Path]:
        """A temporary folder for a checkpoint, the same on all processes."""
        with ExitStack() as stack:
            unfinished = None
            if self.is_world_process_zero():
                folder.mkdir(parents=True, exist_ok=True)
                unfinished = stack.enter_context(scratch_folder(folder, PREFIX_CHECKPOINT_DIR))
            [self._unfinished] = broadcast_object_list([unfinished])
            assert self._unfinished is not None
            try:
                yield self._unfinished
            finally:
                self._unfinished = None

    # What was summed since the last log entry is part of a checkpoint: a resumed run logs what the whole one would.
    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        sums = {
            "metrics": dict(self._metrics["train"]),
            "loss": self._tr_loss.cpu(),
            "last_logged": self._globalstep_last_logged,
        }
        torch.save(sums, self._log_sums(output_dir))

    def _resume(self) -> None:
        if self._resumed_from is not None:
            # A kill may have come between a checkpoint and the rotation after it
            self._rotate(self.output_folder, Path(self._resumed_from))
            self._restore_log_sums(self._log_sums(self._resumed_from))

    def _restore_log_sums(self, path: Path) -> None:
        # A process has none if the run of the checkpoint had fewer processes
        if not path.is_file():
            return
        sums = torch.load(path, weights_only=True)
        self._metrics["train"] = defaultdict(list, sums["metrics"])
        self._tr_loss = sums["loss"].to(self.args.device)
        self._total_loss_scalar = -self._tr_loss.item()  # the mean at the end is over the steps after the checkpoint
        self._globalstep_last_logged = sums["last_logged"]

    def _log_sums(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"log_sums_{self.args.process_index}.pth"

    def save_merged(self, folder: str | Path) -> None:
        """
        Save the model with the adapter merged into it, and its tokenizer.

        Args:
            folder (`str` or `Path`):
                Folder to write.
        """
        if self.is_world_process_zero():
            merged = deepcopy(self.accelerator.unwrap_model(self.model)).merge_and_unload()
            with filling(Path(folder)) as unfinished:
                merged.save_pretrained(unfinished)
                self.processing_class.save_pretrained(unfinished)


def _check_reference(config: PeftConfig) -> None:
    """Raise an error for settings with which the model without the adapter is not the base model, its reference."""
    settings = config.to_dict()
    if (bias := settings.get("bias", "none")) != "none":
        raise ValueError(
            f"`bias={bias!r}` is not supported: with trained biases the model without the adapter is not the base "
            "model, which is the reference. Use `bias='none'`."
        )
    if faults := scale_faults({name: settings.get(name) for name in ("init_lora_weights", "kasa_config")}):
        raise ValueError(
            f"The adapter has {', '.join(faults)}: without the adapter the model is not the base model, which is the "
            "reference. Leave out `init_lora_weights` and `kasa_config`."
        )


def _check_existing_adapter(model: PeftModel) -> None:
    """Raise an error for an adapter of an earlier run that cannot be trained further."""
    for config in model.peft_config.values():
        _check_reference(config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "The `PeftModel` has no parameter to train: its adapter was loaded for inference. Load it with "
            "`PeftModel.from_pretrained(base, adapter, is_trainable=True)`."
        )


def _local_label(base: str) -> str | None:
    """What readers are told of a base model that lies in a folder; `None` for one that was made in memory."""
    if not base:
        return None
    has_weights = any(Path(base).glob("*.safetensors"))
    return local_label(base, revision_of(base) if has_weights else None)


def _augmentation(
    dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: CircuitBreakerConfig, dataset_name: str
) -> augment.Augmentation:
    """Settings of the augmentation, which rows to evaluate on are left without."""
    if dataset_name == "eval":
        # With a seed of its own for the wrong openings: the losses of two runs differ by their adapters alone
        return augment.Augmentation(seed=0, max_length=args.max_length)
    return augment.Augmentation(
        seed=args.seed,
        max_length=args.max_length,
        wrap_probability=args.span_wrap_probability or 0.0,
        noise_probability=args.span_noise_probability or 0.0,
        bare_head_probability=args.bare_head_probability or 0.0,
        text_noise_probability=args.text_noise_probability or 0.0,
        words=augment.user_words(dataset) if args.text_noise_probability else (),
        adversary_rate=args.adversary_rate if args.adversary_steps else 0.0,
        adversary_padding=args.adversary_padding,
        token_ids=augment.ordinary_tokens(processing_class) if args.adversary_steps else (),
    )


def _with_lora(root: nn.Module) -> set[nn.Module]:
    return {module for module in root.modules() if isinstance(module, BaseTunerLayer)}


def _layer_numbers(name: str, layers: list[float], num_layers: int) -> tuple[int, ...]:
    """Layers as numbers, from numbers and fractions of `num_layers`."""
    numbers = {round(layer * num_layers) if layer < 1 else int(layer) for layer in layers}
    if max(numbers) > num_layers or min(numbers) < 1:
        raise ValueError(
            f"`{name}` asks for the layers {sorted(numbers)}, but the model has the layers 1 to {num_layers}. Set it "
            "to layers at about one third and two thirds of that number."
        )
    return tuple(sorted(numbers))
