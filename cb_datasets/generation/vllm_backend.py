"""The production backend: vLLM in this process, which batches all prompts of a call by itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat import MAX_LENGTH
from ..files import read_json
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


# vLLM's 8 bits: scales by output channel, computed while loading. It has no bitsandbytes.
EIGHT_BIT = "fp8_per_channel"


class VllmBackend(AdapterBackend):
    """Runs a causal language model, with a LoRA adapter or without.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        adapter (`str`, *optional*): Folder of a PEFT LoRA adapter to put on it.
        tensor_parallel (`int`, *optional*, defaults to `1`): GPUs that share the weights. A model that fits on one
            GPU is faster as one process for each.
        load_in_8bit (`bool`, *optional*, defaults to `False`): Quantise the weights to fp8; needs a GPU. A model that
            is stored quantised needs no mention.
        max_length (`int`, *optional*, defaults to `MAX_LENGTH`): Most tokens of a prompt and its completion.
        dtype (`str`, *optional*): Type to compute in. The model's own on a GPU, `float32` on a CPU, if left out.
        also (`Sequence[str]`, *optional*): Folders of the adapters that `with_adapter` will switch to: the engine
            makes room for the largest rank when it starts.

    Raises:
        FileNotFoundError: If there is no such model or adapter.
        ValueError: If vLLM is not installed; if the tokenizer has no chat template, or one whose tool-call format is
            unknown; if 8 bits are asked for on a CPU.
    """

    # The engine batches what it is given at once, and the end of every shard runs half empty.
    shard_size = 1000

    def __init__(
        self,
        model: str,
        adapter: str | None = None,
        tensor_parallel: int = 1,
        load_in_8bit: bool = False,
        max_length: int = MAX_LENGTH,
        dtype: str | None = None,
        also: Sequence[str] = (),
    ) -> None:
        if adapter is not None:
            adapter_revision(adapter)  # a wrong path is an error before the model loads
        self.tokenizer = load_tokenizer(model)
        # vLLM itself adds the end tokens of the model's generation config.
        self._end_ids = end_token_ids(self.tokenizer)
        super().__init__(model, revision_of(model) + (f"@{EIGHT_BIT}" if load_in_8bit else ""), adapter)
        self._adapter = adapter
        self.max_length = min(max_length, context_length(model))
        # The engine knows adapters by number.
        self._numbers = {path: number for number, path in enumerate([adapter, *also] if adapter else [], start=1)}
        rank = max(map(lora_rank, self._numbers), default=None)
        self._engine = _load_engine(model, rank, tensor_parallel, load_in_8bit, self.max_length, dtype)

    def _use_adapter(self, adapter: str | None) -> None:
        self._adapter = adapter  # the engine takes it with each request

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMValidationError
        from vllm.lora.request import LoRARequest

        try:
            outputs = self._engine.generate(
                [TokensPrompt(prompt_token_ids=ids) for ids in prompt_token_ids],
                [self._sampling_params(sampling, seed, index) for index in range(len(prompt_token_ids))],
                lora_request=self._adapter and LoRARequest(self._adapter, self._numbers[self._adapter], self._adapter),
                use_tqdm=False,
            )
        except VLLMValidationError as error:
            raise ValueError(f"vLLM refuses the request: {error}") from error
        return [
            [completion_of(self.tokenizer, done.token_ids, str(done.finish_reason)) for done in output.outputs]
            for output in outputs
        ]

    def _sampling_params(self, sampling: Sampling, seed: int, index: int):
        """Sample k of a request draws from seed + k, so prompts stand `num_samples` seeds apart."""
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed + index * sampling.num_samples,
            stop_token_ids=self._end_ids,
            # The text is decoded here, as for every backend.
            detokenize=False,
        )


def _load_engine(
    model: str, max_lora_rank: int | None, tensor_parallel: int, load_in_8bit: bool, max_length: int, dtype: str | None
):
    # vLLM reads its log level at import only. At its default, start-up is hundreds of lines.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        raise ValueError(f"vLLM cannot be loaded ({error}): pip install -e '.[vllm]', or use Transformers.") from error

    on_cpu = current_platform.is_cpu()
    if load_in_8bit and on_cpu:
        raise ValueError("8-bit weights need a GPU. Leave --load-in-8bit out to run on the CPU, in float32.")
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": dtype or ("float32" if on_cpu else "auto"),
        "max_model_len": max_length,
        "tensor_parallel_size": tensor_parallel,
        "quantization": EIGHT_BIT if load_in_8bit else None,
        # Tool schemas and system prompts are the same from prompt to prompt.
        "enable_prefix_caching": True,
        # Compiling pays on a GPU; on a CPU it takes longer than the run.
        "enforce_eager": on_cpu,
    }
    if on_cpu:
        # A seeded request whose prompt is read in parts winds its generator back after each, which no CPU generator
        # can: "CPU Generator does not use offset". So prompts are read whole, as many at once as a step has room for.
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, 4096)}
    if max_lora_rank is not None:
        arguments |= {"enable_lora": True, "max_lora_rank": max_lora_rank}
    return LLM(**arguments)


def lora_rank(adapter: str) -> int:
    """The adapter's rank, rounded up to one that vLLM has kernels for: a power of two from 8."""
    rank = read_json(Path(adapter) / "adapter_config.json")["r"]
    return max(8, 1 << (rank - 1).bit_length())
