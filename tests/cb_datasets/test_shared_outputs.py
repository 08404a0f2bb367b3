"""Outputs that two processes write, links as outputs, and signals: one rule each."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from cb_datasets import files
from cb_datasets.file_locks import locked
from cb_datasets.files import (
    REPORT_FILE,
    load_rows,
    read_json,
    save_rows,
    save_set,
    to_dataset,
    write_json,
    write_text,
)
from cb_datasets.publish.folder import DATASET_RELEASE, MANIFEST, replacing_folder
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.stop_signals import stop_signals
from tests.small_disk import ROOT


@pytest.mark.parametrize("save", [save_rows, save_set])
def test_a_set_is_written_by_one_process_at_a_time(save, release_data, tmp_path, monkeypatch):
    rows, seen = load_rows(release_data / "stage2" / "train"), []

    def write(path, value):
        refused = pytest.raises(BlockingIOError, match=f"^Another process is writing to {tmp_path}: wait")
        with refused, locked(tmp_path / REPORT_FILE, wait=False):
            pass
        seen.append(write_json(path, value))

    monkeypatch.setattr(files, "write_json", write)
    save(to_dataset(list(rows)[:4], SAMPLE_FEATURES), tmp_path, {})
    assert len(seen) == 1 and not list(tmp_path.glob(".*"))


def test_a_lock_goes_with_its_process(tmp_path):
    script = f"""
        import os, signal
        from pathlib import Path
        from cb_datasets.file_locks import locked
        with locked(Path({str(tmp_path / "a")!r})):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and os.listdir(tmp_path) == [".a.lock"]
    with locked(tmp_path / "a", wait=False):
        pass
    assert os.listdir(tmp_path) == []


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.json", "release"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / name)
    write_json(tmp_path / "a.json", {"n": 1})
    for number in (1, 2):
        with replacing_folder(tmp_path / "release", "test") as folder:
            write_json(folder / MANIFEST, {"kind": "test", "n": number})
    assert (tmp_path / "a.json").is_symlink() and (tmp_path / "release").is_symlink()
    assert read_json(tmp_path / "elsewhere" / "a.json") == {"n": 1}
    assert read_json(tmp_path / "elsewhere" / "release" / MANIFEST) == {"kind": "test", "n": 2}
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["a.json", "release"]


FOREIGN = {
    "shards": {"manifest.json": '{"settings": {}, "shards": {}}', "shard-00000-of-00001.parquet": "rows"},
    "another kind": {"manifest.json": '{"kind": "release of a source"}'},
    "no JSON": {"manifest.json": "not JSON"},
    "a list": {"manifest.json": "[]"},
    "no manifest": {"thesis.txt": "mine"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_another_kind_is_not_replaced(name, tmp_path):
    output = tmp_path / "runs"
    for file, text in FOREIGN[name].items():
        write_text(output / file, text)
    with pytest.raises(FileExistsError, match=f"^{output} exists and is no release of a dataset .* name another"):
        check_then_fill(output)
    assert {path.name: path.read_text() for path in output.iterdir()} == FOREIGN[name]


def check_then_fill(output):
    with replacing_folder(output, DATASET_RELEASE):
        raise AssertionError("reached")


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis exists"):
        check_then_fill(tmp_path / "thesis")
    assert (tmp_path / "thesis").read_text() == "mine"


def test_only_leftovers_of_our_own_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_cleaned", set())
    dead = subprocess.Popen(["true"])
    dead.wait()
    ours = tmp_path / f".release-{dead.pid}@{socket.gethostname()}.tmp"
    for folder in (ours, tmp_path / ".release.tmp"):
        write_text(folder / "a.txt", "text")
    with replacing_folder(tmp_path / "release", "test") as folder:
        write_json(folder / MANIFEST, {"kind": "test"})
    assert sorted(os.listdir(tmp_path)) == [".release.tmp", "release"]
    assert (tmp_path / ".release.tmp" / "a.txt").read_text() == "text"


@pytest.mark.parametrize(
    ("save", "name"),
    [(save_rows, "train.parquet"), (save_set, "data.parquet")],
)
def test_rows_of_somebody_else_are_not_removed(save, name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"^{tmp_path} holds {name} and no report.json, .* name another folder"):
        save(to_dataset([], SAMPLE_FEATURES), tmp_path, {})
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"
    (tmp_path / "report.json").write_text("{}")  # now it is a set in its former layout
    save(to_dataset([], SAMPLE_FEATURES), tmp_path, {})
    assert not (tmp_path / name).exists()


# ------------------------------------------------------------------------------------------------------------- signals

# A generation that gets a signal while its second shard is half written.
GENERATION = """
import os, sys
from pathlib import Path
import pyarrow.parquet
from cb_datasets import cli
from cb_datasets.files import load_rows
from cb_datasets.generation import Sampling, complete
from tests.cb_datasets.crash_helpers import FakeBackend, shards_in

prompts, work = load_rows(Path(sys.argv[1])).select(range(3)), Path(sys.argv[2])
write = pyarrow.parquet.write_table

def write_half(table, path, **options):
    write(table, path, **options)
    if shards_in(work):
        os.kill(os.getpid(), int(sys.argv[3]))

pyarrow.parquet.write_table = write_half
cli.app = lambda: complete(prompts, FakeBackend(), Sampling(max_new_tokens=8), work, shard_size=1)
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_generation_and_nothing_half_written_stays(number, release_data, tmp_path):
    prompts = release_data / "prompts" / "tool_flip"
    command = [sys.executable, "-c", GENERATION, str(prompts), str(tmp_path), str(int(number))]
    stopped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert stopped.returncode == 128 + number and "Traceback" not in stopped.stderr, stopped.stderr
    assert stopped.stderr.endswith(f"stopped by {number.name}: run the same command again to go on\n")
    [folder] = tmp_path.iterdir()
    assert sorted(os.listdir(folder)) == ["manifest.json", "shard-00000-of-00003.parquet"]


def test_signals_stop_view(release_data, tmp_path):
    arguments = ["view", str(release_data / "stage2" / "train"), "--port", "0", "--marks", str(tmp_path / "m.parquet")]
    start = 'trap "" HUP; exec "$@"'  # as `nohup` does
    command = [sys.executable, "-m", "cb_datasets.cli", *arguments]
    views = [
        subprocess.Popen(each, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in (command, command, ["sh", "-c", start, "sh", *command])
    ]
    assert all(view.stdout.readline().startswith("view: ") for view in views)
    for view, number in zip(views, (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP), strict=True):
        view.send_signal(number)
    for view, number in zip(views, (signal.SIGTERM, signal.SIGHUP), strict=False):
        _, errors = view.communicate(timeout=60)
        assert view.returncode == 128 + number and f"stopped by {number.name}" in errors
        assert "Traceback" not in errors
    assert views[2].poll() is None, "a signal that the caller ignores stays ignored"
    views[2].send_signal(signal.SIGTERM)
    assert views[2].wait(timeout=60) == 128 + signal.SIGTERM


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
