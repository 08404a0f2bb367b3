"""The portable backend: `transformers`, batched, on whatever device there is.

Prompts of one source begin alike, with a system prompt and tools that can be most of their tokens. What all prompts of
a batch begin with is read once, and the rest follows from its keys and values, padded on the left:

    system, tools   pad pad user: Pictures of the moon?   assistant:
                    user: Look in our documents for Kalo Mirude.   assistant:
"""

import os.path
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
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

from .backend import (
    AdapterBackend,
    Completion,
    Sampling,
    adapter_revision,
    completion_of,
    context_length,
    end_token_ids,
    load_tokenizer,
    revision_of,
)


class TransformersBackend(AdapterBackend):
    """Runs a causal language model, with a LoRA adapter or without.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        adapter (`str`, *optional*): Folder of a PEFT adapter to put on it.
        batch_size (`int`, *optional*, defaults to `64`): Sequences of one forward pass, prompts times the draws of
            each; prompts of like length share a batch.
        load_in_8bit (`bool`, *optional*, defaults to `False`): Quantise the weights with bitsandbytes; needs a GPU.

    Raises:
        FileNotFoundError: If there is no such model or adapter.
        ValueError: If the tokenizer has no chat template, or one whose tool-call format is unknown; if 8 bits are
            asked for where there is no GPU or no bitsandbytes.
    """

    def __init__(
        self, model: str, adapter: str | None = None, batch_size: int = 64, load_in_8bit: bool = False
    ) -> None:
        if adapter is not None:
            adapter_revision(adapter)  # a wrong path is an error before the model loads
        self.tokenizer = load_tokenizer(model)
        self.tokenizer.padding_side = "left"
        # Llama 3.1 has no padding token. What is padded is masked, so any token serves.
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        network = load_network(model, load_in_8bit)
        self._end_ids = end_token_ids(self.tokenizer, network.generation_config.eos_token_id)
        # `generate` would add what the model ships, a repetition penalty for one, behind the caller's back.
        network.generation_config = GenerationConfig()
        super().__init__(model, revision_of(model) + ("@8bit" if load_in_8bit else ""), adapter)
        if adapter is not None:
            network = PeftModel.from_pretrained(network, adapter)
        self.max_length = context_length(model)
        self._network = network.eval()
        # PEFT's name of the adapter that this backend runs; `None` is the base model.
        self._adapter = network.active_adapter if isinstance(network, PeftModel) else None
        self._batch_size = batch_size

    def _use_adapter(self, adapter: str | None) -> None:
        self._adapter = None
        if adapter is not None:
            self._adapter = f"adapter_{len(self._network.peft_config)}"
            self._network.load_adapter(adapter, self._adapter)
            self._network.eval()

    @contextmanager
    def network(self) -> Iterator[Any]:
        """The network itself, with this backend's adapter or with none, for what generating does not give."""
        if not isinstance(self._network, PeftModel):
            yield self._network
        elif self._adapter is None:
            with self._network.disable_adapter():
                yield self._network
        else:
            self._network.set_adapter(self._adapter)
            yield self._network

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        set_seed(seed)
        order = sorted(range(len(prompt_token_ids)), key=lambda index: len(prompt_token_ids[index]))
        sequences = [index for index in order for _ in range(sampling.num_samples)]
        completions: list[list[Completion]] = [[] for _ in prompt_token_ids]
        for start in range(0, len(sequences), self._batch_size):
            batch = sequences[start : start + self._batch_size]
            written = self._generate_batch([prompt_token_ids[index] for index in batch], sampling)
            for index, done in zip(batch, written, strict=True):
                completions[index].append(done)
        return completions

    def log_likelihoods(self, prompt_token_ids: list[list[int]], completion_token_ids: list[list[int]]) -> list[float]:
        rows = [prompt + written for prompt, written in zip(prompt_token_ids, completion_token_ids, strict=True)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        found = [0.0] * len(rows)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            lengths = [len(completion_token_ids[index]) for index in batch]
            for index, value in zip(batch, self._score_batch([rows[i] for i in batch], lengths), strict=True):
                found[index] = value
        return found

    def _score_batch(self, rows: list[list[int]], lengths: list[int]) -> list[float]:
        """Log probability of the last `length` tokens of each row."""
        # The token before those is what the first of them is predicted from.
        prefix = _shared([row[: len(row) - length - 1] for row, length in zip(rows, lengths, strict=True)])
        inputs = self._padded(prefix, rows)
        read = inputs["input_ids"][:, len(prefix) :]
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, len(prefix) :]
        with torch.inference_mode(), self.network() as network:
            logits = network(
                input_ids=read,
                attention_mask=inputs["attention_mask"],
                position_ids=positions,
                past_key_values=_read_once(network, prefix, len(rows)),
                logits_to_keep=max(lengths) + 1,
            ).logits
        scores = []
        for ids, row, length in zip(read, logits, lengths, strict=True):
            written = ids[len(ids) - length :, None]
            log_probs = row[len(row) - length - 1 : -1].float().log_softmax(-1)
            scores.append(log_probs.gather(-1, written).sum().item())
        return scores

    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """One completion of each."""
        prefix = _shared([prompt[:-1] for prompt in prompts])
        inputs = self._padded(prefix, prompts)
        with torch.inference_mode(), self.network() as network:
            read = _read_once(network, prefix, len(prompts))
            config = self._generation_config(sampling)
            output = network.generate(**inputs, past_key_values=read, generation_config=config)
        return [self._completion(ids) for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _padded(self, prefix: list[int], rows: list[list[int]]) -> BatchEncoding:
        """Rows that begin with `prefix` as a batch, padded after it."""
        inputs = self.tokenizer.pad({"input_ids": [row[len(prefix) :] for row in rows]}, return_tensors="pt")
        begun = torch.tensor([prefix] * len(rows), dtype=torch.long).reshape(len(rows), len(prefix))
        inputs["input_ids"] = torch.cat([begun, inputs["input_ids"]], 1)
        inputs["attention_mask"] = torch.cat([torch.ones_like(begun), inputs["attention_mask"]], 1)
        return inputs.to(self._network.device)

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        common = {
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": self._end_ids,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        if sampling.temperature == 0:
            return GenerationConfig(do_sample=False, **common)
        # top_k=0: the library's default would cut the distribution at 50 tokens.
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(do_sample=True, **drawn, **common)

    def _completion(self, ids: list[int]) -> Completion:
        """What follows the end token is padding."""
        ends = [at for at, token in enumerate(ids) if token in self._end_ids]
        if ends:
            return completion_of(self.tokenizer, ids[: ends[0] + 1], "stop")
        return completion_of(self.tokenizer, ids, "length")


def _shared(rows: list[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    return list(os.path.commonprefix(rows))


def _read_once(network: Any, prefix: list[int], rows: int) -> Cache | None:
    """Keys and values of the prefix for that many rows; `None` without a prefix."""
    if not prefix:
        return None
    ids = torch.tensor([prefix], device=network.device)
    cache = DynamicCache(config=network.config)
    network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    return cache


def load_network(model: str, load_in_8bit: bool = False) -> Any:
    """A causal language model, on the GPU where there is one."""
    on_gpu = torch.cuda.is_available()
    if load_in_8bit and not on_gpu:
        raise ValueError("8-bit weights need a GPU. Leave --load-in-8bit out to run on the CPU, in float32.")
    if load_in_8bit and not is_bitsandbytes_available():
        raise ValueError("8-bit weights need bitsandbytes: pip install bitsandbytes.")
    return AutoModelForCausalLM.from_pretrained(
        model,
        # CPUs compute in float32: bfloat16 is slower there, and its rounding depends on the batch.
        dtype="auto" if on_gpu else torch.float32,
        device_map="cuda" if on_gpu else "cpu",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True) if load_in_8bit else None,
    )
