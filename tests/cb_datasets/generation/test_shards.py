"""Shards survive kills, full disks and interrupts, and those of different settings never mix; with a fake model."""

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
from tests.cb_datasets.crash_helpers import END, FakeBackend, die_before_rename, kill_at_random, shards_in, start_run
from tests.small_disk import run_in_namespace


COMPLETION_COLUMNS = list(COMPLETION_FEATURES)
SAMPLED = Sampling(temperature=1.0, num_samples=2, max_new_tokens=100, seed=5)


def make_prompts(prompt: dict, count: int, **target) -> Dataset:
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
    """23 prompts: with shards of 5, the last one is shorter."""
    return make_prompts(prompt, 23)


@pytest.fixture
def uninterrupted(prompts, tmp_path_factory) -> list[dict]:
    return run_complete(prompts, tmp_path_factory.mktemp("uninterrupted"))


def run_complete(prompts: Dataset, work_dir: Path, backend: FakeBackend | None = None) -> list[dict]:
    return complete(prompts, backend or FakeBackend(), SAMPLED, work_dir, shard_size=5).to_list()


def temporary_files_in(work_dir: Path) -> list[Path]:
    return [path for path in work_dir.rglob("*") if path.name.endswith(".tmp")]


def fails_at_third(error: BaseException) -> FakeBackend:
    """A model that fails on its third call."""

    def fail(call: int) -> None:
        if call == 2:
            raise error

    return FakeBackend(on_call=fail)


def must_not_run() -> FakeBackend:
    """A model that fails the test if it is called."""
    return FakeBackend(on_call=lambda call: pytest.fail("the model was called"))


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_follow_the_order_of_the_prompts(prompts, uninterrupted):
    assert [row["prompt_id"] for row in uninterrupted] == [id for id in prompts["id"] for _ in range(2)]
    assert [row["sample_index"] for row in uninterrupted] == [0, 1] * 23
    assert all(row["canonical"] and row["new_tokens"] == 64 + len(END) for row in uninterrupted)
    assert len({row["text"] for row in uninterrupted}) == 46


def test_seeds_of_prompts_and_shards_do_not_overlap(uninterrupted):
    """A backend that seeds prompt i of a shard with `seed + i * num_samples` uses each seed once."""
    assert [row["seed"] for row in uninterrupted[::10]] == [5, 15, 25, 35, 45]


def test_after_the_last_seed_that_libraries_take_comes_the_first(prompts, tmp_path):
    last = dataclasses.replace(SAMPLED, seed=2**32 - 1)
    rows = complete(prompts, FakeBackend(), last, tmp_path, shard_size=5).to_list()
    assert [row["seed"] for row in rows[::10]] == [2**32 - 1, 9, 19, 29, 39]


def test_prompts_are_encoded_shard_by_shard(prompts, tmp_path, monkeypatch):
    backend = FakeBackend()
    run_complete(prompts.select([0]), tmp_path / "first", backend)  # looks at the template, which renders too, once
    encoded = []
    render = backend.tokenizer.apply_chat_template
    monkeypatch.setattr(
        backend.tokenizer, "apply_chat_template", lambda *args, **kwargs: encoded.append(1) or render(*args, **kwargs)
    )
    generate = backend.generate
    at_each_call = []
    monkeypatch.setattr(backend, "generate", lambda *args: at_each_call.append(len(encoded)) or generate(*args))
    run_complete(prompts, tmp_path, backend)
    assert at_each_call == [5, 10, 15, 20, 23]


def test_the_engine_is_never_pickled(prompts, tmp_path):
    class Unpicklable(FakeBackend):
        def __reduce__(self):
            pytest.fail("the engine was pickled")

    run_complete(prompts, tmp_path, Unpicklable())


@pytest.mark.parametrize(("preferred", "size"), [(None, 100), (40, 40)])
def test_a_backend_may_set_its_shard_size(prompt, tmp_path, preferred, size):
    backend = FakeBackend()
    if preferred is not None:
        backend.shard_size = preferred
    complete(make_prompts(prompt, 101), backend, SAMPLED, tmp_path)
    assert len(backend.calls[0]) == size


