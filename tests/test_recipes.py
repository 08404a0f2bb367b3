"""The recipes: what Make would run are commands that the command line takes, and the one for a GPU generates."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from builders import load_source
from cb_datasets.cli import app
from cb_datasets.files import load_rows
from cb_datasets.formats import get_format
from cb_datasets.sets.eval_prompts import evaluation_prompts
from cb_datasets.sets.prompts import prompts_for_task
from cb_datasets.sets.retain import RETAIN_TASKS
from tests.make import ROOT, make
from tools.small_models import save_wide_agent


LLAMA3_JSON = get_format("llama3_json")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.mk"))


def commands_of(recipe, target, data):
    """The commands of our own that a target runs, as lists of words."""
    shown = make("--dry-run", target, f"RECIPE={recipe}", "RAW=raw", f"DATA={data}", "RANK=0", "WORLD=2")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    found = [re.search(r"cb-datasets (.*?)(?: > .*)?$", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("target", ["data", "generate-shards"])
def test_every_command_of_a_recipe_is_one(recipe, target, tmp_path):
    commands = commands_of(recipe, target, tmp_path)
    assert commands
    group = typer.main.get_command(app)
    for name, *arguments in commands:
        command = group.commands[name]
        command.make_context(name, arguments)


def test_a_recipe_with_a_model_puts_it_into_agentdojos_situations(tmp_path):
    steps = {recipe: [words[:2] for words in commands_of(recipe, "data", tmp_path)] for recipe in RECIPES}
    assert ["regenerate", "--traces"] in steps["llama-3.1-8b"]
    assert ["collect", "harmful/agentdojo_failures"] not in steps["llama-3.1-8b"]
    assert ["collect", "harmful/agentdojo_failures"] in steps["local"]


def options_of(words, name):
    """The values of an option that may be repeated."""
    return [value for option, value in pairwise(words) if option == name]


def test_look_alikes_give_the_full_recipe_what_it_says_and_no_attacks(tmp_path):
    """In the headline pool they would stand for B4."""
    commands = commands_of("llama-3.1-8b", "data", tmp_path)
    [ingest] = [words for words in commands if words[:2] == ["ingest", "lookalike"]]
    tasks = options_of(ingest, "--tasks")
    assert tasks == ["refusal", "chat", "irrelevance"]
    traces = load_source("lookalike", cache_dir=tmp_path / "cache", tasks=tuple(tasks))
    [generated] = [words for words in commands if words[0] == "generate-eval"]
    given = {
        task for task in options_of(generated, "--tasks") if len(evaluation_prompts(traces["test"], task, LLAMA3_JSON))
    }
    assert given == set(tasks)
    [retained] = [words for words in commands if words[0] == "generate-dr"]
    assert options_of(retained, "--kinds") == ["benign_twins", "refusals", "chat"]
    assert not any(len(prompts_for_task(traces["train"], task)) for task in RETAIN_TASKS["benign_twins"][1])


def test_the_definition_of_done_is_a_gate_of_the_full_recipe(tmp_path):
    merges = {
        recipe: next(words for words in commands_of(recipe, "data", tmp_path) if words[0] == "merge")
        for recipe in RECIPES
    }
    assert options_of(merges["llama-3.1-8b"], "--min-train") == ["5000"]
    assert not any("--min-train" in words for recipe, words in merges.items() if recipe != "llama-3.1-8b")


@pytest.mark.parametrize("recipe", ["demo", "smollm2"])
def test_plain_rerouting_is_shown_beside_the_breaker(recipe, tmp_path):
    shown = make("--dry-run", "evaluate", f"RECIPE={recipe}", f"DATA={tmp_path}").stdout
    assert re.findall(r"--config (\S+)", shown) == [f"recipes/{recipe}.yaml", f"recipes/{recipe}-plain_rr.yaml"]
    alone, words = [words for words in commands_of(recipe, "evaluate", tmp_path) if words[0] == "evaluate"]
    assert alone[alone.index("--adapter") + 1] == f"{tmp_path}/adapters/plain_rr" and "--also" not in alone
    assert alone[alone.index("--output") + 1] == f"{tmp_path}/adapters/plain_rr/report"
    assert words[words.index("--adapter") + 1] == f"{tmp_path}/adapter"
    assert words[words.index("--also") + 1] == f"plain_rr={tmp_path}/adapters/plain_rr"


@pytest.mark.parametrize(("recipe", "num_tables"), [("demo", 4), ("smollm2", 4)])
def test_the_folder_of_a_redirected_table_is_made_first(recipe, num_tables, tmp_path):
    shown = make("--dry-run", "evaluate", f"RECIPE={recipe}", f"DATA={tmp_path}").stdout.replace("\\\n", " ")
    made: set[str] = set()
    tables = 0
    for line in shown.splitlines():
        made.update(re.findall(r"mkdir -p (\S+)", line))
        for table in re.findall(r" > (\S+)", line):
            assert str(Path(table).parent) in made, line
            tables += 1
    assert tables == num_tables


def test_the_models_own_runs_are_a_source_and_a_test_of_the_demo(tmp_path):
    runs, live = [words for words in commands_of("demo", "evaluate", tmp_path) if words[0] == "agentdojo"]
    assert "--adapter" not in runs and runs[runs.index("--suite") + 1] == "office_train_*"
    assert f"plain_rr={tmp_path}/adapters/plain_rr" in live and live[live.index("--suite") + 1] == "office_test_[01]"
    steps = commands_of("demo", "data", tmp_path)
    [ingest] = [words for words in steps if words[:2] == ["ingest", "agentdojo"]]
    assert ingest[ingest.index("--data-dir") + 1] == runs[runs.index("--output") + 1]
    collected = [words for words in steps if words[0] == "collect"]
    assert all(words[words.index("--own-agent") + 1] == "local-base" for words in collected)
    assert not any(words[0] == "regenerate" for words in steps)


def test_the_second_model_is_made_where_it_is_missing(tmp_path):
    agent = tmp_path / "agent"
    shown = make("--dry-run", "data", "RECIPE=smollm2", f"DATA={tmp_path / 'data'}", f"SMOLLM2_AGENT={agent}").stdout
    first, *_ = [line for line in shown.splitlines() if "train_smollm2_agent" in line or "cb-datasets" in line]
    assert first.endswith(f"demo/train_smollm2_agent.py --model .models/smollm2 --output {agent}")
    agent.mkdir()
    (agent / "model.safetensors").touch()
    shown = make("--dry-run", "data", "RECIPE=smollm2", f"DATA={tmp_path / 'data'}", f"SMOLLM2_AGENT={agent}").stdout
    assert "train_smollm2_agent" not in shown and "generate-ds" in shown


def test_a_recipe_of_ones_own_files_needs_no_rule_of_its_own(tmp_path):
    sources = ["SOURCES=jsonl", "INGEST_FLAGS_jsonl=--data-dir my_traces"]
    sets = ["HARMFUL_SETS=jsonl_failures", "RETAIN_SETS=jsonl_resisted jsonl_benign", "RETAIN_SOURCES="]
    shown = make("--dry-run", "data", "RECIPE=local", f"DATA={tmp_path}", *sources, *sets).stdout
    assert f"ingest jsonl --output {tmp_path}/traces/jsonl" in shown and "--data-dir my_traces" in shown
    for name in ("harmful/jsonl_failures", "retain/jsonl_resisted", "retain/jsonl_benign"):
        assert f"collect {name} --traces {tmp_path}/traces " in shown
    assert "generate-" not in shown.replace("generate-eval", "")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("target", ["data", "harmful"])
def test_every_source_is_read_before_a_model_is_asked(recipe, target, tmp_path):
    """Except the model's own runs, which are a source."""
    steps = [words[:2] for words in commands_of(recipe, target, tmp_path)]
    asked = [index for index, (name, _) in enumerate(steps) if name in ("generate-ds", "generate-dr", "regenerate")]
    asked += [index for index, (name, _) in enumerate(steps) if name in ("generate-adversarial-safe", "agentdojo")]
    has_runs = any(name == "agentdojo" for name, _ in steps)
    read = [
        index
        for index, (name, source) in enumerate(steps)
        if name == "ingest" and not (has_runs and source == "agentdojo")
    ]
    assert read and (not asked or max(read) < min(asked))


