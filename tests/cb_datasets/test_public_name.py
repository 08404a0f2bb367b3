"""Names that may be published: ids and paths of the project stay, the rest of a path goes."""

import json
import os

import pytest

from cb_datasets.model_licences import licence_of
from cb_datasets.public_name import hub_id, model_label, public_name, publish_adapter_config


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("demo/tiny_agent", "demo/tiny_agent"),
        ("tiny_agent", "tiny_agent"),
        ("", ""),
        ("/home/jane-example/runs/adapter", "adapter"),
        ("/home/jane-example/runs/adapter/", "adapter"),
        ("~/runs/adapter", "adapter"),
        ("~jane-example/runs/adapter", "adapter"),
        ("/data/jane-example/Llama-3.1-8B/checkpoint-9", "Llama-3.1-8B/checkpoint-9"),
        ("/data/jane-example/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("/data/jane-example/Qwen3-8B/checkpoint-9", "Qwen3-8B/checkpoint-9"),
        ("/data/jane-example/gemma-3-4b-it/best", "gemma-3-4b-it/best"),
        ("/home/jane-example/.cache/huggingface/hub/models--org--name/snapshots/4c1f", "org/name"),
        ("~/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/4c1f", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_names(name, public):
    assert public_name(name) == public


def test_a_path_out_of_the_working_directory_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name("../jane-example/adapter") == "adapter"
    assert public_name("..") == tmp_path.parent.name and public_name(".") == tmp_path.name


HASH = "4c1f9a0733be51d2"


@pytest.mark.parametrize(
    ("name", "revision", "label"),
    [
        ("org/name", "ab" * 20, "org/name"),
        ("org/name", None, "org/name"),
        ("demo/tiny_agent", HASH, f"local model tiny_agent (weights {HASH})"),
        ("data/Llama-3.1-8B/best", HASH, f"local model Llama-3.1-8B/best (weights {HASH})"),
        ("tiny+data/demo/adapter", f"{HASH}+{HASH}", f"local model tiny (weights {HASH})+adapter"),
        ("org/name+data/demo/adapter", f"{'ab' * 20}+{HASH}", "org/name+adapter"),
        ("tiny", f"{HASH}@8bit", f"local model tiny (weights {HASH}@8bit)"),
        (f"local model tiny (weights {HASH})", HASH, f"local model tiny (weights {HASH})"),
        ("gpt-4o-2024-05-13", None, "gpt-4o-2024-05-13"),
    ],
)
def test_readers_are_told_what_is_local(name, revision, label):
    assert model_label(name, revision) == label


def test_the_licence_of_a_local_model_is_that_of_its_name():
    assert licence_of(f"local model Llama-3.1-8B (weights {HASH})") == licence_of("meta-llama/Llama-3.1-8B")
    assert licence_of(f"local model Qwen3-8B/checkpoint-9 (weights {HASH})") == licence_of("Qwen/Qwen3-8B")
    assert licence_of(f"local model tiny (weights {HASH})") is None


def test_a_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("org/name") == "org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_id("org/name") is None and hub_id(str(tmp_path / "nowhere")) is None and hub_id("") is None
    cached = tmp_path / "models--org--name" / "snapshots" / "4c1f"
    assert hub_id(str(cached)) == "org/name"


def test_an_adapter_keeps_the_rest_of_its_config(tmp_path):
    file, config = tmp_path / "adapter_config.json", {"r": 8, "base_model_name_or_path": "/home/jane-example/base"}
    file.write_text(json.dumps(config))
    publish_adapter_config(tmp_path)
    assert json.loads(file.read_text()) == {"r": 8, "base_model_name_or_path": "base"}
    written = os.stat(file).st_mtime_ns
    publish_adapter_config(tmp_path)
    assert os.stat(file).st_mtime_ns == written
    file.unlink()
    publish_adapter_config(tmp_path)
