"""Shards survive whatever kills, fills or interrupts a run, and never mix; with a model that costs nothing."""

import dataclasses
import errno
import functools
import importlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from datasets import Dataset

from builders.trace import message
from cb_datasets.files import read_json, to_dataset, write_json
from cb_datasets.generation import Sampling, complete
from cb_datasets.generation.shard import COMPLETION_FEATURES
from cb_datasets.sample import PROMPT_FEATURES
from tests.cb_datasets.crash_helpers import END, FakeBackend, die_before_the_move, kill_at_random, shards_in, started


ROOT = Path(__file__).parents[3]
COMPLETION_COLUMNS = list(COMPLETION_FEATURES)
DRAWN = Sampling(temperature=1.0, num_samples=2, max_new_tokens=100, seed=5)


def asked(prompt: dict, count: int, **target) -> Dataset:
    rows = [
        {
            **prompt,
            "id": f"prompt/{index}",
            "messages": [message("user", f"Question {index}?")],
            "target": prompt["target"] | target,
        }
        for index in range(count)
    ]
    return to_dataset(rows, PROMPT_FEATURES)


@pytest.fixture
def prompts(prompt) -> Dataset:
    """23 prompts: shards of 5 leave a short one."""
    return asked(prompt, 23)


@pytest.fixture
def undisturbed(prompts, tmp_path_factory) -> list[dict]:
    return resumed(prompts, tmp_path_factory.mktemp("undisturbed"))


def resumed(prompts: Dataset, work_dir: Path, backend: FakeBackend | None = None) -> list[dict]:
    return complete(prompts, backend or FakeBackend(), DRAWN, work_dir, shard_size=5).to_list()


def temporary_files_in(work_dir: Path) -> list[Path]:
    return [path for path in work_dir.rglob("*") if path.name.endswith(".tmp")]


def fails_at_third(error: BaseException) -> FakeBackend:
    """A model that fails when it is asked for the third time."""

    def fail(call: int) -> None:
        if call == 2:
            raise error

    return FakeBackend(before=fail)


def silent() -> FakeBackend:
    """A model that must not be asked."""
    return FakeBackend(before=lambda call: pytest.fail("the model was asked again"))


# ------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_those_of_the_prompts_in_order(prompts, undisturbed):
    assert [row["prompt_id"] for row in undisturbed] == [id for id in prompts["id"] for _ in range(2)]
    assert [row["sample_index"] for row in undisturbed] == [0, 1] * 23
    assert all(row["canonical"] and row["new_tokens"] == 64 + len(END) for row in undisturbed)
    assert len({row["text"] for row in undisturbed}) == 46


def test_seeds_of_neighbouring_prompts_and_shards_never_meet(undisturbed):
    """A backend that seeds prompt i of a shard with `seed + i * num_samples` uses each seed once."""
    assert [row["seed"] for row in undisturbed[::10]] == [5, 15, 25, 35, 45]


def test_prompts_are_encoded_shard_by_shard(prompts, tmp_path, monkeypatch):
    backend = FakeBackend()
    encoded = []
    render = backend.tokenizer.apply_chat_template
    monkeypatch.setattr(
        backend.tokenizer, "apply_chat_template", lambda *args, **kwargs: encoded.append(1) or render(*args, **kwargs)
    )
    generate = backend.generate
    at_each_call = []
    monkeypatch.setattr(backend, "generate", lambda *args: at_each_call.append(len(encoded)) or generate(*args))
    resumed(prompts, tmp_path, backend)
    assert at_each_call == [5, 10, 15, 20, 23]


def test_the_engine_is_never_pickled(prompts, tmp_path):
    class Unpicklable(FakeBackend):
        def __reduce__(self):
            pytest.fail("the engine was pickled")

    resumed(prompts, tmp_path, Unpicklable())


@pytest.mark.parametrize(("wants", "size"), [(None, 100), (40, 40)])
def test_the_backend_may_say_how_large_its_shards_are(prompt, tmp_path, wants, size):
    backend = FakeBackend()
    if wants is not None:
        backend.shard_size = wants
    complete(asked(prompt, 101), backend, DRAWN, tmp_path)
    assert len(backend.asked[0]) == size


