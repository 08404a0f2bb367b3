"""The portable backend: `transformers`, batched and left-padded, on whatever device there is."""

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, set_seed

from ..tool_calls import format_of
from .backend import Completion, Sampling, weights_revision


class TransformersBackend:
    """Runs a causal language model, with a LoRA adapter or without.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        adapter (`str`, *optional*): Folder of a PEFT adapter to put on it.
        batch_size (`int`, *optional*, defaults to `64`): Prompts of one forward pass; prompts of like length share a
            batch.

    Raises:
        ValueError: If the tokenizer has no chat template, or one whose tool-call format is unknown.
    """

    def __init__(self, model: str, adapter: str | None = None, batch_size: int = 64) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, padding_side="left")
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{model} has no chat template; tool prompts cannot be rendered for it.")
        on_gpu = torch.cuda.is_available()
        # CPUs compute in float32: bfloat16 is slower there, and its rounding depends on the batch.
        network: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto" if on_gpu else torch.float32)
        self.model = model
        self.revision = weights_revision(Path(model)) if Path(model).is_dir() else network.config._commit_hash
        if adapter is not None:
            network = PeftModel.from_pretrained(network, adapter)
            self.model = f"{model}+{adapter}"
            self.revision = f"{self.revision}+{weights_revision(Path(adapter))}"
        self._network = network.to("cuda" if on_gpu else "cpu").eval()
        self._batch_size = batch_size
        tokens = format_of(self.tokenizer.chat_template).end_tokens
        self._end_ids = [self.tokenizer.convert_tokens_to_ids(token) for token in tokens]

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        set_seed(seed)
        order = sorted(range(len(prompt_token_ids)), key=lambda index: len(prompt_token_ids[index]))
        completions: list[list[Completion]] = [[] for _ in prompt_token_ids]
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            for index, done in zip(
                batch, self._generate_batch([prompt_token_ids[i] for i in batch], sampling), strict=True
            ):
                completions[index] = done
        return completions

    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self._network.device)
        with torch.inference_mode():
            output = self._network.generate(**inputs, generation_config=self._generation_config(sampling))
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        done = [self._completion(ids) for ids in new]
        n = sampling.num_samples
        return [done[start : start + n] for start in range(0, len(done), n)]

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        common = {
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": self._end_ids,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        if sampling.temperature == 0:
            return GenerationConfig(do_sample=False, **common)
        # top_k=0: the library's default would cut the distribution at 50 tokens behind the caller's back.
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(do_sample=True, num_return_sequences=sampling.num_samples, **drawn, **common)

    def _completion(self, ids: list[int]) -> Completion:
        ends = [at for at, token in enumerate(ids) if token in self._end_ids]
        ids = ids[: ends[0] + 1] if ends else ids
        text = cast(str, self.tokenizer.decode(ids, skip_special_tokens=False))
        return Completion(tuple(ids), text, "stop" if ends else "length")
