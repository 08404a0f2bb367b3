"""`cb-datasets publish-source`: a source becomes a private repository, unless it may not be passed on."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset

from builders import load_source, prepare_source
from builders.trace import TRACE_FEATURES
from cb_datasets.files import read_json
from cb_datasets.publish.check import folder_faults
from cb_datasets.publish.release import ReleaseError
from cb_datasets.publish.source import make_source_release
from tests.fake_hub import FakeHub, Repository

from ..release_data import run


REPO = "someone/traces"


@pytest.fixture
def ultrachat(tmp_path: Path) -> Path:
    """A folder with conversations of both splits of UltraChat."""
    for split in ("train", "test"):
        turns = [
            {"role": "user", "content": f"What is in {split}?"},
            {"role": "assistant", "content": "Rows, of text."},
        ]
        rows = [{"prompt": turns[0]["content"], "prompt_id": f"{split}{at}", "messages": turns} for at in range(3)]
        rows.append(rows[0] | {"prompt_id": "bad", "messages": turns[:1]})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / f"{split}_sft.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "raw"


def test_a_source_is_pushed_to_a_private_repository_and_read_back(hub: FakeHub, ultrachat: Path, tmp_path: Path):
    folder = tmp_path / "release"
    output = run("publish-source", "ultrachat", REPO, "--data-dir", ultrachat, "--output", folder)
    repository = hub.repositories[REPO]
    assert repository.private and repository.tags == {"v1": repository.commit}
    assert "read back and verified" in output and f'load_dataset("{REPO}", revision="v1")' in output
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    traces = load_source("ultrachat", data_dir=ultrachat)
    assert {split: list(rows) for split, rows in loaded.items()} == {
        split: list(rows) for split, rows in traces.items()
    }
    assert loaded["train"].features == TRACE_FEATURES and len(loaded["train"]) == 3
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit" and folder_faults(folder) == []
    assert "arXiv:2305.14233" in text and "huggingface.co/datasets/HuggingFaceH4/ultrachat" in text
    assert read_json(folder / "manifest.json")["configs"]["default"]["test"]["rows"] == 3


def test_a_second_push_replaces_the_files_of_the_first(hub: FakeHub, ultrachat: Path, tmp_path: Path):
    old = {"data/train-00000-of-00002.parquet": b"", "notes.md": b"mine"}
    hub.repositories[REPO] = Repository("0" * 40, old, private=True)
    run("publish-source", "ultrachat", REPO, "--data-dir", ultrachat, "--output", tmp_path / "release")
    files = hub.repositories[REPO].files
    assert {name for name in files if name.startswith("data/")} == {
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
    }
    assert files["notes.md"] == b"mine"


def test_a_dry_run_sends_nothing(hub: FakeHub, ultrachat: Path, tmp_path: Path):
    flags = ("--data-dir", ultrachat, "--output", tmp_path / "release", "--dry-run")
    assert "nothing was sent" in run("publish-source", "ultrachat", REPO, *flags)
    assert hub.requests == [] and (tmp_path / "release" / "README.md").is_file()


def test_a_public_repository_is_refused(hub: FakeHub, ultrachat: Path, tmp_path: Path):
    hub.repositories[REPO] = Repository("0" * 40, {})
    with pytest.raises(ValueError, match=r"is not private \(nothing was sent\)"):
        run("publish-source", "ultrachat", REPO, "--data-dir", ultrachat, "--output", tmp_path / "release")


def own_traces(folder: Path, source: str) -> Path:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    line = {"id": f"{source}/1", "source": source, "group": "a", "messages": turns, "verdict": "benign_success"}
    (folder / "own.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return folder / "own.jsonl"


@pytest.mark.parametrize(
    ("licence", "source", "why"),
    [
        (None, "own", r"jsonl: its licence was not stated; state it with `--licence NAME`"),
        ("mit", "agentharm", "agentharm: AgentHarm is never published"),
    ],
)
def test_what_may_not_be_passed_on_is_refused(tmp_path: Path, licence: str | None, source: str, why: str):
    builder = prepare_source("jsonl", data_files=[own_traces(tmp_path, source)], licence=licence)
    with pytest.raises(ReleaseError, match=why):
        make_source_release("jsonl", builder, REPO, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_licence_that_forbids_it_is_respected(real_data: Path, tmp_path: Path):
    builder = prepare_source("xstest_completions", data_dir=real_data / "xstest", cache_dir=tmp_path / "cache")
    with pytest.raises(ReleaseError, match=r"xstest_completions: its licence \(other\) does not allow redistribution"):
        make_source_release("xstest_completions", builder, REPO, tmp_path / "release")


def test_a_source_with_a_secret_in_a_row_is_refused(ultrachat: Path, tmp_path: Path):
    file = ultrachat / "train_sft.jsonl"
    text = file.read_text(encoding="utf-8").replace("Rows, of text.", "hf_" + "aB3" * 11 + "x", 1)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ReleaseError, match="holds a Hugging Face token"):
        make_source_release("ultrachat", prepare_source("ultrachat", data_dir=ultrachat), REPO, tmp_path / "release")
