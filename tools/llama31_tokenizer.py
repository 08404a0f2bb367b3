"""Write the real Llama 3.1 tokenizer as a Hugging Face folder, from files that PyPI packages carry.

    python tools/llama31_tokenizer.py .tokenizers/llama-3.1

`llama-models` ships `tokenizer.model`, TRL ships the chat template. The tokenizer is under the Llama 3.1 community
licence: it is used in tests and in local runs, and never committed.
"""

import sys
from importlib.resources import files
from pathlib import Path


# Pre-tokenization of Llama 3: splits text into words before byte-pair encoding.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Special tokens that are not reserved, by their index among the 256 that follow the 128,000 ordinary tokens.
NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def special_tokens() -> list[str]:
    """The 256 special tokens in order."""
    reserved = iter(range(256))
    return [NAMED.get(index) or f"<|reserved_special_token_{next(reserved)}|>" for index in range(256)]


def build_llama31_tokenizer(folder: Path) -> Path:
    """Write the tokenizer into `folder` and return it."""
    import trl
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    model = files("llama_models") / "llama3" / "tokenizer.model"
    backend = TikTokenConverter(str(model), pattern=PATTERN, extra_special_tokens=special_tokens()).converted()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (files(trl) / "chat_templates" / "llama3_1.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(f"tokenizer -> {build_llama31_tokenizer(Path(sys.argv[1]))}")
