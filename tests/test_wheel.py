"""The wheel holds all that the packages need: installed elsewhere, the command line and the sources work."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("builders", "cb_datasets", "cards", "trainers")


def run(*command: object, cwd: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(cwd)}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder of the checkout gets into it."""
    pytest.importorskip("build", reason="build is not installed: make setup installs it")
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, "the test needs a git checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if (name.startswith(PACKAGES) or "/" not in name) and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    # Without isolation: the environment of the tests has what builds it.
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist")
    run(*command, cwd=folder / "source")
    [path] = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel. It borrows the dependencies from the environment of the tests."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    # A path in a .pth file is no site folder: links to the checkout in it, of an editable install, are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "env"


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True).stdout
    assert [name for name in listed.split() if name not in packed and (ROOT / name).is_file()] == []


def test_an_installed_wheel_works(environment, tmp_path):
    shown = run(environment / "bin" / "cb-datasets", "--help", cwd=tmp_path)
    assert "generate-ds" in shown and "preflight" in shown
    assert run(environment / "bin" / "cb-datasets", "--version", cwd=tmp_path).startswith("cb-datasets 0.")
    code = (
        "import builders, cb_datasets, trainers; print(cb_datasets.__file__);"
        "print(len(builders.load_source('lookalike')['test']))"
    )
    where, rows = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(environment) and int(rows) > 1000
