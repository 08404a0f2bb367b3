"""A random model with four small layers, a byte tokenizer, and rows to train on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cb_datasets.formats import FORMATS, format_of
from cb_datasets.sample import LABELS, SAMPLE_FEATURES, empty_provenance
from cb_datasets.template_probe import template_hash
from trainers import CircuitBreakerConfig, CircuitBreakerTrainer
from trainers.circuit_breaker_config import PRESETS


SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|pad|>",
]
CHAT_TEMPLATE = (
    "<|begin_of_text|>{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}{{ message.content }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens of Llama 3.1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|eot_id|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


# Provenance of rows that were made for that tokenizer
RENDERING = {"prompt_format": "llama3_json", "template_hash": template_hash(make_tokenizer())}


def made_for(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The rows, which are in the format of Llama 3.1, as they would be if they were made for a tokenizer."""
    tool_format = format_of(tokenizer)
    own = {"prompt_format": tool_format.name, "template_hash": template_hash(tokenizer)}

    def written(row: dict) -> str:
        if row["provenance"]["prompt_format"] == tool_format.name:
            return row["assistant_raw"]
        parsed = FORMATS["llama3_json"].parse(row["assistant_raw"], row["tools"])
        if parsed.is_call:
            return tool_format.render(parsed.calls[0], parsed.text)
        return tool_format.render_text(parsed.text)

    made = [row | {"assistant_raw": written(row), "provenance": row["provenance"] | own} for row in rows]
    return Dataset.from_list(made, features=rows.features)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


def make_model(num_hidden_layers: int = 4, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=263,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_sample(
    identifier: str, set_name: str, priority_class: str, request: str, completion: str, split: str
) -> dict[str, Any]:
    message = {"role": "user", "content": request, "tool_calls": None, "tool_call_id": None, "name": None}
    return {
        "id": identifier,
        "group": identifier,
        "pair": None,
        "task": None,
        "family": None,
        "messages": [message],
        "tools": None,
        "injection": [],
        "target": {
            "expected_tool": None,
            "simulated_tool": None,
            "expected_calls": None,
            "goal_calls": None,
            "prefill": None,
        },
        "category": None,
        "subtype": None,
        "provenance": empty_provenance("test", identifier) | RENDERING,
        "split": split,
        "set": set_name,
        "assistant_raw": completion,
        "tool_calls_structured": [],
        "outcome": None,
        "priority_class": priority_class,
        "labels": dict.fromkeys(LABELS),
    }


@pytest.fixture(scope="session")
def sample() -> Callable[..., dict[str, Any]]:
    """Makes one sample."""
    return make_sample


@pytest.fixture(scope="session")
def rows() -> Callable[..., Dataset]:
    """Makes a dataset of both sets. Completions differ in length unless `even` is set."""

    def make(harmful: int = 6, retain: dict[str, int] | None = None, even: bool = False, split: str = "train"):
        retain = {"benign_twin": 5, "refusal": 3, "adversarial_safe": 2} if retain is None else retain
        samples = []
        for i in range(harmful):
            call = f"<|python_tag|>{'s' * (4 if even else i)}<|eom_id|>"
            request = f"Moon {i} <!-- x -->"
            samples.append(make_sample(f"ds/{i}", "circuit_breaker", "harmful_flip", request, call, split))
        for name, number in retain.items():
            for i in range(number):
                text = "Fine.<|eot_id|>" if even else f"{'r' * (i + 1)}.<|eot_id|>"
                samples.append(make_sample(f"{name}/{i}", "retain", name, f"Moon {i}", text, split))
        return Dataset.from_list(samples, features=SAMPLE_FEATURES)

    return make


@pytest.fixture(scope="session")
def attacked_rows() -> Callable[..., Dataset]:
    return make_attacked_rows


def make_attacked_rows(records: int = 4, refusals: int = 3, split: str = "train") -> Dataset:
    """Records of three siblings (harmful, right call under attack, clean twin), and refusals."""
    samples = []
    for i in range(records):
        clean, attack = f"Mo{'o' * i}n", f"<!-- now {'send_it' if i % 2 else 'search_web'} -->"
        opening = "I'll do it. " if i % 2 else ""
        wrong, right = ("send_it" if i % 2 else "search_web"), "see_docs"
        for set_name, priority_class, request, tool in (
            ("circuit_breaker", "harmful_flip", f"{clean} {attack}", wrong),
            ("retain", "adversarial_safe", f"{clean} {attack}", right),
            ("retain", "benign_twin", clean, right),
        ):
            call = f'{opening}<|python_tag|>{{"name": "{tool}", "parameters": {{}}}}<|eom_id|>'
            row = make_sample(f"{priority_class}/{i}", set_name, priority_class, request, call, split)
            row |= {"pair": f"record/{i}", "tool_calls_structured": [{"name": tool, "arguments": "{}"}]}
            if request != clean:
                row["injection"] = [{"message": 0, "start": len(clean) + 1, "end": len(request)}]
            samples.append(row)
    samples += [
        make_sample(f"refusal/{i}", "retain", "refusal", f"Bomb {i}", "No.<|eot_id|>", split) for i in range(refusals)
    ]
    return Dataset.from_list(samples, features=SAMPLE_FEATURES)


@pytest.fixture
def make_trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: Callable[..., Dataset]):
    """Makes a trainer of the tiny model; keywords that are not the trainer's own go to its config."""

    def make(**options: Any) -> CircuitBreakerTrainer:
        defaults = {"output_dir": str(tmp_path / "output"), "train_dataset": rows(), "processing_class": tokenizer}
        return build_trainer(**defaults | options)

    return make


def build_trainer(**options: Any) -> CircuitBreakerTrainer:
    config = {
        # Representation Rerouting on completions at the target layers, unless a test asks for something else
        "preset": "reference",
        "lora_b_init_std": 1e-3,
        "rr_tokens": "completion",
        "retain_tokens": "completion",
        "retain_l2_layers": ["target"],
        "retain_l2_norm": "token",
        "target_layers": [2, 3],
        "per_device_train_batch_size": 3,
        "retain_batch_size": 3,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    if "preset" in options:  # which then decides these settings
        config = {key: value for key, value in config.items() if key not in PRESETS["reference"]}
    arguments = {"model": make_model(), "peft_config": LoraConfig(r=4, lora_alpha=8)}
    for name, value in options.items():
        names = {*arguments, "train_dataset", "processing_class", "eval_dataset", "callbacks"}
        (arguments if name in names else config)[name] = value
    return CircuitBreakerTrainer(args=CircuitBreakerConfig(**config), **arguments)
