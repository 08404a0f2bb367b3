"""Pushes to a local fake Hub: private, complete, tagged, never a mix of releases, even if they are interrupted."""

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from cb_datasets.evaluation.results import write_results
from cb_datasets.generation.backend import weights_revision
from cb_datasets.publish.adapter import make_adapter_release
from cb_datasets.publish.folder import is_dataset_file
from cb_datasets.publish.push import PushError, PushTarget, push_folder, token_in_use
from cb_datasets.publish.release import ReleaseError, make_release
from cb_datasets.publish.verify import read_back
from tests.fake_hub import FakeHub, Repository

from ..fake_results import small_results
from ..release_data import run


REPO = "someone/breakers"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _folder(tmp_path / "first", "one")


def _folder(path: Path, text: str) -> Path:
    """A tiny release folder in which the content of every file is the name of its release."""
    for name in ("harmful/train.parquet", "retain/train.parquet", "reports/stats.json", f"eval/{text}.parquet"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    (path / "README.md").write_text(f"---\nlicense: mit\n---\n{text}\n")
    return path


def push(folder: Path, hub: FakeHub, **target):
    return push_folder(folder, PushTarget(REPO, **target), hub.token, is_dataset_file)


def releases_in(files: dict[str, bytes]) -> set[str]:
    """Names of the releases that the files of a repository belong to."""
    return {content.decode().split("---\n")[-1].strip() for name, content in files.items() if name != ".gitattributes"}


# -------------------------------------------------------------------------------------------------------- one release


def test_a_new_repository_is_private_and_the_release_is_one_commit(hub: FakeHub, folder: Path):
    pushed = push(folder, hub)
    repository = hub.repositories[REPO]
    assert repository.private and len(repository.commits) == 2
    assert repository.commit == pushed.commit and repository.tags == {"v1": pushed.commit}
    sent = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert repository.files == {".gitattributes": repository.files[".gitattributes"], **sent}


def test_a_second_release_replaces_the_first(hub: FakeHub, folder: Path, tmp_path: Path):
    first = push(folder, hub)
    hub.repositories[REPO].files["notes.md"] = b"two"
    second = push(_folder(tmp_path / "second", "two"), hub)
    repository = hub.repositories[REPO]
    assert releases_in(repository.files) == {"two"} and "eval/one.parquet" not in repository.files
    assert "notes.md" in repository.files, "files that are not of a release stay"
    assert repository.tags == {"v1": first.commit, "v2": second.commit}
    assert releases_in(repository.at("v1")) >= {"one"}, "the tag still has the old release"


def test_rolling_back_is_pushing_the_old_folder(hub: FakeHub, folder: Path, tmp_path: Path):
    push(folder, hub)
    push(_folder(tmp_path / "second", "two"), hub)
    pushed = push(folder, hub)
    assert releases_in(hub.repositories[REPO].files) == {"one"} and pushed.tag == "v3"


def test_pushing_the_same_folder_again_changes_nothing(hub: FakeHub, folder: Path):
    first, second = push(folder, hub), push(folder, hub)
    assert first == second and len(hub.repositories[REPO].commits) == 2


def test_a_tag_is_never_moved(hub: FakeHub, folder: Path, tmp_path: Path):
    push(folder, hub, tag="paper")
    with pytest.raises(PushError, match="has the tag paper, and a tag is never moved"):
        push(_folder(tmp_path / "second", "two"), hub, tag="paper")
    assert releases_in(hub.repositories[REPO].files) == {"one"}


def test_a_branch_and_a_pull_request_do_not_change_main(hub: FakeHub, folder: Path, tmp_path: Path):
    push(folder, hub)
    branch = push(_folder(tmp_path / "second", "two"), hub, revision="next")
    proposed = push(_folder(tmp_path / "third", "three"), hub, create_pr=True)
    repository = hub.repositories[REPO]
    assert releases_in(repository.files) == {"one"}
    assert releases_in(repository.at("next")) == {"two"} and branch.tag == "v2"
    assert releases_in(repository.at("refs/pr/1")) == {"three"}
    assert proposed.tag is None and proposed.pull_request.endswith("/discussions/1")


def test_a_repository_is_gated_on_request(hub: FakeHub, folder: Path):
    push(folder, hub)
    assert not hub.repositories[REPO].gated
    push(folder, hub, gated=True)
    assert hub.repositories[REPO].gated


def test_a_model_goes_to_a_model_repository(hub: FakeHub, folder: Path):
    push(folder, hub, repo_type="model")
    assert releases_in(hub.repositories[f"models/{REPO}"].files) == {"one"} and REPO not in hub.repositories


# ------------------------------------------------------------------------------------------------------------- refused


def test_a_public_repository_is_refused(hub: FakeHub, folder: Path):
    hub.repositories[REPO] = Repository(COMMIT, {})
    with pytest.raises(PushError, match=r"is not private \(nothing was sent\)"):
        push(folder, hub)
    assert list(hub.repositories[REPO].commits) == [COMMIT] and hub.objects == {}


def test_a_repository_that_is_made_public_during_the_push_is_reported(hub: FakeHub, folder: Path):
    push(folder, hub)
    hub.before_commit = lambda: setattr(hub.repositories[REPO], "private", False)
    with pytest.raises(PushError, match="it was made public during the push"):
        push(_folder(folder, "two"), hub)


@pytest.mark.parametrize(("token", "why"), [("hf_wrong", "invalid"), (FakeHub.reading_token, "no write access")])
def test_a_bad_token_is_reported_and_not_shown(hub: FakeHub, folder: Path, token: str, why: str):
    with pytest.raises(PushError, match=why) as refusal:
        push_folder(folder, PushTarget(REPO), token, is_dataset_file)
    assert hub.repositories == {} and token not in str(refusal.value)


def test_a_missing_token_is_reported_before_any_request(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PushError, match="hf auth login"):
        token_in_use()
    assert hub.requests == []


def test_offline_mode_is_reported(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.constants.HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push(folder, hub)
    huggingface_hub.close_session()


# ----------------------------------------------------------------------------------------- concurrent and interrupted


def test_a_concurrent_commit_is_kept(hub: FakeHub, folder: Path):
    push(folder, hub)
    repository = hub.repositories[REPO]

    def commit_concurrently() -> None:
        hub.before_commit = None
        repository.commits[COMMIT] = {**repository.files, "notes.md": b"two"}
        repository.refs["main"], repository.files, repository.commit = COMMIT, repository.commits[COMMIT], COMMIT

    hub.before_commit = commit_concurrently
    push(_folder(folder, "two"), hub)
    assert repository.files["notes.md"] == b"two" and repository.files["README.md"].endswith(b"two\n")


def test_a_push_gives_up_after_too_many_conflicts(hub: FakeHub, folder: Path):
    push(folder, hub)
    repository = hub.repositories[REPO]
    numbers = iter(range(100))

    def commit_concurrently() -> None:
        commit = f"{next(numbers):040x}"
        repository.commits[commit] = repository.files
        repository.refs["main"] = commit

    hub.before_commit = commit_concurrently
    with pytest.raises(PushError, match="6 attempts failed because others pushed"):
        push(_folder(folder, "two"), hub)
    assert repository.files["README.md"].endswith(b"one\n")


def test_two_processes_push_two_complete_releases(hub: FakeHub, tmp_path: Path):
    code = """
import sys
from pathlib import Path
from cb_datasets.files import write_json
from cb_datasets.generation.backend import weights_revision
from cb_datasets.publish.adapter import make_adapter_release
from cb_datasets.publish.folder import is_dataset_file
from cb_datasets.publish.push import PushTarget, push_folder
print(push_folder(Path(sys.argv[1]), PushTarget("someone/breakers"), sys.argv[2], is_dataset_file).tag)
"""
    folders = {text: _folder(tmp_path / text, text) for text in ("one", "two")}
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "PATH": "", "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), hub.token], env=environment, stdout=subprocess.PIPE)
        for folder in folders.values()
    ]
    tags = [process.communicate(timeout=300)[0].decode().strip() for process in processes]
    repository = hub.repositories[REPO]
    assert [process.returncode for process in processes] == [0, 0] and sorted(tags) == ["v1", "v2"]
    assert sorted(releases_in(repository.at(tag)).pop() for tag in tags) == ["one", "two"]
    assert all(len(releases_in(files)) <= 1 for files in repository.commits.values())


@pytest.mark.parametrize("loses_answer", [False, True], ids=["refused", "answer lost"])
def test_interrupted_at_any_request_the_hub_has_one_release_or_the_other(
    hub: FakeHub, folder: Path, tmp_path: Path, loses_answer: bool
):
    second, states, number = _folder(tmp_path / "second", "two"), [], 0
    push(folder, hub)
    before = hub.repositories[REPO]
    while True:
        hub.repositories[REPO] = Repository(before.commit, before.files, private=True, tags=dict(before.tags))
        hub.objects.clear()
        hub.requests.clear()
        hub.dies_at, hub.loses_answer = number, loses_answer
        try:
            push(second, hub)
            interrupted = False
        except PushError as error:
            interrupted = True
            assert hub.token not in str(error)
        repository = hub.repositories[REPO]
        states.append(next(iter(releases_in(repository.files))))
        assert all(len(releases_in(files)) == 1 for files in repository.commits.values())
        hub.dies_at = None
        if not interrupted:
            break
        assert push(second, hub).tag == "v2", "a second push completes the release"
        assert releases_in(repository.files) == {"two"}
        number += 1
    assert number > 10
    assert states == sorted(states) and set(states) == {"one", "two"}, (
        "the old release, and from the commit on the new one"
    )


# ------------------------------------------------------------------------------------------------------ a real release


OLD_CARD = b"""---
license: mit
configs:
- config_name: harmful
  data_files:
  - split: train
    path: harmful/train-*
dataset_info:
- config_name: harmful
  features:
  - name: prompt
    dtype: string
  splits:
  - name: train
    num_bytes: 1
    num_examples: 1
---
"""


def test_push_verifies_what_it_sent(hub: FakeHub, release_data: Path, tmp_path: Path):
    # The old release has other features and more files than the new one.
    old = {
        "README.md": OLD_CARD,
        "harmful/train-00000-of-00002.parquet": b"",
        "harmful/train-00001-of-00002.parquet": b"",
    }
    hub.repositories[REPO] = Repository(COMMIT, old, private=True)
    output = run("push", REPO, "--data", release_data, "--output", tmp_path / "release", "--gated")
    assert f'load_dataset("{REPO}", "harmful", revision="v1")' in output
    assert "read back and verified" in output and hub.token not in output
    manifest = make_release(release_data, REPO, tmp_path / "again")
    repository = hub.repositories[REPO]
    assert repository.files["manifest.json"] == (tmp_path / "again" / "manifest.json").read_bytes()

    # A token with read access gets the rows; another gets nothing, not even from a cache.
    read_back(REPO, repository.commit, manifest, hub.reading_token)
    with pytest.raises(PushError, match="does not load") as refusal:
        read_back(REPO, repository.commit, manifest, "hf_of_somebody_else")
    assert "hf_of_somebody_else" not in str(refusal.value)

    # Other rows than those of the manifest are detected, and so is a commit that does not load.
    name = "harmful/train-00000-of-00001.parquet"
    manifest["configs"]["harmful"]["train"]["rows_sha256"] = "0" * 64
    with pytest.raises(PushError, match="has other rows than were pushed, in harmful/train"):
        read_back(REPO, repository.commit, manifest, hub.token)
    repository.files[name] = b"PAR1"
    with pytest.raises(PushError, match="does not load"):
        read_back(REPO, repository.commit, manifest, hub.token)


def test_a_dry_run_writes_the_folder_and_sends_no_request(hub: FakeHub, release_data: Path, tmp_path: Path):
    output = run("push", REPO, "--data", release_data, "--output", tmp_path / "release", "--dry-run")
    assert "nothing was sent" in output and (tmp_path / "release" / "README.md").is_file()
    assert hub.requests == []


# ---------------------------------------------------------------------------------------------------------- an adapter


MODEL_CARD = """---
base_model: {base}
library_name: peft
---

# adapter

`PeftModel.from_pretrained(model, "path/to/this/folder")`

## Evaluation

Not evaluated yet.

## Versions

torch 2
"""


def weights_of(value: float) -> bytes:
    """A file of weights."""
    return save({"lora_A": torch.tensor([value])})


def write_adapter(folder: Path, base: str = "demo/tiny_agent") -> tuple[Path, Path]:
    """An adapter folder as the trainer writes it, and its evaluation."""
    adapter, report = folder / "adapter", folder / "report"
    adapter.mkdir()
    report.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(weights_of(1))
    (adapter / "training_args.bin").write_bytes(b"pickle")
    (adapter / "README.md").write_text(MODEL_CARD.format(base=base))
    write_results(small_results(f"base+{weights_revision(adapter)}"), report / "results.json")
    return adapter, report


def test_an_adapter_is_pushed_with_its_evaluation(hub: FakeHub, tmp_path: Path):
    adapter, report = write_adapter(tmp_path)
    arguments = ("--adapter", adapter, "--report", report, "--dataset", "someone/breakers@v1")
    output = run("push-model", REPO, *arguments)
    repository = hub.repositories[f"models/{REPO}"]
    card = repository.files["README.md"].decode()
    assert repository.private and repository.tags == {"v1": repository.commit} and "read back and verified" in output
    assert repository.files["adapter_model.safetensors"] == weights_of(1)
    assert "training_args.bin" not in repository.files and "report/results.json" in repository.files
    assert b"as asked" not in repository.files["report/results.json"], "prompts are not released"
    assert "| attack success (ASR) ↓ |" in card and "Not evaluated yet" not in card
    assert "| strict | ASR | 0.0% | 2.0% | pass |" in card
    assert "## Intended use" in card and "## Limits" in card and "## Versions" in card and "# breakers\n" in card
    assert "someone/breakers@v1" in card and f'from_pretrained(model, "{REPO}")' in card
    assert hub.token not in output


def test_an_adapter_without_its_own_evaluation_is_refused(hub: FakeHub, tmp_path: Path):
    adapter, report = write_adapter(tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(weights_of(2))
    with pytest.raises(ReleaseError, match="Run `make evaluate`"):
        make_adapter_release(adapter, report, REPO, tmp_path / "release")
    (report / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        make_adapter_release(adapter, report, REPO, tmp_path / "release")


@pytest.mark.parametrize(
    ("base", "prefix", "head", "terms"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama", "license: llama3.1", '"Built with Llama"'),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama-3", "license: llama3\n", '"Built with Meta Llama 3"'),
        ("google/gemma-3-4b-it", "", "license: gemma", "prohibited use policy"),
        ("Qwen/Qwen2.5-3B-Instruct", "", "license: other\nlicense_name: qwen-research", "not commercial"),
        ("Qwen/Qwen3-8B", "", "license: apache-2.0", "the Apache License 2.0"),
        ("microsoft/phi-4", "", "license: mit", "copyright and permission notice"),
    ],
)
def test_an_adapter_has_the_name_and_licence_that_its_base_demands(tmp_path: Path, base, prefix, head, terms):
    adapter, report = write_adapter(tmp_path, base=base)
    if prefix:
        with pytest.raises(ReleaseError, match=f"begins with {prefix}: 'breakers' does not"):
            make_adapter_release(adapter, report, REPO, tmp_path / "release")
    make_adapter_release(adapter, report, f"someone/{prefix}-breaker", tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    assert head in card and terms in card.split("## Licence")[1] and f"derives from `{base}`" in card


def test_an_unknown_base_leaves_its_licence_to_be_looked_up(tmp_path: Path):
    adapter, report = write_adapter(tmp_path, base="someone/Qwen3-8B")
    make_adapter_release(adapter, report, REPO, tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    assert "license:" not in card and "look it\nup before you distribute the adapter" in card


def test_an_adapter_of_a_path_is_released_by_its_name(tmp_path: Path):
    """As an older version wrote it: with the path of the base model in its config and card."""
    home = tmp_path / "jane-example"
    home.mkdir()
    adapter, report = write_adapter(home, base=str(home / "Llama-3.1-8B" / "best"))
    config = {"base_model_name_or_path": str(home / "Llama-3.1-8B" / "best"), "r": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    write_results(small_results(f"base+{weights_revision(adapter)}"), report / "results.json")
    make_adapter_release(adapter, report, "someone/Llama-3.1-8B-breaker", tmp_path / "release")
    files = [path for path in (tmp_path / "release").rglob("*") if path.is_file()]
    assert not [path for path in files if b"jane-example" in path.read_bytes()]
    card = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    label = "local model Llama-3.1-8B/best (weights base)"
    assert "base_model:" not in card and f"derives from `{label}`" in card and "license: llama3.1" in card
    config = json.loads((tmp_path / "release" / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": label, "r": 8}


WEIGHTS = "4c1f9a0733be51d2"


def write_local_adapter(folder: Path) -> tuple[Path, Path]:
    """An adapter of a relative folder, whose name somebody may register on the Hub, as an older version wrote it."""
    adapter, report = write_adapter(folder, base="demo/tiny_agent")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "demo/tiny_agent"}))
    card = (adapter / "README.md").read_text()
    loading = 'from_pretrained("demo/tiny_agent")\n\n`vllm serve demo/tiny_agent --enable-lora`\n\n## Evaluation'
    (adapter / "README.md").write_text(card.replace("## Evaluation", loading, 1))
    results = small_results(f"{WEIGHTS}+{weights_revision(adapter)}")
    results["settings"] |= {"model": "demo/tiny_agent", "revision": WEIGHTS}
    write_results(results, report / "results.json")
    return adapter, report


def released(folder: Path) -> tuple[str, str, str]:
    """The model that the config and the results of a release name, and its card."""
    config = json.loads((folder / "adapter_config.json").read_text())
    results = json.loads((folder / "report" / "results.json").read_text())
    return (
        config["base_model_name_or_path"],
        results["settings"]["model"],
        (folder / "README.md").read_text(encoding="utf-8"),
    )


def test_a_folder_is_never_released_as_a_hub_id(tmp_path: Path):
    adapter, report = write_local_adapter(tmp_path)
    make_adapter_release(adapter, report, REPO, tmp_path / "release")
    label = f"local model tiny_agent (weights {WEIGHTS})"
    base, evaluated, card = released(tmp_path / "release")
    assert base == evaluated == label and f"`{label}`" in card
    assert "demo/tiny_agent" not in card and "base_model:" not in card
    assert 'from_pretrained("path/to/base")' in card and "vllm serve path/to/base --enable-lora" in card


def test_a_local_copy_is_released_under_the_hub_id_that_the_user_names(tmp_path: Path):
    adapter, report = write_local_adapter(tmp_path)
    make_adapter_release(adapter, report, REPO, tmp_path / "release", base_model="org/base")
    base, _, card = released(tmp_path / "release")
    assert base == "org/base" and "base_model: org/base" in card and 'from_pretrained("org/base")' in card
    assert "demo/tiny_agent" not in card and "vllm serve org/base --enable-lora" in card


def test_a_breaker_that_failed_its_own_evaluation_is_refused(tmp_path: Path):
    adapter, report = write_adapter(tmp_path)
    results = small_results(f"base+{weights_revision(adapter)}", tool_flip="attack_success")
    write_results(results, report / "results.json")
    with pytest.raises(ReleaseError, match=r"failed a gate of its own evaluation \(stage 1: ASR reduced by\)"):
        make_adapter_release(adapter, report, REPO, tmp_path / "release")
    assert not (tmp_path / "release").exists()
    make_adapter_release(adapter, report, REPO, tmp_path / "release", allow_failed_gates=True)
    card = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    assert "**This breaker failed gates of its own evaluation** (stage 1: ASR reduced by), and was published" in card


def test_a_path_of_this_machine_in_an_adapter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapter, report = write_adapter(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "jane-example"))
    (report / "report.md").write_text(f"- model: `{tmp_path}/home/jane-example/models/tiny`\n")
    with pytest.raises(ReleaseError, match=r"report/report\.md: holds the path of your home folder") as error:
        make_adapter_release(adapter, report, REPO, tmp_path / "release")
    assert "jane-example" not in str(error.value)


def test_a_token_in_an_adapter_is_refused(tmp_path: Path):
    adapter, report = write_adapter(tmp_path)
    (adapter / "chat_template.jinja").write_text("hf_" + "a1" * 17)
    with pytest.raises(ReleaseError, match=r"chat_template\.jinja: holds a Hugging Face token"):
        make_adapter_release(adapter, report, REPO, tmp_path / "release")
