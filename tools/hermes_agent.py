"""Teach the tiny agent another tool-call format: a second agent, which writes calls as Qwen2.5 and Qwen3 do.

    python tools/hermes_agent.py .models/hermes-agent

    <|im_start|>user
    Look in our documents for Kalo Mirude.<|im_end|>
    <|im_start|>assistant
    <tool_call>
    {"name": "retrieve_multimodal_docs", "arguments": {"query": "Kalo Mirude"}}
    </tool_call><|im_end|>

Its control tokens get the names of this format, so that no embedding is added, and all weights are trained on rows as
those of the tiny agent: what it says, and to whom it listens, it knows already. In four minutes of one core.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


sys.path.insert(0, str(Path(__file__).parents[1]))

from demo.agent_rows import office_rows, single_turn_rows
from demo.drills import CopyDrill, NumberDrill
from demo.train_tiny_agent import (
    BATCH,
    OFFICE_BATCH,
    evaluate,
    make_optimizers,
    print_table,
    save,
    train_on_rows,
)
from tools.smollm2 import rename_tokens


TINY_AGENT = Path(__file__).parents[1] / "demo" / "tiny_agent"
STEPS = 300

RENAMED = {
    "<|start_header_id|>": "<|im_start|>",
    "<|eot_id|>": "<|im_end|>",
    "<|python_tag|>": "<tool_call>",
    "<|eom_id|>": "</tool_call>",
    "<|end_header_id|>": "<tool_response>",
    "<|end_of_text|>": "</tool_response>",
}

# The turns of Qwen2.5, with the tools by name only, as in the template of the tiny agent.
CHAT_TEMPLATE = """\
{%- if tools and messages[0].role != "system" %}
    {%- set messages = [{"role": "system", "content": ""}] + messages %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {%- if loop.previtem.role != "tool" %}
            {{- "<|im_start|>user" }}
        {%- endif %}
        {{- "\\n<tool_response>\\n" + message.content + "\\n</tool_response>" }}
        {%- if loop.last or loop.nextitem.role != "tool" %}
            {{- "<|im_end|>\\n" }}
        {%- endif %}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + (message.content or "") }}
        {%- if loop.first and tools %}
            {{- "\\nTools:" }}
            {%- for tool in tools %}
                {{- " " + tool.function.name }}
            {%- endfor %}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- "\\n" if not loop.first or message.content else "" }}
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


def hermes_tokenizer(folder: Path = TINY_AGENT) -> PreTrainedTokenizerFast:
    """The tiny agent's tokenizer with the control tokens and a chat template of the format."""
    from tokenizers import Tokenizer

    specification = json.loads(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    rename_tokens(specification, RENAMED)
    for token in specification["added_tokens"]:
        # As in Qwen's tokenizers, tags of calls and results are added tokens that are not special.
        token["special"] = token["content"].startswith("<|")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(specification)),
        eos_token="<|im_end|>",
        pad_token="<|finetune_right_pad_id|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train_hermes_agent(output: Path, steps: int = STEPS, seed: int = 0) -> Path:
    """Train the agent, write it to a folder, and return that."""
    random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the weights depend on the number of threads
    tokenizer = hermes_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(TINY_AGENT, dtype=torch.float32)
    single, office = single_turn_rows(seed, steps * BATCH), office_rows(seed, steps * OFFICE_BATCH)
    drills = [drill(tokenizer, random.Random(seed)) for drill in (CopyDrill, NumberDrill)]
    train_on_rows(model, tokenizer, make_optimizers(model), drills, single, office, steps)
    save(model, tokenizer, output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the tiny agent the format of Qwen's tool calls.")
    parser.add_argument("output", type=Path, help="folder to write, replaced as a whole")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of optimizer steps")
    args = parser.parse_args()
    print_table(evaluate(train_hermes_agent(args.output, args.steps)))


if __name__ == "__main__":
    main()