def test_a_backend_that_leaves_prompts_out_is_refused(prompts, tmp_path, monkeypatch):
    backend = FakeBackend()
    generate = backend.generate
    monkeypatch.setattr(backend, "generate", lambda *args: generate(*args)[1:])
    with pytest.raises(ValueError, match=r"shard 0 of 5 \(prompts 0-4\).*did not answer every prompt"):
        resumed(prompts, tmp_path, backend)
    assert shards_in(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------- prefill


def test_a_prefill_is_asked_after_the_prompt_and_stands_in_the_text(prompt, tmp_path):
    backend = FakeBackend()
    done = complete(asked(prompt, 2, prefill="Sure, "), backend, Sampling(max_new_tokens=100), tmp_path)
    asked_for = ["".join(map(chr, ids)) for ids in backend.asked[0]]
    assert asked_for == ["user: Question 0?Sure, ", "user: Question 1?Sure, "]
    assert all(text.startswith("Sure, ") and text.endswith(END) for text in done["text"])
    assert all(done["canonical"]) and set(done["new_tokens"]) == {64 + len(END)}


def test_a_seam_that_joins_into_one_token_is_not_canonical(prompt, tmp_path, monkeypatch):
    """The ids of prefill and completion must be those of the text as a whole."""
    backend = FakeBackend()
    encode = type(backend.tokenizer).__call__

    def joining(self, text, **options):
        # A digit and the blank before it are one token.
        return {"input_ids": encode(self, re.sub(r" (?=[0-9a-f])", "\ue000", text))["input_ids"]}

    monkeypatch.setattr(type(backend.tokenizer), "__call__", joining)
    done = complete(asked(prompt, 1, prefill="Sure, "), backend, Sampling(max_new_tokens=100), tmp_path)
    assert done["canonical"] == [False]


def test_prompt_prefill_and_completion_must_fit(prompt, tmp_path):
    greedy, length = Sampling(max_new_tokens=100), len("user: Question 0?Sure, ")
    prompts = asked(prompt, 2, prefill="Sure, ")
    fits = complete(prompts, FakeBackend(), greedy, tmp_path, max_length=length + 100)
    assert set(fits["stop_reason"]) == {"stop"}
    too_long = complete(prompts, silent(), greedy, tmp_path, max_length=length + 99)
    unasked = {"text": None, "stop_reason": "prompt_too_long", "canonical": False, "new_tokens": 0, "seed": 0}
    assert too_long.to_list() == [{"prompt_id": id, "sample_index": 0, **unasked} for id in prompts["id"]]
    assert complete(prompts, silent(), greedy, tmp_path, max_length=length + 99).to_list() == too_long.to_list()
    small_model = silent()
    small_model.max_length = length + 99
    assert complete(prompts, small_model, greedy, tmp_path).to_list() == too_long.to_list()


# --------------------------------------------------------------------------------------------------------- settings


def with_template(backend: FakeBackend, template: str) -> FakeBackend:
    backend.tokenizer.chat_template = template
    return backend


def named(**attributes: str) -> FakeBackend:
    backend = FakeBackend()
    vars(backend).update(attributes)
    return backend


OTHER_SETTINGS = {
    "model": {"backend": lambda: named(model="macaw")},
    "revision": {"backend": lambda: named(revision="2")},
    "template": {"backend": lambda: with_template(FakeBackend(), f"other {END}")},
    "seed": {"sampling": dataclasses.replace(DRAWN, seed=6)},
    "temperature": {"sampling": dataclasses.replace(DRAWN, temperature=0.5)},
    "shard size": {"shard_size": 4},
    "length": {"max_length": 1000},
    "tools": {"columns": {"tools": "[]"}},
    "prefill": {"target": {"prefill": "Sure"}},
}


@pytest.mark.parametrize("change", OTHER_SETTINGS)
def test_another_setting_never_meets_old_shards(prompt, prompts, tmp_path, change):
    resumed(prompts, tmp_path)
    before = shards_in(tmp_path)
    changed = dict(OTHER_SETTINGS[change])
    backend = changed.pop("backend", FakeBackend)()
    sampling = changed.pop("sampling", DRAWN)
    other = asked(prompt | changed.pop("columns", {}), 23, **changed.pop("target", {}))
    complete(other, backend, sampling, tmp_path, **{"shard_size": 5} | changed)
    assert len(list(tmp_path.iterdir())) == 2 and sum(map(len, backend.asked)) == 23
    assert set(before) < set(shards_in(tmp_path))


def test_edited_code_never_meets_old_shards(prompts, tmp_path, monkeypatch):
    resumed(prompts, tmp_path)
    monkeypatch.setattr(importlib.import_module("cb_datasets.generation.complete"), "_CODE_HASH", "edited")
    resumed(prompts, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_decides_nothing_is_free_to_change(prompts, tmp_path):
    done = resumed(prompts, tmp_path)
    other = prompts.remove_columns("category").add_column("note", ["new"] * 23)
    options = {"description": "again", "accepts": lambda row: True}
    assert complete(other, silent(), DRAWN, tmp_path, shard_size=5, **options).to_list() == done


def test_the_manifest_says_what_the_folder_holds(prompts, tmp_path):
    resumed(prompts, tmp_path)
    manifest = read_json(next(tmp_path.glob("*/manifest.json")))
    assert manifest["prompts"] == 23 and manifest["shards"] == {"finished": 5, "total": 5}
    settings = manifest["settings"]
    assert settings["sampling"] == dataclasses.asdict(DRAWN)
    assert (settings["backend"], settings["model"], settings["revision"]) == ("FakeBackend", "parrot", "1")
    assert {"prompts", "template_hash", "end_tokens", "date_string", "max_length", "code"} < set(settings)


def test_a_manifest_of_other_settings_is_refused(prompts, tmp_path):
    resumed(prompts, tmp_path)
    path = next(tmp_path.glob("*/manifest.json"))
    manifest = read_json(path)
    manifest["settings"]["model"] = "macaw"
    write_json(path, manifest)
    with pytest.raises(ValueError, match=r"manifest\.json is not of this folder.*Move the folder away"):
        resumed(prompts, tmp_path)


# ------------------------------------------------------------------------------------------- killed and interrupted


def test_twenty_kills_at_random_moments_change_nothing(prompt, tmp_path):
    """No row is lost and none is there twice, wherever `kill -9` hits: resuming gives the undisturbed run's rows."""
    prompts = asked(prompt, 500)
    undisturbed = resumed(prompts, tmp_path / "undisturbed")
    moments, work_dir = random.Random(20), tmp_path / "killed"
    for _ in range(20):
        process = started(functools.partial(FakeBackend, 0.01), prompts, DRAWN, work_dir, shard_size=5)
        kill_at_random(process, work_dir, moments, most_shards=2)
    kept = {path: path.stat().st_mtime_ns for path in shards_in(work_dir)}
    assert 0 < len(kept) < 100
    rest = FakeBackend()
    assert resumed(prompts, work_dir, rest) == undisturbed
    assert len(rest.asked) == 100 - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(work_dir.iterdir())) == 1 and temporary_files_in(work_dir) == []


def test_a_shard_written_and_not_yet_in_place_is_made_again(prompts, undisturbed, tmp_path):
    work_dir = tmp_path / "killed"
    process = started(
        functools.partial(FakeBackend, before=die_before_the_move), prompts, DRAWN, work_dir, shard_size=5
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert shards_in(work_dir) == [] and len(temporary_files_in(work_dir)) == 1
    assert resumed(prompts, work_dir) == undisturbed
    assert temporary_files_in(work_dir) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_keeps_what_is_finished(prompts, undisturbed, tmp_path, interrupt):
    work_dir = tmp_path / "interrupted"
    with pytest.raises(interrupt):
        resumed(prompts, work_dir, fails_at_third(interrupt()))
    assert len(shards_in(work_dir)) == 2 and temporary_files_in(work_dir) == []
    rest = FakeBackend()
    assert resumed(prompts, work_dir, rest) == undisturbed
    assert len(rest.asked) == 3


def test_only_what_dead_processes_left_is_removed(prompts, tmp_path):
    resumed(prompts, tmp_path)
    [folder] = tmp_path.iterdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = socket.gethostname()
    left = {
        "dead": f".shard-00001-of-00005.parquet.{dead.pid}@{here}.tmp",
        "reused": f".manifest.json.{os.getpid()}@{here}.tmp",
        "lost": ".shard-00002-of-00005.parquet.1@elsewhere.tmp",
        "alive": f".shard-00003-of-00005.parquet.{os.getppid()}@{here}.tmp",
        "remote": ".shard-00004-of-00005.parquet.1@elsewhere.tmp",
        "foreign": ".notes.tmp",
    }
    for name in left.values():
        (folder / name).write_text("half")
    two_hours_ago = time.time() - 7200
    os.utime(folder / left["lost"], (two_hours_ago, two_hours_ago))
    resumed(prompts, tmp_path)
    assert {path.name for path in temporary_files_in(tmp_path)} == {
        left[who] for who in ("alive", "remote", "foreign")
    }


# ----------------------------------------------------------------------------------------------------- spoilt shards


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_byte(path: Path) -> None:
    """In the texts, where nothing but a checksum can notice."""
    text = pyarrow.parquet.read_metadata(path).row_group(0).column(COMPLETION_COLUMNS.index("text"))
    content = bytearray(path.read_bytes())
    content[text.data_page_offset - 1] ^= 1  # the last of the page of distinct texts, which stands before the data
    path.write_bytes(content)


def put_another_shard(path: Path) -> None:
    shutil.copy(path.with_name("shard-00000-of-00005.parquet"), path)


def lose_a_row(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(0, len(table) - 1), path)


def drop_a_column(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns("seed"), path)


def put_another_run(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"run": "0" * 16}), path)


