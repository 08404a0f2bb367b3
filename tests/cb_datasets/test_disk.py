"""Full and read-only disks, and killed commands: one line, exit status 1, and nothing half-written taken for whole."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from datasets.exceptions import DatasetGenerationError

from cb_datasets.disk_faults import disk_fault, error_line
from cb_datasets.evaluation.results import write_results
from cb_datasets.files import (
    filling,
    in_one_move,
    read_json,
    scratch_folder,
    write_json,
)
from tests.small_disk import ROOT, run_in_namespace

from .fake_results import small_results


COMMANDS = {
    "ingest": "ingest lookalike --n-samples 20 --output {disk}/traces",
    "validate": "validate {data}/harmful {data}/retain --quarantine {disk}/quarantine --report {disk}/report.json",
    "quality-gates": "quality-gates {data}/harmful {data}/retain --min-adversarial-safe 1 --min-categories 1 "
    "--max-category-share 1 --max-family-share 1 --max-injection-task-share 1 --max-goal-share 1 --min-retain-tools 1 "
    "--report {disk}/gates.json",
    "merge": "merge {data}/harmful {data}/retain --prompts {data}/prompts --output {disk}/stage2 --min-dr-ratio 1 "
    "--min-adversarial-safe 1",
    "preflight": "preflight --train-data {data}/stage2 --model {model} --report {disk}/preflight.json",
    "export": "export {data}/stage2/train --output {disk}/train.jsonl",
    "import": "import {data}/train.jsonl --output {disk}/imported",
    "push": "push someone/breakers --data {data} --output {disk}/release --dry-run",
    "report": "report {data}/results.json --output {disk}/report",
}


@pytest.fixture(scope="module")
def data(release_data: Path, tmp_path_factory) -> Path:
    from .release_data import run

    folder = tmp_path_factory.mktemp("disk") / "data"
    subprocess.run(["cp", "-r", str(release_data), str(folder)], check=True)
    run("export", folder / "stage2" / "train", "--output", folder / "train.jsonl")
    write_results(small_results("base+1234"), folder / "results.json")
    return folder


@pytest.fixture(scope="module")
def on_disk(data, tiny_agent_path, tmp_path_factory) -> dict[str, dict]:
    """What came of each command in each state of the disk."""
    disk = tmp_path_factory.mktemp("mounted")
    traces = disk.parent / f"{disk.name}_traces"
    commands = {
        name: text.format(disk=disk, data=data, model=tiny_agent_path).split() for name, text in COMMANDS.items()
    }
    start = ('exec "$@"', sys.executable, "-m", "tests.cb_datasets.full_disk", disk)
    result = run_in_namespace(*start, json.dumps(commands), 0)
    # Room enough for `datasets` to begin.
    cached = {"cache": f"ingest lookalike --n-samples 1500 --output {traces}".split()}
    cache = run_in_namespace(*start, json.dumps(cached), 32 * 1024, HF_DATASETS_CACHE=str(disk))
    assert result.returncode == cache.returncode == 0, result.stderr + cache.stderr
    assert read_json(traces / "report.json")["records"] > 0
    return json.loads(result.stdout) | json.loads(cache.stdout)


@pytest.mark.parametrize("name", [*COMMANDS, "cache"])
def test_a_full_or_read_only_disk_ends_a_command_in_one_line(name, on_disk):
    states = on_disk[name]
    for state, reason in (("full", "No space left on device"), ("read-only", "Read-only file system")):
        found = states[state]
        errors = [line for line in found["errors"].splitlines() if line.startswith("error: ")]
        assert found["status"] == 1 and "Traceback" not in found["errors"], found["errors"]
        assert len(errors) == 1 and reason in errors[0] and errors[0].endswith("and run the same command again.")
        assert not [file for file in found["files"] if not file.endswith(".lock")], "nothing half-written is left"
    assert states["free"]["status"] == 0, states["free"]["errors"]
    assert not [file for file in states["free"]["files"] if Path(file).name.startswith(".")]


def test_output_that_cannot_be_written_is_an_error():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cb_datasets.cli", "ingest", "lookalike", "--output", "x", "--dry-run"]
        result = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and "error: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr


def test_what_a_killed_merge_left_is_removed_by_the_next(data, tmp_path):
    words = COMMANDS["merge"].format(disk=tmp_path, data=data).split()
    script = f"""
        import os, signal
        from cb_datasets.merge import write
        write._sorted_tables = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        from cb_datasets.cli import app
        app({words!r})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "stage2" / "train").iterdir()]
    assert len(left) == 2 and any(name.startswith(".merge-") for name in left), left
    assert not (tmp_path / "stage2" / "train" / "data.parquet").exists()
    again = subprocess.run([sys.executable, "-m", "cb_datasets.cli", *words], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for split in ("train", "eval"):
        assert sorted(path.name for path in (tmp_path / "stage2" / split).iterdir()) == ["data.parquet", "report.json"]


# ----------------------------------------------------------------------------------------------------------- the parts


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_dead_processes_left_is_removed(tmp_path, dead_pid):
    here = socket.gethostname()
    gone = [f".a.json.{dead_pid}@{here}.tmp", f"..b.1@x.tmp.{dead_pid}@{here}.tmp", f".a.{os.getpid()}@{here}.tmp"]
    stays = [f".a.json.{os.getppid()}@{here}.tmp", f".a.json.{dead_pid}@elsewhere.tmp", ".mine.tmp", "b.tmp", "a.json"]
    for name in (*gone, *stays):
        (tmp_path / name).write_text("half")
    scratch = tmp_path / f".merge-{dead_pid}@{here}.tmp"
    (scratch / "inside").mkdir(parents=True)
    write_json(tmp_path / "c.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stays, "c.json"])
    # Later writes of this process leave the others' files, and its own unfinished ones, alone.
    with in_one_move(tmp_path / "d.json") as unfinished:
        unfinished.write_text("{}")
        write_json(tmp_path / "e.json", {})
        assert unfinished.exists()


def test_a_scratch_folder_is_empty_and_goes(tmp_path):
    with pytest.raises(KeyError), scratch_folder(tmp_path, "merge") as scratch:
        assert list(scratch.iterdir()) == []
        (scratch / "a").write_text("b")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_filled_at_once_and_weights_last(tmp_path, monkeypatch):
    for name in ("config.json", "adapter.safetensors", "sub/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError), filling(tmp_path) as unfinished:
        (unfinished / "config.json").write_text("new")
        raise OSError(errno.ENOSPC, "full")
    assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {"old"}
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: moved.append(target.name) or replace(path, target))
    with filling(tmp_path) as unfinished:
        for name in ("adapter.safetensors", "config.json", "sub/b.json"):
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text("new")
    assert moved == ["config.json", "sub", "adapter.safetensors"]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        *("adapter.safetensors", "config.json", "sub/b.json"),
    ]


def test_old_weights_are_gone_before_a_new_config_appears(tmp_path, monkeypatch):
    for name in ("config.json", "adapter.safetensors"):
        (tmp_path / name).write_text("old")

    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), filling(tmp_path) as unfinished:
        for name in ("config.json", "adapter.safetensors"):
            (unfinished / name).write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_fault_of_the_disk_is_found_where_libraries_hide_it():
    full = OSError(errno.ENOSPC, "write failed", "/disk/a.parquet")
    assert disk_fault(full).startswith("No space left on device (/disk/a.parquet). Free space")
    wrapped = DatasetGenerationError("An error occurred while generating the dataset")
    wrapped.__cause__ = full
    assert "No space left on device (/disk/a.parquet)" in error_line(wrapped)
    in_text = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "os error 28" in error_line(in_text) and "Free space" in error_line(in_text)
    torch = RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/3")
    assert "PytorchStreamWriter failed" in error_line(torch)
    assert error_line(ValueError("wrong")) == "wrong" and "Free space" not in error_line(FileNotFoundError("no file"))
    assert error_line(RuntimeError("shapes differ")) is None and error_line(KeyError("x")) is None
