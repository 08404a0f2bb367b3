"""The house stays walkable: imports run one way, published assets stay as they are, documents name real things."""

import ast
import hashlib
import re
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "builders": {"builders"},
    "cb_datasets": {"builders", "cb_datasets"},
    "trainers": {"builders", "cb_datasets", "trainers"},
}
PUBLISHED = {"b4_standard_v1.json": "a0b5297ec7d75e9d309638e3710ba55f2b261b5ff5a0a06a75928bbf5edfe0e2"}


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {name.split(".")[0] for name in names} & set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): extra
        for path in files
        if (extra := imported_packages(path) - MAY_IMPORT[package])
    }
    assert wrong == {}


def test_published_assets_are_never_edited():
    found = {
        name: hashlib.sha256((ROOT / "builders" / "assets" / name).read_bytes()).hexdigest() for name in PUBLISHED
    }
    assert found == PUBLISHED, "an asset that data were made with changed: add a new version instead"


def test_the_readme_names_real_files_and_targets():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test", "data"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    paths = re.findall(r"`((?:builders|cb_datasets|trainers|recipes|tests|demo)/[\w./-]*)`", readme)
    assert paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_make_help_explains_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [declared] = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    for target in declared.replace("\\", "").split():
        assert re.search(rf"^  {target} ", shown, re.MULTILINE), target
