"""The portable backend: batched generation with `transformers`, on GPU or CPU.

Prompts of one source share a prefix, the system prompt and tools, which can be most of their tokens. `decoding.py`
completes them in slots. Given completions are scored in batches, and networks with windows or recurrent states
generate in batches, too. The common prefix of a batch is prefilled once; the remainders continue from its KV cache,
padded on the left:

    system, tools   pad pad user: Pictures of the moon?   assistant:
                    user: Look in our documents for Kalo Mirude.   assistant:
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from transformers import (
    AutoModelForCausalLM,
    BatchEncoding,
    BitsAndBytesConfig,
    Cache,
    DynamicCache,
    GenerationConfig,
    set_seed,
)
from transformers.utils import is_bitsandbytes_available

from ..chat import common_prefix
from . import decoding_attention
from .backend import (
    AdapterBackend,
    Completion,
    Sampling,
    check_adapters,
    context_length,
    decode_completion,
    end_token_ids,
    revision_of,
)
from .decoding import decode
from .model_files import check_loaded, check_model_files, loading
from .tokenizer import load_tokenizer


# Tokens whose logits are in memory at a time: half a gigabyte in float32 with a vocabulary of 128,256.
LOGITS_CHUNK = 1024


@dataclass(frozen=True)
class NextTokenLogits:
    """Logits of some tokens of a batch.

    Args:
        logits (`torch.Tensor` of shape `(tokens, vocabulary)`): Logits that predict each token.
        targets (`torch.Tensor` of shape `(tokens,)`): Ids of the tokens.
        rows (`list[int]`): The row of the batch that each belongs to; those of one row are in order.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    rows: list[int]


