"""The search index of the audit page: it finds exactly the rows that a linear scan finds, and it is cached."""

import random
import shutil
import socket
from pathlib import Path

import pytest

from builders.trace import message
from cb_datasets.audit import search as search_module
from cb_datasets.audit.cached_table import NotReady
from cb_datasets.audit.row_store import RowStore
from cb_datasets.audit.search import Search
from cb_datasets.files import load_rows, save_rows, to_dataset
from cb_datasets.sample import SAMPLE_FEATURES


ODD = (
    "",
    "a",
    "Ünïcode ÜNÏCODE, straße STRASSE",
    "漢字の文、句点。",
    "\U0001f600\U0001f600 x",
    "e\0e",
    "eee",
    " ",
    "\n\n-- --\n",
)
ODD_SEARCHES = (
    "ünïcode",
    "STRASSE",
    "字の",
    "、",
    "\U0001f600 ",
    "e\0",
    "ee",
    "e e",
    ". ",
    "\n\n",
    "\n--",
    "no such",
    "-",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def files(release_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files, one of them with the texts of `ODD` in its messages."""
    folder = Path(shutil.copytree(release_data / "stage2", tmp_path_factory.mktemp("search") / "stage2"))
    rows = list(load_rows(folder / "train"))
    for row, text in zip(rows, ODD, strict=False):
        row["messages"] = [*row["messages"], message("assistant", text), message("assistant", None)]
    save_rows(to_dataset(rows, SAMPLE_FEATURES), folder / "train", {})
    return sorted(folder.glob("*/data.parquet"))


def texts_of_rows(files: list[Path]) -> list[list[str]]:
    rows = [row for file in files for row in load_rows(file.parent)]
    texts = [[row["id"], row["assistant_raw"], *(turn["content"] for turn in row["messages"])] for row in rows]
    return [[text.casefold() for text in row_texts if text is not None] for row_texts in texts]


def random_searches(texts: list[list[str]]) -> list[str]:
    """Substrings of the texts, of all lengths, and variants that differ from one by a character."""
    rng, searches = random.Random(0), []
    while len(searches) < 400:
        text = rng.choice(rng.choice(texts))
        start = rng.randrange(len(text) + 1)
        piece = text[start : start + rng.choice([1, 2, 3, 5, 9, 30, 200])]
        searches += [piece, piece + rng.choice("ae .,"), rng.choice("ae .,") + piece] if piece else []
    return searches


@pytest.mark.parametrize("segment_tokens", [300, 4_000_000])
def test_the_index_finds_what_a_linear_scan_finds(files, monkeypatch, segment_tokens: int):
    monkeypatch.setattr(search_module, "SEGMENT_TOKENS", segment_tokens)
    search, texts = Search(files), texts_of_rows(files)
    for text in (*ODD_SEARCHES, *random_searches(texts)):
        expected = [any(text.casefold() in each for each in row_texts) for row_texts in texts]
        assert search.rows_with(text, seconds=60).tolist() == expected, repr(text)
    assert (len(search.batches()) > 5) == (segment_tokens == 300)


def test_an_index_is_built_once_and_rebuilt_when_the_rows_change(files, tmp_path, cache, monkeypatch):
    copy = Path(shutil.copy(files[0], tmp_path / "data.parquet"))
    builds = []
    compute = Search._compute_batches
    monkeypatch.setattr(Search, "_compute_batches", lambda self: builds.append(1) or compute(self))
    for _ in range(3):
        assert Search([copy]).rows_with("zebra", seconds=60).sum() == 0
    assert len(builds) == 1
    rows = list(load_rows(tmp_path))
    rows[3]["messages"] = [message("user", "A zebra.")]
    save_rows(to_dataset(rows, SAMPLE_FEATURES), tmp_path, {})
    assert Search([copy]).rows_with("Zebra", seconds=60).nonzero()[0].tolist() == [3]
    assert len(builds) == 2 and len(list((cache / "audit").iterdir())) == 1, "the new index replaces the old one"


def test_temporary_files_of_a_killed_process_are_removed(files, cache):
    Search(files).batches(seconds=60)
    [file] = (cache / "audit").iterdir()
    orphan = file.with_name(f".{file.name}.999999999@{socket.gethostname()}.tmp")
    orphan.write_text("half")
    file.unlink()
    assert Search(files).batches(seconds=60) and list((cache / "audit").iterdir()) == [file]


def test_a_search_before_the_index_is_ready_raises(files, monkeypatch):
    monkeypatch.setattr(Search, "_load", lambda self: None)
    with pytest.raises(NotReady, match=r"search: 0 of \d+ rows so far"):
        Search(files).rows_with("x", seconds=0)


def test_an_index_that_cannot_be_written_fails_the_search_only(files, cache):
    cache.write_text("no folder")
    store = RowStore(files[0])
    with pytest.raises(ValueError, match=r"for the search failed: .*cache"):
        store.search.rows_with("x", seconds=60)
    assert len(store.select({"class": "refusal"}))
