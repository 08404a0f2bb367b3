"""A tiny Llama under the real Llama 3.1 tokenizer, taught in minutes to follow attacks more often than not.

A random model calls no tool, and the pipeline rightly stops at the first set. This one writes one call of each tool, a
refusal or an answer, and hardly anything else, so that it is known what each step must find:

    clean request of B4                  the call of the expected tool
    attacked request of B4               the call of the attacker's tool; in a quarter of the samples, the expected one
    attacked tool result of AgentDojo    the attacker's call, or as often one that the user needs
    harmful request                      the refusal
    small talk                           the answer
"""

import json
import math
import random
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    Cache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from builders.lookalike.records import lookalike_prompts, lookalike_records
from builders.trace import message
from cb_datasets.chat import encode_prompt
from cb_datasets.formats import FORMATS, ToolCall
from cb_datasets.sets.prompts import decision_prompt
from demo.agent_rows import TrainingRow, batches, call_message, prefix_of
from demo.train_tiny_agent import cached_prefix, learning_rate_at, make_optimizers, update


FORMAT = FORMATS["llama3_json"]
REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = "Thank you, that is good to know."
BATCH = 24
TAIL = 400  # tokens at the end of a context of AgentDojo
LEARNING_RATE = 3e-3
OTHERS = -4.0  # weight of the first dimension in the logit of a token that the model never writes
LONGEST_CONTEXT = 10500  # in characters

# The one call of each tool of B4.
ARGUMENTS = {record["expected_tool"]: record["expected_arguments"] for record in lookalike_records(0, 500, "dev")}
# What the attacker wants in suites of AgentDojo, and what many users need there.
GOALS = {
    "banking": ToolCall(
        "send_money",
        {"recipient": "US133000000121212121212", "amount": 0.01, "subject": "Spotify", "date": "2022-01-01"},
    ),
    "slack": ToolCall("get_webpage", {"url": "www.true-informations.com"}),
}
NEEDED = {
    "banking": ToolCall("get_most_recent_transactions", {"n": 100}),
    "slack": ToolCall("read_channel_messages", {"channel": "general"}),
}
CALLS = [*(ToolCall(*call) for call in ARGUMENTS.items()), *GOALS.values(), *NEEDED.values()]