class TransformersBackend(AdapterBackend):
    """Generates with a causal language model in this process, with or without a LoRA adapter.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        adapter (`str`, *optional*): Folder of a PEFT adapter to load.
        batch_size (`int`, *optional*, defaults to `64`): Sequences per forward pass; each sample of a prompt counts.
            One that ends makes room for the next.
        load_in_8bit (`bool`, *optional*, defaults to `False`): Quantise the weights with bitsandbytes; needs a GPU.
        tokenizer (`str`, *optional*): Folder of the tokenizer, where it is not the model's own.

    Raises:
        FileNotFoundError: If there is no such model or adapter.
        ValueError: If the tokenizer has no chat template, or one whose tool-call format is unknown; if `load_in_8bit`
            is set without a GPU or without bitsandbytes.
    """

    def __init__(
        self,
        model: str,
        adapter: str | None = None,
        batch_size: int = 64,
        load_in_8bit: bool = False,
        tokenizer: str | None = None,
    ) -> None:
        if adapter is not None:
            check_adapters([adapter], model)  # before the model loads
        self.tokenizer = load_tokenizer(tokenizer or model)
        self.tokenizer.padding_side = "left"
        # Llama 3.1 has no padding token. Padding is masked, so any token will do.
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        network = load_causal_lm(model, load_in_8bit)
        self._end_ids = end_token_ids(self.tokenizer, network.generation_config.eos_token_id)
        # Otherwise `generate` would apply the model's own defaults, such as a repetition penalty.
        network.generation_config = GenerationConfig()
        super().__init__(model, revision_of(model) + ("@8bit" if load_in_8bit else ""), adapter)
        if adapter is not None:
            with loading(adapter, "adapter"):
                network = PeftModel.from_pretrained(network, adapter)
        self.max_length = context_length(model)
        self._network = network.eval()
        # PEFT's name of this backend's adapter; `None` is the base model.
        self._adapter = network.active_adapter if isinstance(network, PeftModel) else None
        self._scale = 1.0
        self._batch_size = batch_size

    def _use_adapter(self, adapter: str | None) -> None:
        self._adapter, self._scale = None, 1.0
        if adapter is not None:
            self._adapter = f"adapter_{len(self._network.peft_config)}"
            with loading(adapter, "adapter"):
                self._network.load_adapter(adapter, self._adapter)
            self._network.eval()

    def _use_scale(self, scale: float) -> None:
        self._scale = scale  # applied whenever the network is used, since other backends share it

    def merged(self) -> Self:
        """A backend with the same model on a copy of the weights that has the adapter merged.

        It computes the same up to rounding, in less time: adapters cost a tiny model a quarter of its time on a CPU.
        """
        if not isinstance(self._network, PeftModel):
            return self
        other = copy.copy(self)
        with self.network() as network:
            copied = copy.deepcopy(network)  # with the scale of its adapter
        other._network = copied.unload() if self._adapter is None else copied.merge_and_unload()
        other._adapter, other._scale = None, 1.0
        return other

    def with_trainable_adapter(self, new: LoraConfig | None = None) -> Self:
        """A backend on a copy of the weights whose adapter can be trained.

        Args:
            new ([`~peft.LoraConfig`], *optional*): Config of a new adapter, on weights that have this backend's own
                merged; without it, the adapter is this backend's own.
        """
        merged = self if new is None else self.merged()
        other = copy.copy(merged)
        if merged is self:
            other._network = copy.deepcopy(self._network)
        if new is not None:
            other._network = get_peft_model(other._network, new)
            other._adapter = other._network.active_adapter
        return other

    @contextmanager
    def network(self) -> Iterator[Any]:
        """The network with this backend's adapter active, or with none, for uses other than generation."""
        if not isinstance(self._network, PeftModel):
            yield self._network
        elif self._adapter is None:
            with self._network.disable_adapter():
                yield self._network
        else:
            self._network.set_adapter(self._adapter)
            # Adapters of other types than LoRA have no scale.
            with nullcontext() if self._scale == 1.0 else rescale_adapter_scale(self._network, self._scale):
                yield self._network

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        set_seed(seed)
        with self.network() as network:
            if not decoding_attention.supports(network):
                return self._generate_in_batches(prompt_token_ids, sampling)
            generated = decode(network, prompt_token_ids, sampling, self._end_ids, self._batch_size)
        return [[self._completion(ids) for ids in samples] for samples in generated]

    def _generate_in_batches(self, prompt_token_ids: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        """With `generate` of Transformers, for networks with windows or recurrent states."""
        order = sorted(range(len(prompt_token_ids)), key=lambda index: len(prompt_token_ids[index]))
        # The samples of a prompt are neighbours, and a batch may end between them: batches never exceed `batch_size`.
        sequences = [index for index in order for _ in range(sampling.num_samples)]
        completions: list[list[Completion]] = [[] for _ in prompt_token_ids]
        for start in range(0, len(sequences), self._batch_size):
            batch = sequences[start : start + self._batch_size]
            generated = self._generate_batch([prompt_token_ids[index] for index in batch], sampling)
            for index, completion in zip(batch, generated, strict=True):
                completions[index].append(completion)
        return completions

    def generate_from_embeddings(self, embeddings: torch.Tensor, sampling: Sampling) -> list[Completion]:
        """One completion of each prompt that is given as input embeddings, all of one length.

        Args:
            embeddings (`torch.Tensor` of shape `(n, tokens, hidden_size)`): Input embeddings.
            sampling ([`Sampling`]): Sampling parameters; `num_samples` is ignored.
        """
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        with torch.inference_mode(), self.network() as network:
            config = self._generation_config(sampling)
            # Without input ids, the output has the generated tokens only.
            output = network.generate(inputs_embeds=embeddings, attention_mask=mask, generation_config=config)
        return [self._completion(ids) for ids in output.tolist()]

    def log_likelihoods(self, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]) -> list[float]:
        rows = [prompt + completion for prompt, completion in zip(prompt_token_ids, completion_token_ids, strict=True)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            lengths = [len(completion_token_ids[index]) for index in batch]
            for index, score in zip(batch, self._score_batch([rows[i] for i in batch], lengths), strict=True):
                scores[index] = score
        return scores

    def _score_batch(self, rows: list[list[int]], lengths: list[int]) -> list[float]:
        """Log probability of the last `length` tokens of each row, given the tokens before."""
        scores = [0.0] * len(rows)
        for chunk in self._next_token_logits(rows, lengths):
            log_probs = chunk.logits.float().log_softmax(-1).gather(-1, chunk.targets[:, None])[:, 0]
            for row, log_prob in zip(chunk.rows, log_probs.tolist(), strict=True):
                scores[row] += log_prob
        return scores

    def completion_logits(
        self, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]
    ) -> Iterator[NextTokenLogits]:
        """Logits for each token of given completions of one batch of prompts, [`LOGITS_CHUNK`] tokens at a time.

        The chunks are the same for every adapter of a model, so that two of them can be compared chunk by chunk.

        Args:
            prompt_token_ids, completion_token_ids (`list[list[int]]`): Prompts, and a completion of each. They run in
                one forward pass; prompt and completion together must not exceed `max_length` tokens.
        """
        rows = [prompt + completion for prompt, completion in zip(prompt_token_ids, completion_token_ids, strict=True)]
        return self._next_token_logits(rows, [len(completion) for completion in completion_token_ids])

    def _next_token_logits(self, rows: list[list[int]], lengths: list[int]) -> Iterator[NextTokenLogits]:
        """Logits that predict the last `length` tokens of each row, a few columns of the batch at a time.

        Over the vocabulary, logits of whole completions could exceed the memory. The columns before are in the cache.
        """
        # The last prompt token stays out of the cached prefix: its logits predict the first completion token.
        prefix = common_prefix([row[: len(row) - length - 1] for row, length in zip(rows, lengths, strict=True)])
        inputs = self._pad_after_prefix(prefix, rows)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        # A plain forward, unlike `generate`, counts padding as positions: they are numbered from the mask instead.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        # Rows are padded on the left, so each completion ends its row.
        starts = ids.shape[1] - torch.tensor(lengths, device=ids.device)
        start, first, last = len(prefix), int(starts.min()) - 1, ids.shape[1] - 1
        with torch.inference_mode(), self.network() as network:
            cache = _prefill_cache(network, prefix, len(rows))
        width = max(1, LOGITS_CHUNK // len(rows))
        for column in range(first, last, width):
            end = min(column + width, last)
            with torch.inference_mode(), self.network() as network:
                output = network(
                    input_ids=ids[:, start:end],
                    attention_mask=mask[:, :end],
                    position_ids=positions[:, start:end],
                    past_key_values=cache,
                    use_cache=end < last or cache is not None,
                    logits_to_keep=end - column,
                )
            if end < last and (cache := output.past_key_values) is None:
                raise ValueError(f"{self.model} has no cache of keys and values, which long completions need.")
            wanted = torch.arange(column + 1, end + 1, device=ids.device) >= starts[:, None]
            in_rows = wanted.nonzero()[:, 0].tolist()
            yield NextTokenLogits(output.logits[wanted], ids[:, column + 1 : end + 1][wanted], in_rows)
            start = end

    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """One completion of each prompt."""
        # `generate` needs at least one token beyond the cache.
        prefix = common_prefix([prompt[:-1] for prompt in prompts])
        inputs = self._pad_after_prefix(prefix, prompts)
        with torch.inference_mode(), self.network() as network:
            cache = _prefill_cache(network, prefix, len(prompts))
            config = self._generation_config(sampling)
            output = network.generate(**inputs, past_key_values=cache, generation_config=config)
        return [self._completion(ids) for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _pad_after_prefix(self, prefix: list[int], rows: list[list[int]]) -> BatchEncoding:
        """A batch of rows that all begin with `prefix`, with the padding between the prefix and the remainders."""
        inputs = self.tokenizer.pad({"input_ids": [row[len(prefix) :] for row in rows]}, return_tensors="pt")
        prefix_ids = torch.tensor([prefix] * len(rows), dtype=torch.long).reshape(len(rows), len(prefix))
        inputs["input_ids"] = torch.cat([prefix_ids, inputs["input_ids"]], 1)
        inputs["attention_mask"] = torch.cat([torch.ones_like(prefix_ids), inputs["attention_mask"]], 1)
        return inputs.to(self._network.device)

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        common = {
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": self._end_ids,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        if sampling.temperature == 0:
            return GenerationConfig(do_sample=False, **common)
        # top_k=0: the library's default would truncate the distribution to 50 tokens.
        sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(do_sample=True, **sampled, **common)

    def _completion(self, ids: list[int]) -> Completion:
        """The completion in one row of `generate`'s output: tokens after the first end token are padding."""
        ends = [position for position, token in enumerate(ids) if token in self._end_ids]
        if ends:
            return decode_completion(self.tokenizer, ids[: ends[0] + 1], "stop")
        return decode_completion(self.tokenizer, ids, "length")


def _prefill_cache(network: Any, prefix: list[int], batch_size: int) -> Cache | None:
    """KV cache of the prefix, repeated for each row of a batch; `None` for an empty prefix."""
    if not prefix:
        return None
    ids = torch.tensor([prefix], device=network.device)
    cache = DynamicCache(config=network.config)
    network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(batch_size)
    return cache


def load_causal_lm(model: str, load_in_8bit: bool = False) -> Any:
    """Load a causal language model, on the GPU if there is one.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it cannot be loaded, if its weights are pickles, or if `load_in_8bit` is not possible here.
    """
    on_gpu = torch.cuda.is_available()
    if load_in_8bit and not on_gpu:
        raise ValueError("8-bit weights need a GPU. Omit --load-in-8bit to run on the CPU in float32.")
    if load_in_8bit and not is_bitsandbytes_available():
        raise ValueError("8-bit weights need bitsandbytes: pip install bitsandbytes.")
    check_model_files(model)
    with loading(model, "weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model,
            # CPUs compute in float32: bfloat16 is slower there, and its rounding depends on the batch.
            dtype="auto" if on_gpu else torch.float32,
            device_map="cuda" if on_gpu else "cpu",
            quantization_config=BitsAndBytesConfig(load_in_8bit=True) if load_in_8bit else None,
            use_safetensors=True,
            output_loading_info=True,
        )
    network, info = loaded
    check_loaded(model, info)
    return network
