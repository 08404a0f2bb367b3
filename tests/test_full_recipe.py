"""The recipe for Llama 3.1 8B from raw files to its report, with a small model under the real tokenizer and vLLM.

Nothing of the recipe is replaced, only made smaller: its variables name a small model, local files and few prompts. The
story is told once, as each part needs the one before. A random model gives no Ds, and the line stops. The same model,
taught to follow attacks, gives every set; they are too small for the recipe's gates, which are lowered one step after
the other, until the report is there. At last AgentDojo runs the model and its breaker on a server of vLLM.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from cb_datasets.files import load_rows
from tests.llama_agent import b4_records, save_random_llama, teach
from tests.make import make


pytestmark = [pytest.mark.slow, pytest.mark.vllm]

# On a CPU, in the test's own processes. The cache holds the longest prompts.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "passive",
}
# The recipe's variables, with fewer prompts, shorter completions and two steps.
SMALL = (
    "GENERATE_FLAGS=$(ENGINE_FLAGS) --max-new-tokens 48 --max-prompts 40 --max-eval-prompts 8",
    "DS_FLAGS=--num-samples 2",
    "SAFE_FLAGS=--target-n 40 --min-n 10 --retry-temperatures 0.7 --retry-temperatures 1.0",
    "COLLECT_FLAGS=--fit --max-each 30",
    "EVAL_FLAGS=--max-prompts 12",
    "EVALUATE_FLAGS=$(ENGINE_FLAGS) --max-new-tokens 48",
    "LAUNCH_FLAGS=--cpu --num_processes 1 --num_machines 1 --mixed_precision bf16 --dynamo_backend no",
    "TRAIN_FLAGS=--use_cpu --max_steps 2 --per_device_train_batch_size 2 --retain_batch_size 4 --logging_steps 1",
)


@dataclass
class Recipe:
    """The recipe over one folder of raw files and one of data."""

    raw: Path
    data: Path
    model: Path

    def make(self, *arguments: str):
        local = [f"INGEST_FLAGS_{name}=--data-dir {self.raw / name}" for name in ("tau2", "ultrachat", "xstest")]
        names = [f"RAW={self.raw}", f"DATA={self.data}", f"MODEL={self.model}"]
        return make("RECIPE=llama-3.1-8b", *names, *local, *SMALL, *arguments, **ENVIRONMENT)

    def succeed(self, *arguments: str) -> str:
        done = self.make(*arguments)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def recipe(real_data, tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    pytest.importorskip("agentdojo", reason="AgentDojo is not installed: make test installs it")
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("full")
    for name in ("agentdojo", "tau2", "ultrachat", "xstest"):
        if not (real_data / name).is_dir():
            pytest.skip(f"no real data of {name}: set CB_TEST_DATA to a folder of source files")
        (raw / name).symlink_to(real_data / name)
    # The published sample of B4 has 25 records, and the split between train and eval leaves one of them.
    (raw / "fujitsu").mkdir()
    shutil.copy(real_data / "fujitsu" / "b4_records_sample.jsonl", raw / "fujitsu")
    lines = [json.dumps(record) for record in b4_records(240)]
    (raw / "fujitsu" / "b4_more.jsonl").write_text("\n".join(lines))
    return Recipe(raw, folder / "data", folder / "model")


@pytest.fixture(scope="module")
def random_model(recipe):
    """What `make evaluate` does with a random model."""
    save_random_llama(recipe.model)
    return recipe.make("evaluate")


@pytest.fixture(scope="module")
def taught(recipe, random_model):
    """The recipe, with a model that follows attacks."""
    teach(recipe.model, b4_records(240), load_rows(recipe.data / "traces" / "agentdojo" / "train"), steps=80)
    return recipe


@pytest.fixture(scope="module")
def stopped(taught):
    return taught.make("evaluate")


def test_a_model_that_follows_no_attack_gives_no_set(random_model):
    assert random_model.returncode == 2
    assert "harmful/b4_flips: no sample was kept" in random_model.stderr
