"""Settings of every test: no network, one thread, and the real data where it is available."""

import gc
import os
from functools import cache
from pathlib import Path

import pytest


# Read at import time by the libraries, so set before any test module imports them.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1"
)

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("CB_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
REAL_TOKENIZERS = Path(os.environ.get("CB_TEST_TOKENIZERS", REPOSITORY / ".tokenizers"))


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of garbage collection: every trainer asks for one, which would take 0.3 s."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def isolated_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads what an earlier run left in a cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real source files: `$CB_TEST_DATA`, or `shared/data` beside the checkout."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data: set CB_TEST_DATA to a folder of source files")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_agent_path() -> Path:
    """The tiny agent that ships with the project."""
    return REPOSITORY / "demo" / "tiny_agent"


@pytest.fixture(scope="session")
def real_tokenizer():
    """`real_tokenizer("qwen3")`: a real tokenizer in `$CB_TEST_TOKENIZERS`, or `.tokenizers` in the checkout."""
    from transformers import AutoTokenizer

    @cache
    def load(name: str):
        if not (REAL_TOKENIZERS / name).is_dir():
            pytest.skip(f"no tokenizer {name}: run `make tokenizers`, or set CB_TEST_TOKENIZERS to their folder")
        return AutoTokenizer.from_pretrained(REAL_TOKENIZERS / name)

    return load


@pytest.fixture(scope="session")
def tokenizer_packages() -> Path:
    """Folder of the packages that the real tokenizers were built from."""
    if not (REAL_TOKENIZERS / ".packages").is_dir():
        pytest.skip("no packages of tokenizers: run `make tokenizers`, or set CB_TEST_TOKENIZERS to their folder")
    return REAL_TOKENIZERS / ".packages"


@pytest.fixture(scope="session")
def llama_tokenizer(real_tokenizer):
    """The real Llama 3.1 tokenizer with its chat template."""
    return real_tokenizer("llama-3.1")


@pytest.fixture
def any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands that are parsed and not run: what they read need not be there."""
    monkeypatch.setattr("cb_datasets.cli.paths.check_exists", lambda flag, path, kind: None)
