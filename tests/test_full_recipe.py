"""The recipe for Llama 3.1 8B from raw files to its report, with a small model under the real tokenizer and vLLM.

Nothing of the recipe is replaced, only made smaller: its variables name a small model, local files and few prompts.
The story is told once, as each part needs the one before. A random model gives no Ds, and the line stops. The same
model, taught to follow attacks, gives every set; they are too small for the recipe's gates, which are lowered one step
after the other, until the report is there. At last AgentDojo runs the model and its breaker on a server of vLLM.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from cb_datasets.files import load_rows, read_json
from tests.llama_agent import b4_records, save_random_llama, teach
from tests.make import make


pytestmark = [pytest.mark.slow, pytest.mark.vllm]

# vLLM on a CPU, in the process of each step.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "passive",
}
# The recipe's variables, for few prompts, short completions and two steps on a CPU.
SMALL = [
    "GENERATE_FLAGS=$(ENGINE_FLAGS) --max-new-tokens 64 --max-prompts 40 --max-eval-prompts 8",
    "DS_FLAGS=--max-prompts 24 --num-samples 2",
    "SAFE_FLAGS=--target-n 40 --min-n 10 --retry-temperatures 0.7 --retry-temperatures 1.0 --warned-temperatures 0.7",
    "REGENERATE_FLAGS=--fit --max-prompts 120 --num-samples 4",
    "COLLECT_FLAGS=--fit --max-each 60",
    "EVAL_FLAGS=--max-prompts 24",
    "EVALUATE_FLAGS=$(ENGINE_FLAGS) --max-new-tokens 64",
    "LAUNCH_FLAGS=--cpu --num_processes 1 --num_machines 1 --mixed_precision bf16 --dynamo_backend no",
]
TWO_STEPS = "TRAIN_FLAGS=--use_cpu --max_steps 2 --per_device_train_batch_size 2 --retain_batch_size 4"
LOWER_GATES = "GATE_FLAGS=--min-adversarial-safe 20 --min-tau2 10"
LOWER_MERGED = "MERGE_FLAGS=--min-adversarial-safe 10 --min-train 100"
LOWER_EVALUATION = "EVALUATE_FLAGS=$(ENGINE_FLAGS) --max-new-tokens 64 --min-base-benign 0 --min-asr-reduction -1"


@dataclass
class Recipe:
    """The recipe with its folders of raw files, of data and of the model."""

    raw: Path
    data: Path
    model: Path

    def make(self, *arguments: str) -> subprocess.CompletedProcess:
        folders = [f"RAW={self.raw}", f"DATA={self.data}", f"MODEL={self.model}"]
        flags = {"tau2": "--eval-fraction 0", "ultrachat": "--n-samples 2000", "xstest": ""}
        local = [f"INGEST_FLAGS_{source}={own} --data-dir {self.raw / source}" for source, own in flags.items()]
        return make("RECIPE=llama-3.1-8b", *folders, *local, *SMALL, *arguments, **ENVIRONMENT)

    def gates(self, report: str) -> dict[str, bool]:
        return {gate["name"]: gate["passed"] for gate in read_json(self.data / report)["gates"]}


def failed(gates: dict[str, bool]) -> set[str]:
    return {name for name, passed in gates.items() if not passed}


def assert_succeeds(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def recipe(real_data, llama_tokenizer, tmp_path_factory):
    """The recipe with its sources ingested; B4 has 240 records more than the published sample."""
    for package in ("vllm", "agentdojo", "tau2"):
        pytest.importorskip(package, reason=f"{package} is not installed: see `make test-vllm` and `make test`")
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("full")
    for name in ("agentdojo", "fujitsu", "tau2", "ultrachat", "xstest"):
        if not (real_data / name).is_dir():
            pytest.skip(f"no real data of {name}: set CB_TEST_DATA to a folder of source files")
        if name != "fujitsu":
            (raw / name).symlink_to(real_data / name)
    shutil.copytree(real_data / "fujitsu", raw / "fujitsu", copy_function=shutil.copyfile)
    (raw / "fujitsu").chmod(0o755)
    lines = [json.dumps(record) for record in b4_records(240)]
    (raw / "fujitsu" / "b4_more.jsonl").write_text("\n".join(lines))
    save_random_llama(folder / "model", llama_tokenizer)
    recipe = Recipe(raw, folder / "data", folder / "model")
    assert_succeeds(recipe.make("traces"))
    return recipe


@pytest.fixture(scope="module")
def random_model(recipe):
    return recipe.make("evaluate")


@pytest.fixture(scope="module")
def taught(recipe, random_model):
    teach(recipe.model, b4_records(240), load_rows(recipe.data / "traces" / "agentdojo" / "train"))
    return recipe


@pytest.fixture(scope="module")
def gated(taught):
    return taught.make("evaluate")


@pytest.fixture(scope="module")
def merged(taught, gated):
    return taught.make("evaluate", LOWER_GATES)


@pytest.fixture(scope="module")
def other_layers(taught, merged):
    """The training, with the layers of a model of 32."""
    return taught.make("evaluate", LOWER_GATES, LOWER_MERGED, TWO_STEPS)


@pytest.fixture(scope="module")
def judged(taught, other_layers):
    return taught.make("evaluate", LOWER_GATES, LOWER_MERGED, f"{TWO_STEPS} --target_layers 1 2")


@pytest.fixture(scope="module")
def reported(taught, judged):
    lowered = [LOWER_GATES, LOWER_MERGED, LOWER_EVALUATION, f"{TWO_STEPS} --target_layers 1 2"]
    return taught.make("evaluate", "cards", *lowered)


@pytest.fixture(scope="module")
def served(taught, reported):
    tasks = ["SUITES=banking", "USER_TASKS=user_task_0 user_task_3", "INJECTION_TASKS=injection_task_0"]
    engine = "AGENTDOJO_FLAGS=--backend vllm --max-length 8192 --max-new-tokens 64 --max-steps 3"
    return taught.make("agentdojo", *tasks, engine)


def test_a_random_model_follows_no_attack_and_the_line_stops_at_ds(random_model, recipe):
    assert random_model.returncode == 2
    [error] = [line for line in random_model.stderr.splitlines() if line.startswith("error:")]
    assert "harmful/b4_flips: no sample was kept; dropped 64 (" in error and "leave the set out" in error
    assert not (recipe.data / "retain").exists()


def test_every_set_is_made_and_only_its_size_fails(gated, taught):
    assert gated.returncode == 2 and "quality-gates: a gate failed" in gated.stderr
    gates = taught.gates("reports/quality_gates.failed.json")
    assert failed(gates) == {"retain: adversarial-safe rows", "tau2: train rows"}
    assert len(gates) > 30


def test_what_the_model_wrote_is_known(gated, taught):
    sources = {
        name: {row["provenance"]["completion_source"] for row in load_rows(taught.data / name)}
        for name in ("harmful/b4_flips", "harmful/agentdojo_failures", "retain/agentdojo_resisted", "retain/chat")
    }
    assert set(map(frozenset, sources.values())) == {frozenset({"sampled"})}


def test_the_merged_set_is_too_small_and_fails_for_nothing_else(merged, taught):
    assert merged.returncode == 2 and "merge: a gate failed" in merged.stderr
    too_few = {"merged: train rows", "merged: adversarial-safe rows"}
    assert failed(taught.gates("reports/stats.json")) == too_few


def test_an_error_of_the_training_is_one_line(other_layers):
    assert other_layers.returncode == 2 and "Traceback" not in other_layers.stderr
    assert "asks for the layers [10, 20], but the model has the layers 1 to 4" in other_layers.stderr


def test_two_steps_break_nothing_and_the_evaluation_says_so(judged, taught):
    assert judged.returncode == 2 and "evaluate: a gate failed" in judged.stderr
    results = read_json(taught.data / "report" / "results.json")
    required = {f"{gate['level']}: {gate['name']}": gate["passed"] for gate in results["gates"]}
    required = {name: passed for name, passed in required.items() if not name.startswith("strict")}
    assert required == {
        "base: ASR": True,
        "base: benign calls": False,  # of AgentDojo and TAU2, which the model was not taught
        "stage 1: ASR reduced by": False,
        "stage 1: benign calls kept": True,
    }


def test_once_the_gates_pass_the_report_is_there_and_the_release_too(reported, taught):
    assert_succeeds(reported)
    report = taught.data / "report"
    assert {"report.html", "report.md", "diagnostics.json", "cosine_by_layer.png"} <= {
        path.name for path in report.iterdir()
    }
    assert "attack success (ASR)" in reported.stdout
    assert (taught.data / "release" / "README.md").is_file()


def test_agentdojo_runs_base_and_breaker_on_a_server(served, taught):
    assert_succeeds(served)
    live = read_json(taught.data / "report" / "agentdojo" / "agentdojo.json")
    assert set(live["verdicts"]) == {"base", "breaker"}
    assert all(sum(verdicts.values()) == 4 for verdicts in live["verdicts"].values())
    assert "live:" in (taught.data / "report" / "report.md").read_text() + served.stdout
