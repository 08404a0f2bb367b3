"""The pipeline on a real Slurm: one story, in which a task is killed, another runs out of time, and a gate fails.

The story is expensive, so it is told once: each fixture is a submission that builds on the one before, and the tests
look at what it left behind.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cb_datasets.files import load_rows, read_json


pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TASKS = 4
SITE = f"""
GPUS=
TRAIN_GPUS=
CPUS=1
MEMORY=500M
ARRAY_SIZE={TASKS}
ARRAY_RUNNING={TASKS}
"""
SETS = ["harmful/lookalike_flips", "retain/lookalike_benign_twins", "retain/refusals"]
LOWER_GATE = "GATE_FLAGS=--min-adversarial-safe 0 --min-retain-classes 2"
# Machines with few cores may be busy.
PATIENCE = 300


@dataclass
class Checkout:
    """A copy of the repository, whose jobs go to the test's Slurm."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, *variables: str) -> dict[str, str]:
        """Ids of the jobs, by step."""
        printed = self.run("slurm/pipeline.sh", "RECIPE=few", *variables)
        return dict(line.split(": job ") for line in printed.splitlines() if ": job " in line)

    def states(self, job: str) -> list[str]:
        """State of a job, or of each task of an array."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job)
        return [line.split("JobState=")[1].split()[0] for line in shown.splitlines()]

    def is_idle(self) -> bool:
        return self.run("squeue", "--noheader") == ""

    def wait_until_idle(self) -> None:
        wait_for(self.is_idle, "the queue to be empty")

    def wait_while_busy(self, condition: Callable[[], object], what: str) -> None:
        wait_for(lambda: condition() or self.is_idle(), what)
        assert condition(), f"the jobs have ended without {what}; logs:\n{self.log('')}"

    def log(self, job: str) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "data/slurm").glob(f"*-{job}*.log")))

    def running_model(self, task: str) -> psutil.Process:
        """The process with which an array task runs the model."""
        wanted = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURM_ARRAY_TASK_ID": task}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "--rank" in process.cmdline() and wanted.items() <= process.environ().items():
                    return process
        raise AssertionError(f"task {task} runs no model")

    def shards(self, number: str = "*") -> dict[Path, int]:
        """When each finished shard, or each of that number, was written."""
        paths = self.folder.glob(f"data/few/completions/*/shard-{number}-of-*.parquet")
        return {path: path.stat().st_mtime_ns for path in paths}


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """The configuration file of a Slurm that runs."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("no Slurm here: `make test-slurm` installs it")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([ROOT / "tools" / "slurm_cluster.sh", "start", folder], check=True)
        yield folder / "slurm.conf"
    finally:
        subprocess.run([ROOT / "tools" / "slurm_cluster.sh", "stop", folder], check=True)


