"""The production backend: vLLM in this process, with continuous batching of all prompts of a call."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from ..chat import MAX_LENGTH
from .adapter_scale import write_scaled_adapter
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
from .model_files import check_model_files
from .serving import adapter_rank
from .tokenizer import load_tokenizer


# 8-bit weights in vLLM, which has no bitsandbytes: fp8 with scales per output channel, computed while loading.
EIGHT_BIT = "fp8_per_channel"


class VllmBackend(AdapterBackend):
    """Generates with vLLM in this process, with or without a LoRA adapter.

    Args:
        model (`str`): Folder of the model, or its Hub id.
        adapter (`str`, *optional*): Folder of a PEFT LoRA adapter to load.
        tensor_parallel (`int`, *optional*, defaults to `1`): Number of GPUs to split the weights over. A model that
            fits on one GPU is faster with one process per GPU.
        load_in_8bit (`bool`, *optional*, defaults to `False`): Quantise the weights to fp8; needs a GPU. A checkpoint
            that is already quantised does not need it.
        max_length (`int`, *optional*, defaults to `MAX_LENGTH`): Maximum number of tokens of a prompt and its
            completion.
        dtype (`str`, *optional*): Data type of the computation. Defaults to the model's own on a GPU, and to
            `float32` on a CPU.
        extra_adapters (`Sequence[str]`, *optional*): Folders of the adapters that `with_adapter` may switch to: the
            engine reserves memory for the largest rank at start-up.
        tokenizer (`str`, *optional*): Folder of the tokenizer, where it is not the model's own.

    Raises:
        FileNotFoundError: If there is no such model or adapter.
        ValueError: If vLLM is not installed; if the tokenizer has no chat template, or one whose tool-call format is
            unknown; if `load_in_8bit` is set on a CPU.
    """

    # Larger than the default: the engine's batch runs half empty at the end of every call.
    shard_size = 1000

    def __init__(
        self,
        model: str,
        adapter: str | None = None,
        tensor_parallel: int = 1,
        load_in_8bit: bool = False,
        max_length: int = MAX_LENGTH,
        dtype: str | None = None,
        extra_adapters: Sequence[str] = (),
        tokenizer: str | None = None,
    ) -> None:
        if adapter is not None:
            check_adapters([adapter], model)  # before the model loads
        self.tokenizer = load_tokenizer(tokenizer or model)
        # vLLM itself adds the end tokens of the model's generation config.
        self._end_ids = end_token_ids(self.tokenizer)
        super().__init__(model, revision_of(model) + (f"@{EIGHT_BIT}" if load_in_8bit else ""), adapter)
        self._adapter = adapter
        self.max_length = min(max_length, context_length(model))
        # vLLM identifies adapters by a positive integer.
        self._adapter_ids = {
            path: number for number, path in enumerate([adapter, *extra_adapters] if adapter else [], start=1)
        }
        max_rank = max(map(adapter_rank, self._adapter_ids), default=None)
        self._engine = _load_engine(model, max_rank, tensor_parallel, load_in_8bit, self.max_length, dtype)

    def _use_adapter(self, adapter: str | None) -> None:
        self._adapter = adapter  # passed to the engine with each request

    def _use_scale(self, scale: float) -> None:
        # The engine reads the folder again whenever it switches adapters, so it must outlive this backend's requests.
        self._scaled_folder = TemporaryDirectory(prefix="scaled-adapter-")
        scaled = self._scaled_folder.name
        write_scaled_adapter(Path(cast(str, self._adapter)), scale, Path(scaled))
        self._adapter = scaled
        self._adapter_ids[scaled] = len(self._adapter_ids) + 1

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMValidationError
        from vllm.lora.request import LoRARequest

        adapter = self._adapter
        try:
            outputs = self._engine.generate(
                [TokensPrompt(prompt_token_ids=ids) for ids in prompt_token_ids],
                [self._sampling_params(sampling, seed, index) for index in range(len(prompt_token_ids))],
                lora_request=adapter and LoRARequest(adapter, self._adapter_ids[adapter], adapter),
                use_tqdm=False,
            )
        except VLLMValidationError as error:
            raise ValueError(f"vLLM rejects the request: {error}") from error
        return [
            [
                decode_completion(self.tokenizer, sample.token_ids, str(sample.finish_reason))
                for sample in output.outputs
            ]
            for output in outputs
        ]

    def _sampling_params(self, sampling: Sampling, seed: int, index: int):
        """Parameters of one prompt. vLLM seeds sample k with seed + k: seeds of prompts are `num_samples` apart."""
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed + index * sampling.num_samples,
            stop_token_ids=self._end_ids,
            # `decode_completion` decodes, as in every backend.
            detokenize=False,
        )


def _load_engine(
    model: str, max_lora_rank: int | None, tensor_parallel: int, load_in_8bit: bool, max_length: int, dtype: str | None
):
    # vLLM reads its log level at import only. The default prints hundreds of lines at start-up.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    check_model_files(model)
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        raise ValueError(
            f"vLLM cannot be loaded ({error}): pip install 'cb-datasets[vllm]', or use --backend transformers."
        ) from error

    on_cpu = current_platform.is_cpu()
    if load_in_8bit and on_cpu:
        raise ValueError("8-bit weights need a GPU. Omit --load-in-8bit to run on the CPU in float32.")
    arguments: dict[str, Any] = {
        "model": model,
        "load_format": "safetensors",
        "dtype": dtype or ("float32" if on_cpu else "auto"),
        "max_model_len": max_length,
        "tensor_parallel_size": tensor_parallel,
        "quantization": EIGHT_BIT if load_in_8bit else None,
        # Many prompts share their system prompt and tool schemas.
        "enable_prefix_caching": True,
        # Compilation pays off on a GPU; on a CPU it takes longer than a run.
        "enforce_eager": on_cpu,
    }
    if on_cpu:
        # With chunked prefill, vLLM rewinds a seeded request's generator after each chunk, which CPU generators do
        # not support: "CPU Generator does not use offset". Without it, a step must have room for the longest prompt.
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, 4096)}
    if max_lora_rank is not None:
        arguments |= {"enable_lora": True, "max_lora_rank": max_lora_rank}
    return LLM(**arguments)