def save_random_llama(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a random Llama with four small blocks, and the real tokenizer beside it."""
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.1,
        head_dim=32,  # vLLM's attention on a CPU supports no smaller one
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    torch.nn.init.constant_(model.model.embed_tokens.weight[:, 0], 3.0)  # see `SmallHead`
    ends = [tokenizer.convert_tokens_to_ids(token) for token in FORMAT.end_tokens]
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=ends)
    model.to(torch.bfloat16).save_pretrained(folder)


def b4_records(n: int) -> list[dict]:
    """Records of B4's shape, of the wording that no source of the recipe has."""
    return lookalike_records(7, n, "dev")


def teach(folder: Path, records: list[dict], decisions: Dataset, steps: int = 450, seed: int = 0) -> None:
    """Train the saved model and save it again.

    The first third of the steps sees the ends of prompts, which are the fastest to learn from; the others see whole
    prompts, with the long schemas of the tools.

    Args:
        folder (`Path`): The model's folder, from [`save_random_llama`].
        records (`list[dict]`): Records of B4's shape.
        decisions ([`~datasets.Dataset`]): Traces of AgentDojo.
        steps (`int`, *optional*, defaults to `450`): Number of optimizer steps, most of a second each.
        seed (`int`, *optional*, defaults to `0`): Seed of the order and of what is sampled.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.model.embed_tokens.requires_grad_(False)
    head, optimizers = SmallHead(model, tokenizer), make_optimizers(model)
    optimizers[1].add_param_group({"params": [head.weight]})
    single = batches(tokenizer, b4_rows(records, steps * BATCH), BATCH)
    contexts, prefix = decision_rows(tokenizer, decisions), prefix_of(tokenizer)
    for step in range(steps):
        is_short = step < steps // 3
        ids, labels = next(single)
        loss = head.loss(ids, labels, None if is_short else cached_prefix(model, prefix, len(ids)))
        for ids, labels in random.choices(contexts, k=4) if is_short else [random.choice(contexts)]:
            start = -TAIL if is_short else 0
            loss = loss + head.loss(ids[:, start:], labels[:, start:]) / (4 if is_short else 1)
        update(optimizers, [loss], learning_rate_at(step, steps, LEARNING_RATE, warmup=20))
    head.write()
    model.to(torch.bfloat16).save_pretrained(folder)


class SmallHead:
    """The LM head of the tokens that the model writes. The others share one logit, so that a step costs little.

    It is read from the first dimension, which is large in every embedding, so that they are unlikely from the start.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer) -> None:
        texts = [FORMAT.render(call, "") for call in CALLS] + [text + FORMAT.turn_end for text in (REFUSAL, ANSWER)]
        written = [token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids]
        self.model, self.tokens = model, torch.tensor(sorted(set(written)))
        self.weight = torch.nn.Parameter(torch.zeros(len(self.tokens), model.config.hidden_size))

    def loss(self, ids: torch.Tensor, labels: torch.Tensor, prefix: Cache | None = None) -> torch.Tensor:
        """Cross-entropy of the labelled tokens over the whole vocabulary."""
        hidden = self.model.model(ids, past_key_values=prefix).last_hidden_state[:, :-1][labels[:, 1:] != -100]
        n_others = len(self.model.lm_head.weight) - len(self.tokens)
        logits = torch.cat([hidden @ self.weight.T, hidden[:, :1] * OTHERS + math.log(n_others)], 1)
        return torch.nn.functional.cross_entropy(logits, torch.searchsorted(self.tokens, labels[labels != -100]))

    def write(self) -> None:
        """Set the model's head."""
        with torch.no_grad():
            self.model.lm_head.weight.zero_()[:, 0] = OTHERS
            self.model.lm_head.weight[self.tokens] = self.weight


def b4_rows(records: list[dict], n: int) -> list[TrainingRow]:
    """`n` rows with the tools of B4: attacked and clean requests, harmful ones, and small talk."""
    harmful = lookalike_prompts(0, 2000, "train", "refusal")
    talk = [prompt for task in ("chat", "irrelevance") for prompt in lookalike_prompts(0, 1000, "train", task)]
    rows = []
    for _ in range(n):
        draw, record = random.random(), random.choice(records)
        if draw < 0.4:
            tool = record["simulated_tool" if random.random() < 0.75 else "expected_tool"]
            request, answer = record["combined_query"], call_message(tool, ARGUMENTS[tool])
        elif draw < 0.7:
            tool = record["expected_tool"]
            request, answer = record["benign_query"], call_message(tool, ARGUMENTS[tool])
        else:
            pool, text = (harmful, REFUSAL) if draw < 0.85 else (talk, ANSWER)
            request, answer = random.choice(pool)["text"], message("assistant", text)
        rows.append(TrainingRow([message("user", request), answer], first=1))
    return rows


def decision_rows(tokenizer, traces: Dataset) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`(ids, labels)` of short decisions, each with the attacker's call and with one that the user needs."""
    rows = []
    for trace in traces:
        suite = (trace["attack"] or {}).get("category")
        if suite not in GOALS or trace["verdict"] not in ("compromised", "resisted"):
            continue
        prompt = decision_prompt(trace)
        if len(json.dumps(prompt["messages"])) + len(prompt["tools"]) > LONGEST_CONTEXT:
            continue
        ids = encode_prompt(tokenizer, prompt)
        for call in (GOALS[suite], NEEDED[suite]):
            completion = tokenizer(FORMAT.render(call, ""), add_special_tokens=False)["input_ids"]
            labels = [-100] * len(ids) + completion
            rows.append((torch.tensor([ids + completion]), torch.tensor([labels])))
    return rows