def test_a_backend_that_skips_prompts_raises(prompts, tmp_path, monkeypatch):
    backend = FakeBackend()
    generate = backend.generate
    monkeypatch.setattr(backend, "generate", lambda *args: generate(*args)[1:])
    with pytest.raises(ValueError, match=r"shard 0 of 5 \(prompts 0-4\).*did not complete every prompt"):
        run_complete(prompts, tmp_path, backend)
    assert shards_in(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------- prefill


def test_a_prefill_follows_the_prompt_and_begins_the_text(prompt, tmp_path):
    backend = FakeBackend()
    done = complete(make_prompts(prompt, 2, prefill="Sure, "), backend, Sampling(max_new_tokens=100), tmp_path)
    inputs = ["".join(map(chr, ids)) for ids in backend.calls[0]]
    assert inputs == ["user: Question 0?Sure, ", "user: Question 1?Sure, "]
    assert all(text.startswith("Sure, ") and text.endswith(END) for text in done["text"])
    assert all(done["canonical"]) and set(done["new_tokens"]) == {64 + len(END)}


def test_a_token_across_the_end_of_the_prefill_is_not_canonical(prompt, tmp_path, monkeypatch):
    """The ids of prefill and completion must equal those of the joined text."""
    backend = FakeBackend()
    encode = type(backend.tokenizer).__call__

    def merge_space_and_digit(self, text, **options):
        # A digit and the space before it are one token.
        return {"input_ids": encode(self, re.sub(r" (?=[0-9a-f])", "\ue000", text))["input_ids"]}

    monkeypatch.setattr(type(backend.tokenizer), "__call__", merge_space_and_digit)
    done = complete(make_prompts(prompt, 1, prefill="Sure, "), backend, Sampling(max_new_tokens=100), tmp_path)
    assert done["canonical"] == [False]


def test_prompt_prefill_and_completion_must_fit(prompt, tmp_path):
    greedy, length = Sampling(max_new_tokens=100), len("user: Question 0?Sure, ")
    prompts = make_prompts(prompt, 2, prefill="Sure, ")
    fits = complete(prompts, FakeBackend(), greedy, tmp_path, max_length=length + 100)
    assert set(fits["stop_reason"]) == {"stop"}
    too_long = complete(prompts, must_not_run(), greedy, tmp_path, max_length=length + 99)
    skipped = {"text": None, "stop_reason": "prompt_too_long", "canonical": False, "new_tokens": 0, "seed": 0}
    assert too_long.to_list() == [{"prompt_id": id, "sample_index": 0, **skipped} for id in prompts["id"]]
    assert complete(prompts, must_not_run(), greedy, tmp_path, max_length=length + 99).to_list() == too_long.to_list()
    small_model = must_not_run()
    small_model.max_length = length + 99
    assert complete(prompts, small_model, greedy, tmp_path).to_list() == too_long.to_list()


# ------------------------------------------------------------------------------------------------------------ settings


def with_template(backend: FakeBackend, template: str) -> FakeBackend:
    backend.tokenizer.chat_template = template
    return backend


def named(**attributes: str) -> FakeBackend:
    backend = FakeBackend()
    vars(backend).update(attributes)
    return backend


OTHER_SETTINGS = {
    "model": {"backend": lambda: named(model="other-model")},
    "revision": {"backend": lambda: named(revision="2")},
    "template": {"backend": lambda: with_template(FakeBackend(), f"other {END}")},
    "seed": {"sampling": dataclasses.replace(SAMPLED, seed=6)},
    "temperature": {"sampling": dataclasses.replace(SAMPLED, temperature=0.5)},
    "shard size": {"shard_size": 4},
    "length": {"max_length": 1000},
    "tools": {"columns": {"tools": "[]"}},
    "prefill": {"target": {"prefill": "Sure"}},
}


@pytest.mark.parametrize("change", OTHER_SETTINGS)
def test_a_changed_setting_never_reuses_old_shards(prompt, prompts, tmp_path, change):
    run_complete(prompts, tmp_path)
    before = shards_in(tmp_path)
    changed = dict(OTHER_SETTINGS[change])
    backend = changed.pop("backend", FakeBackend)()
    sampling = changed.pop("sampling", SAMPLED)
    other = make_prompts(prompt | changed.pop("columns", {}), 23, **changed.pop("target", {}))
    complete(other, backend, sampling, tmp_path, **{"shard_size": 5} | changed)
    assert len(list(tmp_path.iterdir())) == 2 and sum(map(len, backend.calls)) == 23
    assert set(before) < set(shards_in(tmp_path))


@pytest.mark.parametrize("edited", ["_CODE_HASH", "RENDERER_HASH"])
def test_edited_code_never_reuses_old_shards(prompts, tmp_path, monkeypatch, edited):
    run_complete(prompts, tmp_path)
    monkeypatch.setattr(importlib.import_module("cb_datasets.generation.complete"), edited, "edited")
    run_complete(prompts, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_columns_and_options_without_effect_may_change(prompts, tmp_path):
    done = run_complete(prompts, tmp_path)
    other = prompts.remove_columns("category").add_column("note", ["new"] * 23)
    options = {"description": "again", "accepts": lambda row: True}
    assert complete(other, must_not_run(), SAMPLED, tmp_path, shard_size=5, **options).to_list() == done


def test_the_manifest_describes_the_folder(prompts, tmp_path):
    run_complete(prompts, tmp_path)
    manifest = read_json(next(tmp_path.glob("*/manifest.json")))
    assert manifest["prompts"] == 23 and manifest["shards"] == {"finished": 5, "total": 5}
    settings = manifest["settings"]
    assert settings["sampling"] == dataclasses.asdict(SAMPLED)
    assert (settings["backend"], settings["model"], settings["revision"]) == ("FakeBackend", "fake-model", "1")
    assert {"prompts", "template_hash", "end_tokens", "date_string", "max_length", "code"} < set(settings)


def test_a_manifest_of_other_settings_raises(prompts, tmp_path):
    run_complete(prompts, tmp_path)
    path = next(tmp_path.glob("*/manifest.json"))
    manifest = read_json(path)
    manifest["settings"]["model"] = "other-model"
    write_json(path, manifest)
    with pytest.raises(ValueError, match=r"manifest\.json does not match its folder.*Move the folder away"):
        run_complete(prompts, tmp_path)


# ---------------------------------------------------------------------------------------------- killed and interrupted


def test_twenty_kills_at_random_moments_change_nothing(prompt, tmp_path):
    """Wherever `kill -9` hits, resuming gives the rows of an uninterrupted run: none is lost, none is duplicated."""
    prompts = make_prompts(prompt, 500)
    uninterrupted = run_complete(prompts, tmp_path / "uninterrupted")
    rng, work_dir = random.Random(20), tmp_path / "killed"
    for _ in range(20):
        process = start_run(functools.partial(FakeBackend, 0.01), prompts, SAMPLED, work_dir, shard_size=5)
        kill_at_random(process, work_dir, rng, max_shards=2)
    kept = {path: path.stat().st_mtime_ns for path in shards_in(work_dir)}
    assert 0 < len(kept) < 100
    rest = FakeBackend()
    assert run_complete(prompts, work_dir, rest) == uninterrupted
    assert len(rest.calls) == 100 - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(work_dir.iterdir())) == 1 and temporary_files_in(work_dir) == []


def test_a_shard_killed_before_its_rename_is_regenerated(prompts, uninterrupted, tmp_path):
    work_dir = tmp_path / "killed"
    process = start_run(
        functools.partial(FakeBackend, on_call=die_before_rename), prompts, SAMPLED, work_dir, shard_size=5
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert shards_in(work_dir) == [] and len(temporary_files_in(work_dir)) == 1
    assert run_complete(prompts, work_dir) == uninterrupted
    assert temporary_files_in(work_dir) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_keeps_what_is_finished(prompts, uninterrupted, tmp_path, interrupt):
    work_dir = tmp_path / "interrupted"
    with pytest.raises(interrupt):
        run_complete(prompts, work_dir, fails_at_third(interrupt()))
    assert len(shards_in(work_dir)) == 2 and temporary_files_in(work_dir) == []
    rest = FakeBackend()
    assert run_complete(prompts, work_dir, rest) == uninterrupted
    assert len(rest.calls) == 3


def test_only_temporary_files_of_dead_processes_are_removed(prompts, tmp_path):
    run_complete(prompts, tmp_path)
    [folder] = tmp_path.iterdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = socket.gethostname()
    leftovers = {
        "dead": f".shard-00001-of-00005.parquet.{dead.pid}@{here}.tmp",
        "reused": f".manifest.json.{os.getpid()}@{here}.tmp",
        "lost": ".shard-00002-of-00005.parquet.1@elsewhere.tmp",
        "alive": f".shard-00003-of-00005.parquet.{os.getppid()}@{here}.tmp",
        "remote": ".shard-00004-of-00005.parquet.1@elsewhere.tmp",
        "foreign": ".notes.tmp",
    }
    for name in leftovers.values():
        (folder / name).write_text("half")
    two_hours_ago = time.time() - 7200
    os.utime(folder / leftovers["lost"], (two_hours_ago, two_hours_ago))
    run_complete(prompts, tmp_path)
    assert {path.name for path in temporary_files_in(tmp_path)} == {
        leftovers[who] for who in ("alive", "remote", "foreign")
    }


# ------------------------------------------------------------------------------------------------------ invalid shards


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_byte(path: Path) -> None:
    """Change a text, which only a checksum can detect."""
    text = pyarrow.parquet.read_metadata(path).row_group(0).column(COMPLETION_COLUMNS.index("text"))
    content = bytearray(path.read_bytes())
    content[text.data_page_offset - 1] ^= 1  # last byte of the dictionary page, which holds the distinct texts
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


CORRUPTIONS = [truncate, empty, flip_a_byte, put_another_shard, lose_a_row, drop_a_column, put_another_run]


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_an_invalid_shard_is_reported_and_regenerated(prompts, uninterrupted, tmp_path, caplog, corrupt):
    run_complete(prompts, tmp_path / "corrupted")
    corrupt(shards_in(tmp_path / "corrupted")[3])
    rest = FakeBackend()
    assert run_complete(prompts, tmp_path / "corrupted", rest) == uninterrupted
    assert len(rest.calls) == 1
    assert re.search(r"shard-00003-of-00005\.parquet .* The shard is regenerated\.", caplog.text)
    assert run_complete(prompts, tmp_path / "corrupted", must_not_run()) == uninterrupted


# ------------------------------------------------------------------------------------------------ disk, memory, engine


FAILURES = {
    "gpu": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory .*--batch-size"),
    "memory": (MemoryError(), "out of memory .*--batch-size"),
    "cpu": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory .*--batch-size"),
    "worker": (RuntimeError("EngineCore failed: CUDA out of memory"), "out of memory .*--batch-size"),
    "engine": (RuntimeError("the engine core died"), "RuntimeError: the engine core died; .* fix the cause"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_names_the_shard_and_keeps_the_others(prompts, uninterrupted, tmp_path, failure):
    error, message = FAILURES[failure]
    work_dir = tmp_path / "failed"
    with pytest.raises(ValueError, match=rf"^shard 2 of 5 \(prompts 10-14\): {message}") as caught:
        run_complete(prompts, work_dir, fails_at_third(error))
    assert f"2 shards are kept in {work_dir}" in str(caught.value) and caught.value.__cause__ is error
    assert str(caught.value).endswith("and rerun the same command.")
    assert len(shards_in(work_dir)) == 2 and temporary_files_in(work_dir) == []
    assert run_complete(prompts, work_dir) == uninterrupted


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_its_own_remedy(prompts, uninterrupted, tmp_path, monkeypatch, code):
    work_dir = tmp_path / "full"
    write = pyarrow.parquet.write_table

    def write_partly(table, path, **options):
        if "shard-00003" in path.name:
            path.write_bytes(b"PAR1")
            raise OSError(code, "Error writing bytes to file")
        write(table, path, **options)

    with monkeypatch.context() as patch, pytest.raises(ValueError) as caught:
        patch.setattr(pyarrow.parquet, "write_table", write_partly)
        run_complete(prompts, work_dir)
    assert str(caught.value) == (
        f"shard 3 of 5 (prompts 15-19): {os.strerror(code).lower()}; 3 shards are kept in "
        f"{shards_in(work_dir)[0].parent}; free space and rerun the same command."
    )
    assert temporary_files_in(work_dir) == []
    assert run_complete(prompts, work_dir) == uninterrupted


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 64 KiB fills up during a run; when space is freed, the run resumes."""
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
    mount = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    run = run_in_namespace(mount, tmp_path, sys.executable, textwrap.dedent(script))
    assert run.returncode == 0, run.stderr
    error, files, completed, final_files = run.stdout.splitlines()
    failed = re.match(r"shard (\d) of 10 .*: no space left on device; (\d) shards are kept in .*; free space", error)
    assert 0 < int(failed[1]) <= int(failed[2]) and files == f"{failed[2]} []"
    assert completed == str(list("abcdefghij")) and final_files == "10 []"


# ------------------------------------------------------------------------------------------------------ parallel tasks


def test_parallel_tasks_give_the_rows_of_one_process(prompts, uninterrupted, tmp_path):
    tasks = [
        start_run(functools.partial(FakeBackend, 0.01), prompts, SAMPLED, tmp_path, shard_size=5, rank=rank, world=2)
        for rank in range(2)
    ]
    for task in tasks:
        task.join()
    assert [task.exitcode for task in tasks] == [0, 0]
    assert complete(prompts, must_not_run(), SAMPLED, tmp_path, shard_size=5).to_list() == uninterrupted
    assert read_json(next(tmp_path.glob("*/manifest.json")))["shards"] == {"finished": 5, "total": 5}


def test_tasks_may_write_the_same_shards(prompts, uninterrupted, tmp_path):
    """A requeued task may start while the one it replaces still runs."""
    tasks = [
        start_run(functools.partial(FakeBackend, 0.01), prompts, SAMPLED, tmp_path, shard_size=5) for _ in range(3)
    ]
    for task in tasks:
        task.join()
    assert [task.exitcode for task in tasks] == [0, 0, 0]
    assert complete(prompts, must_not_run(), SAMPLED, tmp_path, shard_size=5).to_list() == uninterrupted
    assert temporary_files_in(tmp_path) == []


def test_a_task_generates_its_shards_and_logs_how_many_are_missing(prompts, tmp_path, caplog):
    first, second = FakeBackend(), FakeBackend()
    done = complete(prompts, first, SAMPLED, tmp_path, shard_size=5, description="flips", rank=1, world=2)
    ids = prompts["id"][5:10] + prompts["id"][15:20]
    assert done["prompt_id"] == [id for id in ids for _ in range(SAMPLED.num_samples)]
    assert [path.name[6:11] for path in shards_in(tmp_path)] == ["00001", "00003"]
    assert caplog.messages == ["flips: 3 of 5 shards are still missing."]
    complete(prompts, second, SAMPLED, tmp_path, shard_size=5, rank=0, world=2)
    assert (len(first.calls), len(second.calls)) == (2, 3)
    assert caplog.messages[1] == "Completing: 0 of 5 shards are still missing."
    none = complete(prompts, must_not_run(), SAMPLED, tmp_path, shard_size=5, rank=7, world=8)
    assert len(none) == 0 and none.column_names == done.column_names


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), (None, 2)])
def test_a_rank_outside_its_world_raises(prompts, tmp_path, rank, world):
    with pytest.raises(ValueError, match="Rank and world go together"):
        complete(prompts, must_not_run(), SAMPLED, tmp_path, rank=rank, world=world)


# ------------------------------------------------------------------------------------------------------------ progress


def last_state(bar: str) -> str:
    return bar.strip().split("\r")[-1]


def test_the_bar_shows_rates_and_acceptance(prompts, tmp_path, capsys):
    options = {"description": "flips", "accepts": lambda row: row["sample_index"] == 0}
    complete(prompts, FakeBackend(0.01), SAMPLED, tmp_path, shard_size=5, **options)
    bar = capsys.readouterr().err
    pattern = r"flips: 100%.*\| 23/23 prompts \[[\d:]+<00:00, ([\d.]+) samples/s, (\d+) tokens/s, 50% accepted\]"
    samples, tokens = re.search(pattern, last_state(bar)).groups()
    assert 0 < float(samples) <= 200 and float(tokens) == pytest.approx(73 * float(samples), rel=0.02)


def test_rates_after_a_resume_leave_out_finished_shards(prompts, tmp_path, capsys):
    run_complete(prompts, tmp_path)
    shards_in(tmp_path)[0].unlink()
    capsys.readouterr()
    complete(prompts, FakeBackend(0.1), SAMPLED, tmp_path, shard_size=5)
    bar = capsys.readouterr().err
    assert "18/23 prompts" in bar and "accepted" not in bar
    # 10 completions in half a second at best; the 46 of the whole run would be 92 a second.
    assert float(re.search(r"([\d.]+) samples/s", last_state(bar))[1]) <= 20


def test_an_edited_message_never_reuses_old_shards(prompts, tmp_path):
    """Ids stay when a set's prompts are edited."""
    run_complete(prompts, tmp_path)
    [*kept, last] = prompts
    edited = to_dataset([*kept, last | {"messages": [message("user", "Another question?")]}], PROMPT_FEATURES)
    backend = FakeBackend()
    complete(edited, backend, SAMPLED, tmp_path, shard_size=5)
    assert sum(map(len, backend.calls)) == 23 and len(list(tmp_path.iterdir())) == 2
