"""The recipes: what Make would run are commands that the command line takes, and the one for a GPU generates."""

import os
import re
import shlex
import time
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

from builders import load_source
from cb_datasets.cli import app
from cb_datasets.files import load_rows
from cb_datasets.formats import get_format
from cb_datasets.model_licences import licence_of
from cb_datasets.sets.eval_prompts import evaluation_prompts
from cb_datasets.sets.prompts import prompts_for_task
from cb_datasets.sets.retain import RETAIN_TASKS
from tests.make import ROOT, make
from tools.small_models import save_wide_agent


LLAMA3_JSON = get_format("llama3_json")
# `yardsticks` makes evaluation prompts only.
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.mk") if path.stem != "yardsticks")
# Decoder layers of the models of recipes for a GPU, and their format.
FULL = {
    "llama-3.1-8b": (32, None),
    "llama-3.3-70b": (80, "llama3_json"),
    "qwen2.5-7b": (28, "hermes"),
    "qwen3-8b": (36, "hermes"),
    "mistral-small": (40, "mistral_v3"),
    "gpt-oss-20b": (24, "harmony"),
}


def commands_of(recipe, target, data):
    """The commands of our own that a target runs, as lists of words."""
    shown = make("--dry-run", target, f"RECIPE={recipe}", "RAW=raw", f"DATA={data}", "RANK=0", "WORLD=2")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    found = [re.search(r"cb-datasets (.*?)(?: (?:>|\|\|) .*)?$", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("target", ["data", "generate-shards"])
def test_every_command_of_a_recipe_is_one(recipe, target, tmp_path, any_path):
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
    of_full_size = {recipe for recipe, words in merges.items() if options_of(words, "--min-train") == ["5000"]}
    assert of_full_size == set(FULL) == {recipe for recipe, words in merges.items() if "--min-train" in words}


@pytest.mark.parametrize("recipe", FULL)
def test_full_recipes_train_their_model_at_the_depth_of_the_first(recipe):
    num_layers, _ = FULL[recipe]
    config = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    assert config["target_layers"] == [round(0.3125 * num_layers), round(0.625 * num_layers)]
    [command] = re.findall(r"-m trainers\.train .*", make("--dry-run", "train", f"RECIPE={recipe}", "RAW=raw").stdout)
    words = shlex.split(command)
    assert options_of(words, "--model_name_or_path") == [config["model_name_or_path"]]
    assert options_of(words, "--dataset_name") == [config["dataset_name"]] == [f"data/{recipe}/stage2"]
    assert options_of(words, "--output_dir") == [config["output_dir"]]
    assert licence_of(config["model_name_or_path"]) is not None


@pytest.mark.parametrize("recipe", FULL)
def test_what_a_recipe_decides_about_the_template_holds_in_every_step(recipe, tmp_path):
    _, tool_format = FULL[recipe]
    steps = commands_of(recipe, "data", tmp_path) + commands_of(recipe, "evaluate", tmp_path)
    decided = [words for words in steps if words[0] == "tokenizer"]
    if tool_format is None:
        assert not decided and not any("--tokenizer" in words for words in steps)
        return
    assert all(options_of(words, "--tool-format") == [tool_format] for words in decided) and decided
    assert steps[0] == decided[0], "before any work"
    folder = f"{tmp_path}/tokenizer"
    for words in steps:
        of_model = [*options_of(words, "--model"), *options_of(words, "--tokenizer")]
        assert words[0] in ("tokenizer", "ingest", "validate", "report") or folder in of_model, words


def test_models_that_think_are_given_the_tokens_or_kept_from_it(tmp_path):
    def decided(recipe: str) -> tuple[list, set]:
        steps = commands_of(recipe, "evaluate", tmp_path)
        length = {length for words in steps for length in options_of(words, "--max-new-tokens")}
        return options_of(steps[0], "--template-setting"), length

    assert decided("qwen3-8b") == (["enable_thinking=false"], {"256"})
    assert decided("gpt-oss-20b") == (["reasoning_effort=low"], {"1024"})


# RAW is one word of the shell, whatever its name.
RAW = "it's, $$HOME; x"
DECIDED = {"FORMAT": "hermes", "TEMPLATE_SETTINGS": "mood='a'", "CHAT_TEMPLATE": "my.jinja"}
OF_THE_TARGET = {"sources", "collect", "generate-eval", "validate", "quality-gates", "merge", "preflight"}


@pytest.fixture
def local(tmp_path):
    """`local(...)`: the steps that Make would run with these variables, after all of them ran with none."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for file in (folder / "tokenizer.json", tmp_path / "my.jinja"):
        file.touch()

    def steps(**variables: str | None) -> list[list[str]]:
        shown = make("--dry-run", "data", *settings(**variables)).stdout.replace("\\\n", " ")
        return [shlex.split(line)[1:] for line in shown.splitlines() if "/cb-datasets " in line]

    def settings(**variables: str | None) -> list[str]:
        fixed = {"RECIPE": "local", "TOKENIZER": folder, "DATA": tmp_path / "data", "RAW": f"{tmp_path}/{RAW}"}
        decided = DECIDED | {"CHAT_TEMPLATE": tmp_path / "my.jinja"}
        return [f"{name}={value}" for name, value in (fixed | decided | variables).items() if value is not None]

    first = steps()
    sources = [words[words.index("--output") + 1] for words in first if words[0] == "ingest"]
    stamps = [f"{tmp_path}/data/decisions.txt", *(f"{source}/flags.txt" for source in sources)]
    assert make(*stamps, *settings()).returncode == 0
    for words in first:
        for report in reports_of(words):
            report.parent.mkdir(parents=True, exist_ok=True)
            report.touch()
    return steps


@pytest.mark.parametrize(
    "other",
    [
        {"FORMAT": "llama3_json"},
        dict.fromkeys(DECIDED),
        {"TEMPLATE_SETTINGS": "mood='b'"},
        {"MODEL": "another/model"},
    ],
)
def test_another_model_or_decision_makes_the_sets_again_and_the_same_does_not(local, tmp_path, other):
    written = (tmp_path / "data" / "decisions.txt").read_text()
    assert written.startswith(f"--model {tmp_path}/tokenizer --tool-format hermes --template-setting mood='a' ")
    assert local() == []
    again = {words[0] for words in local(**other)}
    assert again >= OF_THE_TARGET and "ingest" not in again


def test_an_edited_chat_template_makes_the_sets_again(local, tmp_path):
    os.utime(tmp_path / "my.jinja", (time.time() + 10,) * 2)
    assert {words[0] for words in local()} == {"tokenizer", *OF_THE_TARGET}


def test_another_folder_of_raw_files_or_another_flag_is_ingested(local):
    def ingested(**variables: str | None) -> list[str]:
        return [words[1] for words in local(**variables) if words[0] == "ingest"]

    assert ingested(RAW="elsewhere") == ["agentdojo", "fujitsu_b4", "tau2", "ultrachat", "xstest"]
    assert ingested(INGEST_FLAGS_xstest="--retain") == ["xstest"]
    assert local(RAW=None) == [], "what is there needs no raw files"


def test_an_edited_recipe_runs_the_model_again(tmp_path):
    """Finished runs of the same settings are found again; of others the user hears what to do with them."""
    (tmp_path / "runs").mkdir()
    arguments = [f"{tmp_path}/runs/agentdojo.json", "RECIPE=demo", f"DATA={tmp_path}", "CB=false"]
    recipe = [word for path in (ROOT / "recipes").rglob("*.mk") for word in ("-o", str(path.relative_to(ROOT)))]
    ingested = ["-o", f"{tmp_path}/traces/lookalike/report.json"]
    assert make(f"{tmp_path}/decisions.txt", *arguments[1:]).returncode == 0
    (tmp_path / "runs" / "agentdojo.json").touch()
    made = [*ingested, *arguments]
    assert "false agentdojo" not in make("--dry-run", *recipe, *made).stdout
    assert "false agentdojo" in make("--dry-run", "-W", "recipes/demo.mk", *made).stdout
    assert "false agentdojo" in make("--dry-run", *recipe, *made, "MODEL=another/model").stdout
    (tmp_path / "runs" / "settings.json").touch()
    failed = make("-W", "recipes/demo.mk", *made)
    assert failed.returncode != 0 and f"moved away first: mv {tmp_path}/runs {tmp_path}/runs-old\n" in failed.stderr


def reports_of(words: list[str]) -> list[Path]:
    """The files that tell Make that a step is done."""
    [output] = map(Path, options_of(words, "--output"))
    match words[0]:
        case "generate-eval":
            return [output / task / "report.json" for task in options_of(words, "--tasks")]
        case "merge":
            return [output / "eval" / "report.json"]
        case "sources":
            return [output / "sources.json"]
        case "tokenizer":
            return [output / "tokenizer.json"]
    return [output if output.suffix else output / "report.json"]


def test_a_template_of_our_tokenizers_is_made_first(tmp_path):
    shown = make("--dry-run", "data", "RECIPE=mistral-small", "RAW=raw", f"DATA={tmp_path}").stdout.splitlines()
    template = "--chat-template .tokenizers/mistral-v7/chat_template.jinja"
    [number] = [number for number, line in enumerate(shown) if "/cb-datasets tokenizer" in line and template in line]
    made = (ROOT / ".tokenizers" / "mistral-v7" / "tokenizer.json").is_file()
    assert made or shown[number - 1].endswith("tools/real_tokenizers.py .tokenizers mistral-v7")


def test_a_model_that_does_not_fit_is_split_in_every_step(tmp_path):
    shown = make("--dry-run", "train", "RECIPE=llama-3.3-70b", "RAW=raw", f"DATA={tmp_path}").stdout
    assert "--config_file recipes/accelerate/fsdp2.yaml --num_processes 8" in shown
    assert (ROOT / "recipes" / "accelerate" / "fsdp2.yaml").is_file()
    for target in ("data", "generate-shards", "agentdojo"):
        steps = commands_of("llama-3.3-70b", target, tmp_path)
        engines = [
            words for words in steps if words[0].startswith("generate") or words[0] in ("regenerate", "agentdojo")
        ]
        wanted = [words for words in engines if words[0] != "generate-eval"]
        assert wanted and all(options_of(words, "--tensor-parallel") == ["4"] for words in wanted)


@pytest.mark.parametrize("recipe", ["local", "originals", "recorded"])
def test_recorded_sets_are_written_in_the_format_of_another_tokenizer(recipe, tmp_path):
    """A folder of one's own, which no rule makes."""
    folder = tmp_path / "qwen3"
    folder.mkdir()
    (folder / "tokenizer.json").touch()
    arguments = [f"TOKENIZER={folder}", "FORMAT=hermes", "TEMPLATE_SETTINGS=enable_thinking=false", f"DATA={tmp_path}"]
    shown = make("--dry-run", "data", f"RECIPE={recipe}", "RAW=raw", *arguments).stdout
    decided = "--tool-format hermes --template-setting enable_thinking=false"
    assert f"tokenizer {folder} --output {tmp_path}/tokenizer {decided}" in shown
    assert "real_tokenizers" not in shown and "llama" not in shown
    assert f"collect retain/tau2_traces --traces {tmp_path}/traces --model {tmp_path}/tokenizer" in shown
    assert f"preflight --train-data {tmp_path}/stage2 --model {tmp_path}/tokenizer" in shown
    made = make(
        "--dry-run", "data", f"RECIPE={recipe}", "RAW=raw", f"DATA={tmp_path / 'b'}", "TOKENIZER=.tokenizers/x"
    ).stdout
    assert "real_tokenizers.py .tokenizers x" in made and "collect retain/tau2_traces" in made


def test_an_edited_part_of_a_recipe_redoes_its_data(tmp_path):
    arguments = ["--dry-run", f"{tmp_path}/traces/tau2/report.json", f"DATA={tmp_path}", "RAW=raw"]
    settled = ["-o", "recipes/include/full.mk", "-o", "recipes/llama-3.1-8b.mk"]
    assert make(f"{tmp_path}/traces/tau2/flags.txt", *arguments[2:], "RECIPE=llama-3.1-8b").returncode == 0
    (tmp_path / "traces" / "tau2" / "report.json").touch()
    assert "ingest tau2" not in make(*settled, *arguments, "RECIPE=llama-3.1-8b").stdout
    edited = make("-W", "recipes/include/full.mk", "-o", "recipes/llama-3.1-8b.mk", *arguments, "RECIPE=llama-3.1-8b")
    assert "ingest tau2" in edited.stdout


@pytest.mark.parametrize("recipe", ["demo", "smollm2"])
def test_plain_rerouting_is_shown_beside_the_breaker(recipe, tmp_path):
    shown = make("--dry-run", "evaluate", f"RECIPE={recipe}", f"DATA={tmp_path}").stdout
    assert re.findall(r"--config (\S+)", shown) == [f"recipes/{recipe}.yaml", f"recipes/{recipe}-plain_rr.yaml"]
    alone, words = [words for words in commands_of(recipe, "evaluate", tmp_path) if words[0] == "evaluate"]
    assert alone[alone.index("--adapter") + 1] == f"{tmp_path}/adapters/plain_rr" and "--also" not in alone
    assert alone[alone.index("--output") + 1] == f"{tmp_path}/adapters/plain_rr/report"
    assert words[words.index("--adapter") + 1] == f"{tmp_path}/adapter"
    assert words[words.index("--also") + 1] == f"plain_rr={tmp_path}/adapters/plain_rr"


@pytest.mark.parametrize(("recipe", "num_files"), [("demo", 5 + 3), ("smollm2", 5 + 3)])
def test_the_folder_of_a_redirected_table_or_stamp_is_made_first(recipe, num_files, tmp_path):
    shown = make("--dry-run", "evaluate", f"RECIPE={recipe}", f"DATA={tmp_path}").stdout.replace("\\\n", " ")
    made: set[str] = set()
    files = 0
    for line in shown.splitlines():
        made.update(re.findall(r"mkdir -p (\S+)", line))
        for file in re.findall(r" > (\S+)", line):
            assert str(Path(file).parent) in made, line
            files += 1
    assert files == num_files


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


@pytest.mark.parametrize("recipe", ["demo", "smollm2"])
def test_small_models_run_without_vllm_where_it_is_installed(recipe, tmp_path):
    """By default AgentDojo's runs take it, and it has no attention for heads of 24 dimensions."""
    commands = [words for words in commands_of(recipe, "evaluate", tmp_path) if words[0] == "agentdojo"]
    assert [options_of(words, "--backend") for words in commands] == [["transformers"]] * 2


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
    assert " 'o/n' " in make("--dry-run", target, f"DATA={tmp_path}", "REPO=o/n").stdout


@pytest.mark.parametrize("recipe", ["local", "recorded", "originals", "llama-3.1-8b", "yardsticks"])
def test_a_folder_of_raw_files_is_one_word_whatever_its_name(recipe, tmp_path):
    raw = tmp_path / "my raw's $HOME; touch x"
    for name in ("agentdojo", "xstest"):
        (raw / name).mkdir(parents=True)
    settings = (
        f"RECIPE={recipe}",
        f"DATA={tmp_path / 'data'}",
        f"RAW={str(raw).replace('$', '$$')}",
        "MODEL=m",
        "ADAPTER=a",
    )
    shown = make("--dry-run", "traces", *settings).stdout
    [words] = [shlex.split(line) for line in shown.splitlines() if " ingest agentdojo " in line]
    assert words[words.index("--data-dir") + 1] == f"{raw}/agentdojo"


@pytest.mark.parametrize("resume", ["", "true", "false"])
def test_training_starts_or_resumes(resume, tmp_path):
    shown = make("--dry-run", "train", "RECIPE=demo", f"DATA={tmp_path}", f"RESUME={resume}").stdout.replace(
        "\\\n", " "
    )
    [line] = [line for line in shown.splitlines() if f"--output_dir {tmp_path}/adapter " in line]
    assert line.startswith(f"rm -rf {tmp_path}/adapter/checkpoint-* && ") == (resume == "false")
    flags = shlex.split(line)
    values = [
        flags[flags.index(flag) + 1] for flag in ("--save_strategy", "--resume_from_checkpoint") if flag in flags
    ]
    assert values == (["steps", resume] if resume else [])


@pytest.mark.parametrize("target", ["push", "push-model", "cards"])
def test_a_repository_is_one_word_whatever_its_name(target, tmp_path):
    shown = make("--dry-run", target, f"DATA={tmp_path}", "REPO=o/n; touch 'x'").stdout
    [words] = [shlex.split(line) for line in shown.splitlines() if re.search(r"cb-datasets push(-model)? ", line)]
    assert words[2] == "o/n; touch 'x'"


@pytest.mark.parametrize("target", ["train", "evaluate", "attack"])
def test_a_recipe_without_training_says_so(target, tmp_path):
    shown = make("--dry-run", target, "RECIPE=local", "RAW=raw", f"DATA={tmp_path}")
    assert shown.returncode != 0 and not shown.stdout
    assert f"make {target}: the recipe local has no training" in shown.stderr


@pytest.mark.parametrize("recipe", ["demo", "local"])
def test_a_breaker_from_elsewhere_is_measured_without_training(recipe, tmp_path):
    settings = ["--dry-run", f"RECIPE={recipe}", "RAW=raw", f"DATA={tmp_path}", "ADAPTER=owner/breaker"]
    shown = make("evaluate", *settings).stdout.replace("\\\n", " ")
    [command] = re.findall(r"cb-datasets (evaluate .*?) > ", shown)
    words = shlex.split(command)
    assert words[words.index("--adapter") + 1] == "owner/breaker" and not {"--also", "--curves"} & {*words}
    assert "trainers" not in shown and "merge" not in shown and "cb-datasets report" in shown
    assert "--adapter owner/breaker" in make("attack", *settings).stdout


def yardstick_commands(tmp_path, *names, **environment):
    """What the recipe `yardsticks` runs with these sources on disk: the commands by name, as lists of words."""
    for name in names:
        (tmp_path / "raw" / name).mkdir(parents=True)
    subject = ["MODEL=owner/model", "ADAPTER=owner/breaker", f"RAW={tmp_path}/raw", f"DATA={tmp_path}"]
    shown = make("--dry-run", "evaluate", "RECIPE=yardsticks", *subject, **environment)
    assert shown.returncode == 0, shown.stderr
    found = re.findall(r"cb-datasets (.*?)(?: > .*)?$", shown.stdout.replace("\\\n", " "), re.MULTILINE)
    commands = {}
    for words in map(shlex.split, found):
        commands.setdefault(words[0], []).append(words)
    group = typer.main.get_command(app)
    for words in found:
        name, *arguments = shlex.split(words)
        group.commands[name].make_context(name, arguments)
    return commands


def test_yardsticks_ask_a_given_breaker_everything_on_hand(tmp_path, any_path):
    commands = yardstick_commands(tmp_path, "injecagent", "agentdyn", HF_HUB_OFFLINE="1")
    folders = {Path(*options_of(words, "--output")).name: words for words in commands["ingest"]}
    assert set(folders) == {"lookalike", "bfcl", "injecagent", "agentdyn"}
    assert folders["agentdyn"][1] == "agentdojo"
    assert options_of(folders["agentdyn"], "--data-dir") == [f"{tmp_path}/raw/agentdyn"]
    assert options_of(folders["injecagent"], "--data-dir") == [f"{tmp_path}/raw/injecagent"]
    assert not {"collect", "generate-ds", "generate-dr", "merge", "preflight", "ability"} & set(commands)
    [evaluated], [merged] = commands["evaluate"], commands["merge-adapter"]
    assert options_of(evaluated, "--scale") == ["0.5", "0.75", "1.25"]
    assert all(options_of(words, "--adapter") == ["owner/breaker"] for words in (evaluated, merged))


def test_yardsticks_fetch_what_is_published(tmp_path, any_path):
    commands = yardstick_commands(tmp_path, "xstest", HF_HUB_OFFLINE="0")
    folders = {Path(*options_of(words, "--output")).name: words for words in commands["ingest"]}
    assert {"injecagent", "llmail", "ultrachat", "xstest"} <= set(folders) and "agentdojo" not in folders
    assert options_of(folders["xstest"], "--data-dir") and not options_of(folders["llmail"], "--data-dir")
    [ability] = commands["ability"]
    assert options_of(ability, "--data") == [f"{tmp_path}/traces/ultrachat"]


def test_yardsticks_without_a_model_or_a_breaker_say_so(tmp_path):
    shown = make("--dry-run", "evaluate", "RECIPE=yardsticks", f"DATA={tmp_path}", "ADAPTER=a")
    assert shown.returncode != 0 and "MODEL is not set" in shown.stderr
    shown = make("--dry-run", "evaluate", "RECIPE=yardsticks", f"DATA={tmp_path}", "MODEL=m")
    assert shown.returncode != 0 and "make evaluate RECIPE=yardsticks ADAPTER=path" in shown.stderr


def test_another_breaker_is_another_report(tmp_path):
    subject = f"{tmp_path}/report/subject.txt"
    times = set()
    for adapter in ("a", "a", "b"):
        assert make(subject, f"DATA={tmp_path}", f"ADAPTER={adapter}").returncode == 0
        times.add(Path(subject).stat().st_mtime_ns)
    assert len(times) == 2 and Path(subject).read_text(encoding="utf-8") == "demo/tiny_agent --adapter b\n"


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
