"""Representation Rerouting as a TRL-style trainer."""

import inspect
import textwrap
from collections import defaultdict
from copy import copy
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.data.data_collator import DataCollatorMixin
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import create_model_from_path, get_config_model_id, global_then_local_main_first, pad

from cb_datasets import chat
from cb_datasets.sample import HARMFUL_CLASSES, RETAIN_CLASSES

from .circuit_breaker_config import CircuitBreakerConfig
from .hidden_states import get_decoder, hidden_states_at
from .losses import linear_schedule, retain_l2_loss, rr_loss, token_cosine
from .sampling import CircuitBreakerBatchSampler


logger = get_logger(__name__)

CIRCUIT_BREAKER, RETAIN = "circuit_breaker", "retain"  # values of a row's `set`

# The mean cosine on Ds above which a run has not left its starting point.
STUCK_COSINE = 0.99


@dataclass
class DataCollatorForCircuitBreaker(DataCollatorMixin):
    """
    Data collator used for circuit-breaker data. The rows of the circuit breaker set and those of the retain set become
    a batch each, dynamically padded on the right to the longest of them.

    Args:
        pad_token_id (`int`):
            Token ID to use for padding.
        pad_to_multiple_of (`int`, *optional*):
            If set, the sequences will be padded to a multiple of this value.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of Tensor to return. Only `"pt"` is currently supported.

    Examples:
    ```python
    >>> from trainers.circuit_breaker_trainer import DataCollatorForCircuitBreaker

    >>> collator = DataCollatorForCircuitBreaker(pad_token_id=0)
    >>> examples = [
    ...     {"set": "circuit_breaker", "input_ids": [1, 2, 3], "completion_mask": [0, 1, 1]},
    ...     {"set": "retain", "input_ids": [4, 5], "completion_mask": [0, 1]},
    ...     {"set": "retain", "input_ids": [6, 7, 8], "completion_mask": [0, 0, 1]},
    ... ]
    >>> collator(examples)
    {'circuit_breaker': {'input_ids': tensor([[1, 2, 3]]),
                         'attention_mask': tensor([[1, 1, 1]]),
                         'completion_mask': tensor([[0, 1, 1]])},
     'retain': {'input_ids': tensor([[4, 5, 0],
                                     [6, 7, 8]]),
                'attention_mask': tensor([[1, 1, 0],
                                          [1, 1, 1]]),
                'completion_mask': tensor([[0, 1, 0],
                                           [0, 0, 1]])}}
    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
        batch = {}
        for name in (CIRCUIT_BREAKER, RETAIN):
            rows = [example for example in examples if example["set"] == name]
            if rows:  # an evaluation batch may have rows of one set only
                input_ids = [torch.tensor(row["input_ids"]) for row in rows]
                batch[name] = {
                    "input_ids": self._pad(input_ids, self.pad_token_id),
                    "attention_mask": self._pad([torch.ones_like(ids) for ids in input_ids], 0),
                    "completion_mask": self._pad([torch.tensor(row["completion_mask"]) for row in rows], 0),
                }
        return batch

    def _pad(self, tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad(tensors, padding_value=value, pad_to_multiple_of=self.pad_to_multiple_of)


class CircuitBreakerTrainer(_BaseTrainer):
    """
    Trainer for circuit breakers by Representation Rerouting (RR). This method was initially proposed in the paper
    [Improving Alignment and Robustness with Circuit Breakers](https://huggingface.co/papers/2406.04313). This class is
    a wrapper around the [`~transformers.Trainer`] class and inherits all of its attributes and methods.

    An adapter is trained so that the hidden states of the circuit breaker set's completions become orthogonal to what
    they were, while those of the retain set stay where they are. What they were is read from the same network with the
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
        args ([`CircuitBreakerConfig`], *optional*):
            Configuration for this trainer. If `None`, a default configuration is used.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Function to use to form a batch from a list of prepared rows. Will default to
            [`DataCollatorForCircuitBreaker`].
        train_dataset ([`~datasets.Dataset`]):
            Samples to train on, of both sets. The columns read are `id`, `set`, `priority_class`, `messages`, `tools`
            and `assistant_raw`.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Samples to compute the losses on, of both sets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer whose chat template renders the prompts. If `None`, it is loaded from the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add to the default ones.
        optimizers (`tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]`, *optional*):
            Optimizer and scheduler to use. Will default to those that `args` describes.
        peft_config ([`~peft.LoraConfig`], *optional*):
            The adapter to make. `target_modules` defaults to all linear layers of the blocks, and
            `layers_to_transform` to the blocks that a loss reaches: one above them would keep its initial noise.
    """

    # `compute_loss` returns the mean over a micro-batch; `Trainer` divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

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
        peft_config: LoraConfig | None = None,
    ):
        # Args
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = CircuitBreakerConfig(f"{model_name.split('/')[-1]}-CircuitBreaker")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "Checkpointing with `use_reentrant=True` is not supported: it runs the blocks without gradient, so "
                "the hidden states recorded in them have none. Use `use_reentrant=False`."
            )
        if args.accelerator_config.split_batches:
            raise ValueError(
                "`split_batches=True` is not supported: a batch is rows of the circuit breaker set followed by rows "
                "of the retain set, and a part of it is neither. Use `split_batches=False`."
            )

        # Model
        # PEFT initializes the adapter weights randomly, so set_seed must be done before creating the model to ensure
        # reproducibility.
        set_seed(args.seed)
        if isinstance(model, str):
            model_init_kwargs = dict(args.model_init_kwargs or {})  # copy to avoid mutating model_init_kwargs
            # Distributed training requires device_map=None ("auto" fails)
            if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
                model_init_kwargs["device_map"] = None
            model_init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
            model = create_model_from_path(model, **model_init_kwargs)
        elif args.model_init_kwargs is not None:
            logger.warning(
                "You passed `model_init_kwargs` to the `CircuitBreakerConfig`, but your model is already "
                "instantiated. The `model_init_kwargs` will be ignored."
            )

        # Processing class
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(
                get_config_model_id(model.config), trust_remote_code=args.trust_remote_code
            )
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        # The model must agree with the tokenizer on the pad token from construction, so mirror it onto the model
        # configs.
        model.config.get_text_config().pad_token_id = processing_class.pad_token_id
        model.generation_config.pad_token_id = processing_class.pad_token_id

        # Layers
        self.target_layers = sorted(set(args.target_layers))
        num_blocks = len(get_decoder(model).layers)
        if self.target_layers[-1] > num_blocks:
            raise ValueError(
                f"`target_layers` asks for layer {self.target_layers[-1]}, but the model has {num_blocks} blocks. Set "
                "`target_layers` to layers from about a third and two thirds of its depth."
            )
        if args.retain_l2_layers == "all":
            # The published code cuts the model one block above the deepest target and keeps every hidden state of
            # what is left, the last one after the final norm.
            self.retain_layers = list(range(min(self.target_layers[-1] + 1, num_blocks) + 1))
        else:
            self.retain_layers = self.target_layers

        # PEFT
        if peft_config is not None:
            if is_peft_model(model):
                raise ValueError(
                    "You passed a `PeftModel` instance together with a `peft_config` to the trainer. Please first "
                    "merge and unload the existing adapter, save the resulting base model, and then pass that base "
                    "model along with the new `peft_config` to the trainer."
                )
            model = self._add_adapter(model, peft_config, args)
        elif not is_peft_model(model):
            raise ValueError(
                "A circuit breaker is an adapter, and the model without it is what its hidden states are compared "
                "with. Pass a `peft_config`, e.g. `LoraConfig(r=16, lora_alpha=16)`, or `use_peft: true` in a recipe."
            )

        # Data collator
        if data_collator is None:
            data_collator = DataCollatorForCircuitBreaker(processing_class.pad_token_id, args.pad_to_multiple_of)

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

        # Initialize the metrics: lists of (sum over items, number of items), since batches differ in their tokens
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._warned_stuck = False

        # Add tags to the model
        self.model.add_model_tags(self._tag_names)

    # TRL reports model type, hardware and world size of every run to the Hub. Runs on unpublished attack data contact
    # no one, with or without `HF_HUB_DISABLE_TELEMETRY`.
    def _send_telemetry(self):
        pass

    def _add_adapter(self, model: PreTrainedModel, peft_config: LoraConfig, args: CircuitBreakerConfig) -> PeftModel:
        if not isinstance(peft_config, LoraConfig):
            raise TypeError(f"`peft_config` must be a `peft.LoraConfig`, got {type(peft_config).__name__}.")
        peft_config = copy(peft_config)
        blocks = get_decoder(model).layers
        if peft_config.target_modules in (None, "all-linear"):
            # By name, because PEFT combines `layers_to_transform` with a list only
            linear = (name for name, module in blocks.named_modules() if isinstance(module, nn.Linear))
            peft_config.target_modules = {name.rsplit(".", 1)[-1] for name in linear}
        num_reached = max(*self.target_layers, *self.retain_layers)
        if peft_config.layers_to_transform is None:
            peft_config.layers_to_transform = list(range(num_reached))
        elif max(peft_config.layers_to_transform) >= num_reached:
            raise ValueError(
                f"`layers_to_transform` names block {max(peft_config.layers_to_transform)}, but no loss reaches a "
                f"block above {num_reached - 1} with these `target_layers`: its adapter would never be trained."
            )
        model = get_peft_model(model, peft_config)

        generator = torch.Generator().manual_seed(args.seed)  # on the CPU: the same noise on every device
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                noise = torch.randn(parameter.shape, generator=generator) * args.lora_b_init_std
                parameter.data.copy_(noise)
        return model

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: CircuitBreakerConfig,
        dataset_name: str,
    ) -> Dataset:
        if not isinstance(dataset, Dataset):
            raise TypeError(f"The {dataset_name} dataset must be a `Dataset`, got `{type(dataset).__name__}`.")

        # Tokenize the dataset, unless it has been already
        if "input_ids" not in dataset.column_names:

            def tokenize_fn(example, processing_class, renderer):
                encoded = chat.encode_sample(processing_class, example)
                prompt_ids, completion_ids = encoded["prompt_ids"], encoded["completion_ids"]
                return {
                    "input_ids": prompt_ids + completion_ids,
                    "completion_mask": [0] * len(prompt_ids) + [1] * len(completion_ids),
                    "num_tokens": len(prompt_ids) + len(completion_ids),
                    "num_completion_tokens": len(completion_ids),
                }

            with global_then_local_main_first():
                dataset = dataset.map(
                    tokenize_fn,
                    # `map` knows a cached result by this function's code, but only by the name of what it calls: with
                    # the renderer's source among the arguments an edited renderer is never served old tokens.
                    fn_kwargs={"processing_class": processing_class, "renderer": inspect.getsource(chat)},
                    num_proc=args.dataset_num_proc,
                    remove_columns=[
                        name for name in dataset.column_names if name not in ("id", "set", "priority_class")
                    ],
                    desc=f"Tokenizing {dataset_name} dataset",
                )

        for column, wrong, fault in (
            ("num_tokens", lambda n: n > args.max_length, f"more than `max_length={args.max_length}` tokens"),
            ("num_completion_tokens", lambda n: n == 0, "no completion"),
        ):
            ids = [row_id for row_id, n in zip(dataset["id"], dataset[column], strict=True) if wrong(n)]
            if ids:
                raise ValueError(
                    f"{len(ids)} of the {len(dataset)} rows of the {dataset_name} dataset have {fault}: "
                    f"{', '.join(ids[:10])}{', ...' if len(ids) > 10 else ''}. Rows are fitted or dropped by name "
                    "when the data are made; nothing is truncated here."
                )
        self._rows_by_class(dataset, args, dataset_name)  # raises where a set has no rows
        return dataset

    def _rows_by_class(
        self, dataset: Dataset, args: CircuitBreakerConfig, dataset_name: str
    ) -> tuple[list[int], dict[str, list[int]]]:
        """Rows of Ds, and rows of Dr by class, of the classes that a loss uses."""
        circuit_breaker, retain = [], defaultdict(list)
        for row, (name, priority_class) in enumerate(zip(dataset["set"], dataset["priority_class"], strict=True)):
            known = {CIRCUIT_BREAKER: HARMFUL_CLASSES, RETAIN: RETAIN_CLASSES}.get(name, {})
            if priority_class not in known:
                raise ValueError(
                    f"Row {dataset[row]['id']} of the {dataset_name} dataset is of no class that batches are drawn "
                    f"by: set {name!r}, priority_class {priority_class!r}."
                )
            if name == CIRCUIT_BREAKER:
                circuit_breaker.append(row)
            elif args.retain_l2_classes is None or priority_class in args.retain_l2_classes:
                retain[priority_class].append(row)
        unknown = set(args.retain_l2_classes or []) - set(RETAIN_CLASSES)
        if unknown:
            raise ValueError(f"`retain_l2_classes` has {sorted(unknown)}; the classes are {list(RETAIN_CLASSES)}.")
        if not circuit_breaker:
            raise ValueError(f"The {dataset_name} dataset has no row of the circuit breaker set (Ds).")
        if not retain:
            classes = args.retain_l2_classes or list(RETAIN_CLASSES)
            raise ValueError(
                f"The {dataset_name} dataset has no row of the retain set (Dr) in the classes {', '.join(classes)}."
            )
        return circuit_breaker, dict(retain)

    def _set_signature_columns_if_needed(self):
        # If `self.args.remove_unused_columns` is True, non-signature columns are removed. These are the columns that
        # the data collator needs.
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "completion_mask", "set"]

    # The whole run is one pass over one batch sampler, so that nothing but the number of batches already taken is
    # needed to go on where a checkpoint left off.
    def get_train_dataloader(self) -> DataLoader:
        circuit_breaker, retain = self._rows_by_class(self.train_dataset, self.args, "train")
        sampler = CircuitBreakerBatchSampler(
            circuit_breaker,
            retain,
            RETAIN_CLASSES,
            batch_size=self._train_batch_size,
            retain_batch_size=self.args.retain_batch_size,
            num_batches=self.args.max_steps * self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        return self._build_dataloader(self.train_dataset, sampler, "Training")

    # Every row once. The larger set may have batches of its own at the end.
    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        circuit_breaker, retain = self._rows_by_class(dataset, self.args, "eval")
        size = self.args.eval_batch_size
        chunks = [
            [rows[start : start + size] for start in range(0, len(rows), size)]
            for rows in (circuit_breaker, sum(retain.values(), []))
        ]
        batches = [breaker_rows + retain_rows for breaker_rows, retain_rows in zip_longest(*chunks, fillvalue=[])]
        return self._build_dataloader(dataset, batches, "Evaluation")

    def _build_dataloader(
        self, dataset: Dataset, batches: CircuitBreakerBatchSampler | list[list[int]], description: str
    ) -> DataLoader:
        dataloader = DataLoader(
            self._remove_unused_columns(dataset, description=description),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(dataloader)

    def _tokens(self, name: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mask of the tokens of a set that its loss reads."""
        tokens = self.args.rr_tokens if name == CIRCUIT_BREAKER else self.args.retain_l2_tokens
        return inputs["completion_mask"] if tokens == "completion" else inputs["attention_mask"]

    def _count_items(self, inputs: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
        """What the losses on Ds and on Dr are means over: tokens, or all positions if `retain_l2_norm` says so."""
        items = torch.zeros(2, device=self.accelerator.device)
        for i, name in enumerate((CIRCUIT_BREAKER, RETAIN)):
            if name in inputs:
                tokens = self._tokens(name, inputs[name])
                whole = name == RETAIN and self.args.retain_l2_norm == "reference"
                items[i] = tokens.numel() if whole else tokens.sum()
        return items

    # Items per micro-batch, averaged over the micro-batches of an optimizer step and over the processes. With this
    # denominator the mean of the micro-batches' losses is the mean over all their tokens, so that 8 batches of 1 row
    # give the step of 1 batch of 8 rows.
    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        items = torch.stack([self._count_items(inputs) for inputs in batch_samples]).mean(0)
        return self.accelerator.reduce(items, reduction="mean")

    def _hidden_states(
        self, model: nn.Module, name: str, inputs: dict[str, torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """States with the adapter and without, at the layers and tokens that the loss on this set reads."""
        arguments = {
            "decoder": get_decoder(self.accelerator.unwrap_model(self.model)),
            "layers": self.target_layers if name == CIRCUIT_BREAKER else self.retain_layers,
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "tokens": self._tokens(name, inputs),
            "final_norm": name == RETAIN and self.args.retain_l2_layers == "all",
        }
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self.accelerator.unwrap_model(self.model).disable_adapter(),
        ):
            reference = hidden_states_at(self.model, **arguments)
        return hidden_states_at(model, **arguments), reference

    def _compute_loss(
        self, model: nn.Module, inputs: dict[str, dict[str, torch.Tensor]], num_items_in_batch: torch.Tensor | None
    ) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        # Algorithm 1 counts from 1: the first step is step 1 of T. Evaluation is at the step last made.
        step = self.state.global_step + (1 if mode == "train" else 0)
        rr_coefficient, retain_coefficient = linear_schedule(step, self.args.max_steps, self.args.alpha)
        retain_coefficient *= self.args.retain_coefficient
        own_items = self._count_items(inputs)
        rr_items, retain_items = own_items if num_items_in_batch is None else num_items_in_batch

        rr = retain_l2 = torch.zeros((), device=self.accelerator.device)
        cosines = [torch.zeros(0, device=self.accelerator.device)] * len(self.target_layers)
        if CIRCUIT_BREAKER in inputs:
            states = self._hidden_states(model, CIRCUIT_BREAKER, inputs[CIRCUIT_BREAKER])
            cosines = [token_cosine(hidden, reference) for hidden, reference in zip(*states, strict=True)]
            rr = rr_loss(cosines, rr_items)
        if RETAIN in inputs:
            retain_l2 = retain_l2_loss(*self._hidden_states(model, RETAIN, inputs[RETAIN]), retain_items)
        loss = rr_coefficient * rr + retain_coefficient * retain_l2
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {step} (rr {rr.item()}, retain_l2 {retain_l2.item()}). Lower the "
                "learning rate, or train in bfloat16 or float32 where float16 overflows."
            )

        # Log the metrics
        sums = [rr * rr_items, retain_l2 * retain_items, *(cosine.sum() for cosine in cosines)]
        self._log_metrics(mode, torch.stack([value.detach() for value in sums]), own_items)
        self._metrics[mode]["coefficient/rr"].append((rr_coefficient, 1))
        self._metrics[mode]["coefficient/retain_l2"].append((retain_coefficient, 1))
        if mode == "train":
            self._warn_if_stuck(step)
        return loss

    def _log_metrics(self, mode: str, sums: torch.Tensor, items: torch.Tensor) -> None:
        """Note what this batch adds to the means: loss on Ds, loss on Dr, cosine of Ds at each target layer."""
        # One gather for all, of the same size whatever the batch holds: processes may hold rows of different sets
        totals = self.accelerator.gather(torch.cat([items, sums])[None]).sum(0).tolist()
        rr_items, retain_items, rr, retain_l2, *cosines = totals
        metrics = self._metrics[mode]
        if rr_items:
            metrics["loss/rr"].append((rr, rr_items))
            metrics["cosine/mean"].append((sum(cosines) / len(cosines), rr_items))
            for layer, cosine in zip(self.target_layers, cosines, strict=True):
                metrics[f"cosine/layer_{layer}"].append((cosine, rr_items))
        if retain_items:
            metrics["loss/retain_l2"].append((retain_l2, retain_items))

    def _warn_if_stuck(self, step: int) -> None:
        cosine, items = self._metrics["train"]["cosine/mean"][-1]
        if not self._warned_stuck and step > max(1, self.args.max_steps / 10) and cosine / items > STUCK_COSINE:
            self._warned_stuck = True
            logger.warning(
                f"The cosine on the circuit breaker set is {cosine / items:.4f} at step {step} of "
                f"{self.args.max_steps}: nothing is being rerouted. Raise `learning_rate`, lower "
                "`retain_coefficient`, or, if it never moved, set `lora_b_init_std` to 1e-3 or more."
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self._compute_loss(model, inputs, num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # A dataset passed directly is preprocessed as `__init__` does. `_prepare_dataset` is idempotent.
        if eval_dataset is not None:
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
            # `Trainer` averages over batches, of which some hold one set only; the loss is that of all rows together
            metrics["loss"] = sum(
                metrics[f"coefficient/{term}"] * metrics[f"loss/{term}"] for term in ("rr", "retain_l2")
            )
            metrics = {f"eval_{key}": value for key, value in metrics.items()}
        logs.update(metrics)
        super().log(logs, start_time)
        self._metrics[mode].clear()

    # During eval, Trainer calls prediction_step. If no labels are present in the inputs, it only runs forward and
    # returns logits. We override prediction_step to force compute_loss, because this trainer doesn't involve labels.
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys: list[str] | None = None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss, None, None

    # PEFT writes a model card of blanks to fill in beside every adapter it saves
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, "README.md").unlink(missing_ok=True)
