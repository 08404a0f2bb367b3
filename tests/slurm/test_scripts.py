"""The job scripts by themselves: what can be said of them where there is no Slurm."""

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SLURM = ROOT / "slurm"
STEPS = ["generate", "merge", "preflight", "train", "evaluate"]
SCRIPTS = sorted([*SLURM.iterdir(), ROOT / "tools" / "slurm_cluster.sh"])


def pipeline(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([SLURM / "pipeline.sh", *arguments], capture_output=True, text=True)


def submitted(*arguments: str) -> dict[str, list[str]]:
    """The `sbatch` command of each step, as `--dry-run` prints it."""
    lines = pipeline("--dry-run", *arguments).stdout.splitlines()
    commands = [shlex.split(line) for line in lines]
    return {Path(script_of(words)).stem: words for words in commands if words[0] == "sbatch"}


def script_of(words: list[str]) -> str:
    [script] = [word for word in words if word.endswith(".sbatch")]
    return script


def option(words: list[str], name: str) -> str | None:
    values = [word.removeprefix(f"--{name}=") for word in words if word.startswith(f"--{name}=")]
    return values[-1] if values else None


def settings() -> dict[str, str]:
    """Each setting of site.sh with the line before it."""
    lines = (SLURM / "site.sh").read_text().splitlines()
    found = [(re.match(r"(?:export )?([A-Z_]+)=", line), above) for above, line in pairwise(lines)]
    return {match[1]: above for match, above in found if match}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_every_step_is_a_make_target_with_a_job_of_its_own():
    assert sorted(path.stem for path in SLURM.glob("*.sbatch")) == sorted(STEPS)
    makefile = (ROOT / "mk" / "pipeline.mk").read_text()
    for step in STEPS:
        [target] = re.findall(r"^run_step (\S+)", (SLURM / f"{step}.sbatch").read_text(), re.MULTILINE)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(("restarts", "resume"), [(None, "false"), ("0", "false"), ("2", "true")])
def test_a_requeued_training_resumes(restarts, resume, tmp_path):
    """With a stand-in for `run_step`, which prints its arguments."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "step.sh").write_text('run_step() { echo "$@"; }\n')
    environment = {} if restarts is None else {"SLURM_RESTART_COUNT": restarts}
    words = ["bash", SLURM / "train.sbatch", "RECIPE=demo"]
    shown = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["train", f"RESUME={resume}", "RECIPE=demo"]


def test_all_jobs_have_the_same_directives():
    directives = {
        tuple(re.findall(r"^#SBATCH (.+)", path.read_text(), re.MULTILINE)) for path in SLURM.glob("*.sbatch")
    }
    assert directives == {
        ("--nodes=1", "--ntasks=1", "--requeue", "--open-mode=append", "--signal=B:USR1@120"),
    }


def test_each_step_waits_for_the_one_before():
    commands = submitted("RECIPE=demo")
    assert list(commands) == STEPS
    assert option(commands["generate"], "dependency") is None
    for before, step in pairwise(STEPS):
        assert option(commands[step], "dependency") == f"afterok:{before.upper()}_JOB"
        assert option(commands[step], "kill-on-invalid-dep") == "yes"


def test_only_the_generating_is_an_array():
    arrays = {step: option(words, "array") for step, words in submitted("RECIPE=demo").items()}
    assert re.fullmatch(r"0-\d+%\d+", arrays.pop("generate"))
    assert set(arrays.values()) == {None}


def test_sources_are_read_before_anything_is_submitted():
    first = shlex.split(pipeline("--dry-run", "RECIPE=demo").stdout.splitlines()[0])
    assert first[0] == "make" and {"traces", "RECIPE=demo"} <= set(first)


def test_make_variables_reach_every_job_unharmed():
    variables = ["RECIPE=demo", "DS_FLAGS=--max-prompts 5 --seed 1"]
    for words in submitted(*variables).values():
        assert words[-2:] == variables


def test_job_names_tell_recipes_apart():
    for step, words in submitted("RECIPE=demo").items():
        assert option(words, "job-name") == f"cb-demo-{step}"


def test_a_dry_run_runs_nothing(tmp_path):
    arguments = ["RECIPE=demo", f"DATA={tmp_path / 'data'}"]
    subprocess.run(
        [SLURM / "pipeline.sh", "--dry-run", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_may_be_asked_for_behind_the_variables():
    variables = ["RECIPE=demo", "DS_FLAGS=--max-prompts 5"]
    first = pipeline("--dry-run", *variables)
    for arguments in ([*variables, "--dry-run"], [variables[0], "--dry-run", variables[1]]):
        done = pipeline(*arguments)
        assert done.returncode == 0 and done.stdout == first.stdout != ""


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["RECIPE=demo", "--help"]])
def test_help_is_the_usage(arguments):
    done = pipeline(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: slurm/pipeline.sh [--dry-run] RECIPE=name") and done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no recipe is named"),
        (["--dryrun", "RECIPE=demo"], "--dryrun is no VARIABLE=value"),
        (["--dry-run"], "no recipe is named"),
        (["demo"], "demo is no VARIABLE=value"),
        (["RECIPE=nowhere"], "there is no recipes/nowhere.mk"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message):
    done = pipeline(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_every_setting_of_the_site_is_used_and_explained():
    used = "".join(path.read_text() for path in SCRIPTS if path.name != "site.sh")
    names = settings()
    assert {"PARTITION", "ACCOUNT", "GPUS", "VENV", "MODULES"} <= set(names)
    for name, above in names.items():
        # The cache is for the library to read.
        assert name == "HF_HOME" or re.search(rf"\$\{{?#?{name}\b", used), name
        assert above.startswith("#") or above.split("=")[0] in names, name


def test_no_script_knows_a_place_on_a_disk():
    for path in SLURM.iterdir():
        text = path.read_text().replace("#!/usr/bin/env bash", "").replace("/dev/null", "")
        assert re.findall(r"(?<![\w.}*])/\w+", text) == [], path.name