SPOILERS = [truncate, empty, flip_a_byte, put_another_shard, lose_a_row, drop_a_column, put_another_run]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_shard_is_reported_and_made_again(prompts, undisturbed, tmp_path, caplog, spoil):
    resumed(prompts, tmp_path / "spoilt")
    spoil(shards_in(tmp_path / "spoilt")[3])
    rest = FakeBackend()
    assert resumed(prompts, tmp_path / "spoilt", rest) == undisturbed
    assert len(rest.asked) == 1
    assert re.search(r"shard-00003-of-00005\.parquet .* It is made again\.", caplog.text)
    assert resumed(prompts, tmp_path / "spoilt", silent()) == undisturbed


# ----------------------------------------------------------------------------------------------- disk, memory, engine


FAILURES = {
    "gpu": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory .*--batch-size"),
    "memory": (MemoryError(), "out of memory .*--batch-size"),
    "cpu": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory .*--batch-size"),
    "worker": (RuntimeError("EngineCore failed: CUDA out of memory"), "out of memory .*--batch-size"),
    "engine": (RuntimeError("the engine core died"), "RuntimeError: the engine core died; .* mend the cause"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_names_the_shard_and_keeps_the_others(prompts, undisturbed, tmp_path, failure):
    error, said = FAILURES[failure]
    work_dir = tmp_path / "failed"
    with pytest.raises(ValueError, match=rf"^shard 2 of 5 \(prompts 10-14\): {said}") as caught:
        resumed(prompts, work_dir, fails_at_third(error))
    assert f"2 shards are kept in {work_dir}" in str(caught.value) and caught.value.__cause__ is error
    assert str(caught.value).endswith("and run the same command again.")
    assert len(shards_in(work_dir)) == 2 and temporary_files_in(work_dir) == []
    assert resumed(prompts, work_dir) == undisturbed


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_apart(prompts, undisturbed, tmp_path, monkeypatch, code):
    work_dir = tmp_path / "full"
    write = pyarrow.parquet.write_table

    def write_a_little(table, path, **options):
        if "shard-00003" in path.name:
            path.write_bytes(b"PAR1")
            raise OSError(code, "Error writing bytes to file")
        write(table, path, **options)

    with monkeypatch.context() as patch, pytest.raises(ValueError) as caught:
        patch.setattr(pyarrow.parquet, "write_table", write_a_little)
        resumed(prompts, work_dir)
    assert str(caught.value) == (
        f"shard 3 of 5 (prompts 15-19): {os.strerror(code).lower()}; 3 shards are kept in "
        f"{shards_in(work_dir)[0].parent}; free space and run the same command again."
    )
    assert temporary_files_in(work_dir) == []
    assert resumed(prompts, work_dir) == undisturbed


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 64 KiB fills up in the middle of a run; with space again, the run goes on."""
    script = """
        import sys
        from pathlib import Path

        from datasets import Dataset

        from builders.trace import message
        from cb_datasets.generation import complete
        from cb_datasets.generation import Sampling
        from tests.cb_datasets.crash_helpers import FakeBackend

        disk = Path(sys.argv[1])
        rows = {"id": list("abcdefghij"), "messages": [[message("user", "?")]] * 10, "tools": [None] * 10,
                "target": [{"prefill": None}] * 10}
        filler = disk / "filler"
        filler.write_bytes(bytes(32_000))
        for attempt in range(2):
            try:
                done = complete(Dataset.from_dict(rows), FakeBackend(), Sampling(), disk / "work", shard_size=1)
                print(done["prompt_id"][:])
            except ValueError as error:
                print(error)
            files = [path.name for path in disk.glob("work/*/*")]
            print(len([name for name in files if name.startswith("shard-")]), [n for n in files if ".tmp" in n])
            filler.unlink(missing_ok=True)
    """
    # In a mount namespace of its own: nothing is left mounted, and root is not needed where user namespaces are free.
    mount = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, tmp_path, "true"], capture_output=True).returncode:
        pytest.skip("mounting in a namespace is not permitted here")
    run = subprocess.run(
        [*command, tmp_path, sys.executable, textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    error, left, done, whole = run.stdout.splitlines()
    failed = re.match(r"shard (\d) of 10 .*: no space left on device; (\d) shards are kept in .*; free space", error)
    assert 0 < int(failed[1]) <= int(failed[2]) and left == f"{failed[2]} []"
    assert done == str(list("abcdefghij")) and whole == "10 []"


# ---------------------------------------------------------------------------------------------------- parallel tasks


def test_tasks_side_by_side_make_what_one_process_makes(prompts, undisturbed, tmp_path):
    tasks = [
        started(functools.partial(FakeBackend, 0.01), prompts, DRAWN, tmp_path, shard_size=5, rank=rank, world=2)
        for rank in range(2)
    ]
    for task in tasks:
        task.join()
    assert [task.exitcode for task in tasks] == [0, 0]
    assert complete(prompts, silent(), DRAWN, tmp_path, shard_size=5).to_list() == undisturbed
    assert read_json(next(tmp_path.glob("*/manifest.json")))["shards"] == {"finished": 5, "total": 5}


def test_a_task_and_its_ghost_on_the_same_shards_do_no_harm(prompts, undisturbed, tmp_path):
    """A requeued task may start beside the one it replaces."""
    tasks = [started(functools.partial(FakeBackend, 0.01), prompts, DRAWN, tmp_path, shard_size=5) for _ in range(3)]
    for task in tasks:
        task.join()
    assert [task.exitcode for task in tasks] == [0, 0, 0]
    assert complete(prompts, silent(), DRAWN, tmp_path, shard_size=5).to_list() == undisturbed
    assert temporary_files_in(tmp_path) == []


def test_a_task_does_its_share_and_says_what_is_missing(prompts, tmp_path, caplog):
    first, second = FakeBackend(), FakeBackend()
    done = complete(prompts, first, DRAWN, tmp_path, shard_size=5, description="flips", rank=1, world=2)
    ids = prompts["id"][5:10] + prompts["id"][15:20]
    assert done["prompt_id"] == [id for id in ids for _ in range(DRAWN.num_samples)]
    assert [path.name[6:11] for path in shards_in(tmp_path)] == ["00001", "00003"]
    assert caplog.messages == ["flips: 3 of 5 shards are still missing."]
    complete(prompts, second, DRAWN, tmp_path, shard_size=5, rank=0, world=2)
    assert (len(first.asked), len(second.asked)) == (2, 3)
    assert caplog.messages[1] == "Completing: 0 of 5 shards are still missing."
    none = complete(prompts, silent(), DRAWN, tmp_path, shard_size=5, rank=7, world=8)
    assert len(none) == 0 and none.column_names == done.column_names


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (None, 2)])
def test_a_task_outside_its_array_is_refused(prompts, tmp_path, rank, world):
    with pytest.raises(ValueError, match="Rank and world go together"):
        complete(prompts, silent(), DRAWN, tmp_path, rank=rank, world=world)


# ---------------------------------------------------------------------------------------------------------- progress


def last_state(bar: str) -> str:
    return bar.strip().split("\r")[-1]


def test_the_bar_shows_rates_and_acceptance(prompts, tmp_path, capsys):
    options = {"description": "flips", "accepts": lambda row: row["sample_index"] == 0}
    complete(prompts, FakeBackend(0.01), DRAWN, tmp_path, shard_size=5, **options)
    bar = capsys.readouterr().err
    shown = r"flips: 100%.*\| 23/23 prompts \[[\d:]+<00:00, ([\d.]+) samples/s, (\d+) tokens/s, 50% accepted\]"
    samples, tokens = re.search(shown, last_state(bar)).groups()
    assert 0 < float(samples) <= 200 and float(tokens) == pytest.approx(73 * float(samples), rel=0.02)


def test_rates_after_a_resume_are_of_the_work_done_now(prompts, tmp_path, capsys):
    resumed(prompts, tmp_path)
    shards_in(tmp_path)[0].unlink()
    capsys.readouterr()
    complete(prompts, FakeBackend(0.1), DRAWN, tmp_path, shard_size=5)
    bar = capsys.readouterr().err
    assert "18/23 prompts" in bar and "accepted" not in bar
    # 10 completions in half a second at best; the 46 of the whole run would be 92 a second.
    assert float(re.search(r"([\d.]+) samples/s", last_state(bar))[1]) <= 20