@pytest.mark.parametrize("target", ["push", "push-model"])
def test_a_repository_that_is_not_named_is_missed_first(target, tmp_path):
    shown = make("--dry-run", target, f"DATA={tmp_path}")
    assert shown.returncode != 0 and f"make {target} REPO=owner/name" in shown.stderr and not shown.stdout
    assert " o/n " in make("--dry-run", target, f"DATA={tmp_path}", "REPO=o/n").stdout


@pytest.mark.parametrize("target", ["train", "evaluate", "attack"])
def test_a_recipe_without_training_says_so(target, tmp_path):
    shown = make("--dry-run", target, "RECIPE=local", "RAW=raw", f"DATA={tmp_path}")
    assert shown.returncode != 0 and not shown.stdout
    assert f"make {target}: the recipe local has no training" in shown.stderr


def test_clean_keeps_what_a_model_wrote_and_a_person_marked(tmp_path):
    for name in ("completions/a", "audit/marks.parquet", "runs/b", "harmful/c", "stage2/train/d", "reports/e.json"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert make("clean", f"DATA={tmp_path / 'data'}").returncode == 0
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"completions", "audit", "runs"}
    assert make("clean-all", f"DATA={tmp_path / 'data'}").returncode == 0 and not (tmp_path / "data").exists()
    assert make("clean", f"DATA={tmp_path / 'data'}").returncode == 0, "nothing is there"


def test_recorded_answers_have_a_recipe(tmp_path):
    collected = [words[1] for words in commands_of("recorded", "data", tmp_path) if words[0] == "collect"]
    assert {"harmful/fujitsu_rag", "harmful/fujitsu_direct", "retain/xstest_borderline"} <= set(collected)
    ingests = {words[1]: words for words in commands_of("recorded", "data", tmp_path) if words[0] == "ingest"}
    assert all("--retain" in ingests[name] for name in ("xstest", "xstest_completions"))


def test_export_writes_the_tree_beside_the_data_or_where_it_is_wanted(tmp_path):
    *_, words = commands_of("local", "export", tmp_path)
    assert words == ["export", str(tmp_path), "--output", f"{tmp_path}/jsonl"]


@pytest.mark.vllm
def test_the_recipe_for_a_gpu_generates_with_vllm(tiny_agent_path, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    model, data = tmp_path / "model", tmp_path / "data"
    save_wide_agent(tiny_agent_path, model)
    small = ["INGEST_FLAGS=--eval-fraction 0", "INGEST_FLAGS_lookalike=", "SOURCES=lookalike", "ATTACKED=lookalike"]
    small += ["DS_FLAGS=", "GENERATE_FLAGS=--backend vllm --max-prompts 20 --max-eval-prompts 5"]
    done = make(
        "harmful", "RECIPE=llama-3.1-8b", f"MODEL={model}", f"DATA={data}", "HARMFUL_SETS=lookalike_flips", *small
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = load_rows(data / "harmful" / "lookalike_flips")
    assert len(rows) >= 20
    assert {row["provenance"]["generator_model"] for row in rows} == {model.name}
