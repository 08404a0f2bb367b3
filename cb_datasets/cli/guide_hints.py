"""What to write for commands and flags of the data generation guide and the pipeline plan that have another form here.

docs/from_the_guide.md has all of their commands. Flags that mean the same here have the same name, and need no hint.
"""

# Scripts of the two documents whose names are no commands here.
COMMANDS = {
    "generate_ds": "generate-ds",
    "generate_ds_mvp": "generate-ds",
    "generate_dr": "generate-dr",
    "generate_eval": "generate-eval",
    "generate_adversarial_safe": "generate-adversarial-safe",
    "ingest_agentdojo_splits": "ingest agentdojo",
    "ingest_tau2_traces": "ingest tau2",
    "ingest_ultrachat": "ingest ultrachat",
    "ingest_xstest": "ingest xstest_completions --retain",
    "validate_format": "validate",
    "quality_gates": "quality-gates",
    "merge_stage2_data": "merge",
    "preflight_check": "preflight",
}
_NOT_OURS = {"train_circuit_breaker": "accelerate launch -m trainers.train"}

_PROMPTS = "name the prompts with --b4-data FILE.jsonl, or --traces FOLDER of an ingested source"
_RESULT = "name the result with --output FILE.jsonl or FOLDER"
# By command, and by a flag that it does not have, or an argument that is missing.
FLAGS = {
    ("generate-ds", "--traces"): f"{_PROMPTS}, and {_RESULT}",
    ("generate-ds", "--output"): _RESULT,
    ("generate-dr", "--traces"): _PROMPTS,
    ("generate-adversarial-safe", "--traces"): _PROMPTS,
    (
        "generate-eval",
        "traces",
    ): "name folders of ingested sources, or B4's file: generate-eval FILE.jsonl",
    ("preflight", "--strict"): "every fault fails anyway; leave it out, and name the tokenizer with --model MODEL",
    ("quality-gates", "--dry-run"): "without --report it only prints the statistics; leave it out",
}


def command_hint(name: str) -> str | None:
    """What to write for a script of the documents; `None` for other names."""
    script = name.removesuffix(".py")
    if script in COMMANDS:
        return f"write cb-datasets {COMMANDS[script]}"
    return f"write {_NOT_OURS[script]}" if script in _NOT_OURS else None


def flag_hint(command: str, names: list[str]) -> tuple[str, str] | None:
    """A flag that a command does not have, or that is missing, and what to write; `None` where no hint is needed."""
    return next(((name, FLAGS[command, name]) for name in names if (command, name) in FLAGS), None)
