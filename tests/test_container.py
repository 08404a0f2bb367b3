"""The image's recipe: no Docker runs in the tests, but what it copies, runs and installs is here to be checked."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools


ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
SENT = [line.removeprefix("!") for line in IGNORED if line.startswith("!")]


def sent_files() -> list[str]:
    """The files of the repository that are sent to the builder."""
    listed = subprocess.run(["git", "ls-files", "--", *SENT], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, "the test needs a git checkout"
    return listed.stdout.splitlines()


@pytest.fixture
def arguments(monkeypatch):
    """The arguments of `setup` in setup.py."""
    caught = {}
    monkeypatch.setattr(setuptools, "setup", caught.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return caught


@pytest.fixture
def image(tmp_path):
    """The folder that the image has, before anything is installed."""
    for name in sent_files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_only_named_paths_of_the_repository_are_sent():
    rules = [line for line in IGNORED if line and not line.startswith(("#", "!"))]
    assert rules == ["*", "**/__pycache__"] and IGNORED.index("*") < IGNORED.index(f"!{SENT[0]}")
    files = sent_files()
    assert [name for name in SENT if not any(file == name or file.startswith(f"{name}/") for file in files)] == []
    assert re.findall(r"^(?:COPY|ADD) (.*)", DOCKERFILE, re.MULTILINE) == [". ."]


def test_no_weights_data_or_tokens_get_into_the_image():
    files = sent_files()
    weights = {Path(name).parent for name in files if Path(name).suffix in (".safetensors", ".bin", ".pt", ".gguf")}
    assert weights == {Path("demo/tiny_agent")}
    assert [name for name in files if Path(name).suffix == ".parquet"] == []
    assert re.search(r"(?i)^(?:ARG|ENV)\b.*(?:token|key|secret|password)", DOCKERFILE, re.MULTILINE) is None


def test_the_image_has_what_setup_and_the_recipes_need(image, arguments, monkeypatch):
    [targets] = re.findall(r"make PYTHON=\S+ (.*?)(?: &&|$)", DOCKERFILE, re.MULTILINE)
    command = ["make", "--dry-run", *targets.split(), "evaluate", "RECIPE=llama-3.1-8b", "RAW=raw"]
    shown = subprocess.run(command, cwd=image, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    monkeypatch.chdir(image)
    in_image: dict = {}
    monkeypatch.setattr(setuptools, "setup", in_image.update)
    runpy.run_path("setup.py")
    assert in_image == arguments
    for package, patterns in in_image["package_data"].items():
        assert all(any((image / package).glob(pattern)) for pattern in patterns)


def test_the_image_installs_what_setup_py_has_for_a_python_it_is_tested_with(arguments):
    extras = re.findall(r"pip install -c constraints\.txt -e '\.\[(.*?)\]'", DOCKERFILE)
    assert extras == ["vllm"] and set(extras) <= set(arguments["extras_require"])
    [version] = set(re.findall(r"\bpython(3\.\d+)", DOCKERFILE))
    assert f"Programming Language :: Python :: {version}" in arguments["classifiers"]