@pytest.fixture(scope="module")
def checkout(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("builders", "cb_datasets", "demo", "mk", "recipes", "slurm", "trainers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
        # Older than the environment, which is not to be installed again.
        os.utime(folder / name, (0, 0))
    (folder / ".venv").symlink_to(ROOT / ".venv")
    write_recipe(folder)
    with open(folder / "slurm" / "site.sh", "a") as site:
        site.write(SITE)
    pinned = {"SLURM_CONF": str(cluster), "PYTHONPATH": str(folder), "SOURCE_DATE_EPOCH": "0"}
    return Checkout(folder, os.environ | pinned)


def write_recipe(folder: Path) -> None:
    """recipes/few: the demo with few prompts and a training of two steps."""
    shutil.copy(HERE / "few.mk", folder / "recipes")
    demo = (folder / "recipes" / "demo-plain_rr.yaml").read_text()
    few = re.sub(r"max_steps: \d+", "max_steps: 2", demo.replace("data/demo/", "data/few/"))
    (folder / "recipes" / "few.yaml").write_text(few)


@pytest.fixture(scope="module")
def killed(checkout: Checkout) -> tuple[dict[str, str], dict[Path, int]]:
    """First submission: as soon as task 1 has finished a shard, what runs the model there dies. Jobs and shards."""
    jobs = checkout.submit()
    checkout.wait_while_busy(lambda: checkout.shards("00001"), "a shard of task 1")
    checkout.running_model(task="1").kill()
    checkout.wait_until_idle()
    return jobs, checkout.shards()


@pytest.fixture(scope="module")
def resubmitted(checkout: Checkout, killed) -> dict[str, str]:
    """Second submission: task 1 is told that its time is up, and then the recipe's gate fails."""
    jobs = checkout.submit()
    checkout.wait_while_busy(lambda: len(checkout.shards("00001")) > 1, "another shard of task 1")
    checkout.run("scancel", "--batch", "--signal=USR1", f"{jobs['generate']}_1")
    checkout.wait_until_idle()
    return jobs


@pytest.fixture(scope="module")
def finished(checkout: Checkout, resubmitted) -> dict[str, str]:
    """Third submission, with the gate lowered; to see that all shards are there, one task is enough."""
    with open(checkout.folder / "slurm" / "site.sh", "a") as site:
        site.write("ARRAY_SIZE=1\n")
    jobs = checkout.submit(LOWER_GATE)
    checkout.wait_until_idle()
    return jobs


def test_a_killed_task_cancels_what_depends_on_it(checkout, killed):
    jobs, _ = killed
    assert sorted(checkout.states(jobs["generate"])) == ["COMPLETED"] * (TASKS - 1) + ["FAILED"]
    assert [checkout.states(jobs[step]) for step in ("merge", "preflight", "train", "evaluate")] == [["CANCELLED"]] * 4


def test_a_killed_task_leaves_only_its_own_shards_undone(killed):
    _, shards = killed
    done = {(path.parent, *map(int, re.findall(r"\d+", path.name))) for path in shards}
    asked = {(folder, number, count) for folder, _, count in done for number in range(count)}
    assert {number % TASKS for _, number, _ in asked - done} == {1}


def test_resubmitting_does_only_what_is_missing(checkout, killed, resubmitted):
    _, before = killed
    after = checkout.shards()
    assert len(after) > len(before) > 0
    assert {path: after[path] for path in before} == before


def test_a_task_that_runs_out_of_time_requeues_itself(checkout, resubmitted):
    assert checkout.states(resubmitted["generate"]) == ["COMPLETED"] * TASKS
    log = checkout.log(f"{resubmitted['generate']}_1")
    assert "time is up; requeued" in log and "restart 1:" in log


def test_four_tasks_make_the_rows_that_one_process_makes(checkout, resubmitted):
    checkout.run("make", "--no-print-directory", "-j2", "RECIPE=few", "DATA=data/one", "harmful", "retain")
    for subset in SETS:
        ours, theirs = (load_rows(checkout.folder / "data" / run / subset) for run in ("few", "one"))
        assert len(ours) > 0
        assert ours.features == theirs.features and ours.to_list() == theirs.to_list(), subset


def test_a_failed_gate_cancels_what_depends_on_it(checkout, resubmitted):
    assert checkout.states(resubmitted["merge"]) == ["FAILED"]
    assert "quality-gates: a gate failed" in checkout.log(resubmitted["merge"])
    later = [checkout.states(resubmitted[step]) for step in ("preflight", "train", "evaluate")]
    assert later == [["CANCELLED"]] * 3


def test_once_the_gates_pass_the_pipeline_runs_to_its_report(checkout, finished):
    states = {step: set(checkout.states(job)) for step, job in finished.items()}
    assert states == {step: {"COMPLETED"} for step in finished}
    assert read_json(checkout.folder / "data/few/report/results.json")
    assert "ASR" in checkout.log(finished["evaluate"])


def test_a_second_submission_is_refused_while_jobs_are_in_the_queue(checkout):
    held = checkout.run("sbatch", "--parsable", "--hold", "--job-name=cb-few-train", "--wrap=true").strip()
    done = subprocess.run(
        ["slurm/pipeline.sh", "RECIPE=few"],
        cwd=checkout.folder,
        env=checkout.environment,
        capture_output=True,
        text=True,
    )
    checkout.run("scancel", held)
    assert done.returncode == 1 and f"stop them with: scancel {held}" in done.stderr


def test_a_cancelled_job_stays_cancelled(checkout):
    job = start_sleeping(checkout)
    checkout.run("scancel", job)
    checkout.wait_until_idle()
    assert checkout.states(job) == ["CANCELLED"]


def test_a_job_that_may_not_requeue_itself_ends_with_a_code_of_its_own(checkout):
    job = start_sleeping(checkout, "REQUEUES=0")
    checkout.run("scancel", "--batch", "--signal=USR1", job)
    checkout.wait_until_idle()
    assert checkout.states(job) == ["FAILED"]
    assert "ExitCode=75:0" in checkout.run("scontrol", "show", "job", job)


def start_sleeping(checkout: Checkout, setting: str = "") -> str:
    """A running job that would sleep; its id."""
    asleep = checkout.folder / "asleep"
    asleep.unlink(missing_ok=True)
    (checkout.folder / "sleeping.mk").write_text(f"sleep:\n\ttouch {asleep}; sleep 100\n")
    script = checkout.folder / "sleeping.sbatch"
    script.write_text(f"#!/usr/bin/env bash\nsource slurm/step.sh\n{setting}\nrun_step -f sleeping.mk\n")
    job = checkout.run("sbatch", "--parsable", script.name).strip()
    checkout.wait_while_busy(asleep.exists, "the job to sleep")
    return job
